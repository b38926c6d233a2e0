"""Log-probabilities of continuations, fast: the forward pass of downstream tasks, and nothing else of them.

Savings over a forward pass for every request with logits at every position:

- the continuations of one context are branches of one row: a mask lets each see the context and itself;
- a beginning that many contexts share (the examples of a few-shot prompt) is computed once and kept in a cache;
- requests with the same input are one, the head runs on scored positions alone, rows of like length run together, and
  what a batch has found goes to the host in one copy.

Branches and cache are tried on the longest of what is asked. Where they do not give the log-probabilities of plain
forward passes (positions by place in the row, windows, a state in place of a cache), they are not used, and it is told;
rows without branches keep the model's own mask.
"""

# B rows of one forward pass, T positions, S positions of the trunk, D hidden size, V vocabulary, N scored positions.

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from inheritune.errors import EvaluationError
from inheritune.evaluation.damage import said_of_damage
from inheritune.evaluation.row_plan import (
    Batch,
    Pair,
    Request,
    Row,
    groups_alike,
    ids_of,
    length_of,
    longest_input,
    places,
    plan,
    rows_of,
    scored_positions,
)
from inheritune.machine.head import Head, split_head
from inheritune.machine.memory import is_out_of_memory

TOKENS_AT_ONCE = 8192
"""Positions of one batch, those in the cache included."""

LOGITS_AT_ONCE = 2**25
"""Elements of the largest logits tensor: 128 MiB in float32; a large vocabulary leaves the product some rows."""

LEAST_POSITIONS = {"cpu": 512, "cuda": 4096}
"""Positions of a forward pass that are not split further for the sake of padding."""

SAME_NATS, SAME_SHARE = 1e-4, 1e-6
"""How far sharing may move a log-probability, in nats and as a share of it."""


class Answer(NamedTuple):
    """What a model says of one continuation."""

    log_probability: float
    """Nats, summed over its tokens."""
    is_greedy: bool
    """Each of its tokens is the likeliest one."""


@dataclass
class Tally:
    """What the scoring of some pairs has needed."""

    pairs: int = 0
    pairs_positions: int = 0
    """Positions that one forward pass a pair would have taken."""
    computed_positions: int = 0
    cut_pairs: int = 0
    """Pairs whose context was longer than the window and lost its beginning."""
    pieced_pairs: int = 0
    """Pairs whose continuation was longer than the window and was scored in pieces."""
    branches: bool | None = None
    """Whether the continuations of a context share it; None as long as nothing could be shared."""
    trunks: bool | None = None
    """Likewise of beginnings of contexts, in the cache."""
    untried: bool = False
    """Memory did not hold the trial of one of them, which was then not used."""


class Scorer:
    """A model that says how likely continuations are."""

    def __init__(self, model: nn.Module, *, window: int, tokens_at_once: int = TOKENS_AT_ONCE) -> None:
        """Take a model, and look whether its head splits; whether it can share is tried when there is something to.

        Args:
            model: a Hugging Face causal language model in evaluation mode.
            window: most positions of one input; of a longer one the end is kept.
            tokens_at_once: positions of one batch; it is lowered where memory runs out.
        """
        self.model: Any = model.eval()
        self.window = window
        self.tokens_at_once = tokens_at_once
        self.device = next(model.parameters()).device
        self.vocabulary = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
        self.logits_at_once = max(1, LOGITS_AT_ONCE // self.vocabulary)
        self.least_positions = LEAST_POSITIONS.get(self.device.type, TOKENS_AT_ONCE)
        self.tally = Tally()
        self.branched = (0, 0)  # longest row and longest input that branches were tried on
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            split = split_head(self.model)
        self.head: Head | None = split.head if split else None
        if split is None:  # all logits of a pass are made at once
            self.tokens_at_once = min(tokens_at_once, self.logits_at_once)
        # without a split the whole model stands for its body, and logits for hidden states
        self.body: Any = getattr(self.model, str(self.model.base_model_prefix)) if split else self.model

    def score(self, pairs: Sequence[Pair], *, progress: Callable[[int], None] | None = None) -> list[Answer]:
        """Log-probability of each continuation after its context, float32 logits and log-sum-exp.

        Args:
            pairs: token ids of context and continuation.
            progress: called with the number of pairs that were answered.

        Raises:
            EvaluationError: an empty context or continuation, no memory for a single request, or a log-probability that
                is not a number.
        """
        if not pairs:
            return []
        pieces, owners = self._pieces(pairs)
        requests = self._requests(pieces)
        answers: list[Answer | None] = [None] * len(pieces)
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            waiting = self._plan(requests)[::-1]
            while waiting:
                batch = waiting.pop()
                try:
                    sums, greedy = self._run(batch)
                except RuntimeError as error:
                    if not is_out_of_memory(error):
                        raise
                    waiting += reversed(self._halved(batch, error))
                    continue
                position = answered = 0
                for request in batch.requests:
                    for numbers in request.targets.values():
                        for number in numbers:
                            answers[number] = Answer(float(sums[position]), bool(greedy[position]))
                        position += 1
                        answered += len(numbers)
                if progress:
                    progress(answered)
        self._check(answers)
        sums, greedy = np.zeros(len(pairs)), np.ones(len(pairs), dtype=bool)
        for owner, answer in zip(owners, answers, strict=True):
            assert answer is not None
            sums[owner] += answer.log_probability
            greedy[owner] &= answer.is_greedy
        return [Answer(float(nats), bool(best)) for nats, best in zip(sums, greedy, strict=True)]

    def _pieces(self, pairs: Sequence[Pair]) -> tuple[list[Pair], list[int]]:
        """Pairs, and those whose continuation is longer than the window in pieces: half a window each, behind the half
        before it. Also the pair that each piece belongs to."""
        pieces: list[Pair] = []
        owners: list[int] = []
        for number, (context, continuation) in enumerate(pairs):
            if len(continuation) <= self.window:
                pieces.append((context, continuation))
                owners.append(number)
                continue
            self.tally.pieced_pairs += 1
            whole, size = [*context, *continuation], max(1, self.window // 2)
            for begin in range(len(context), len(whole), size):
                pieces.append((whole[max(0, begin - size) : begin], whole[begin : begin + size]))
                owners.append(number)
        return pieces, owners

    def _requests(self, pairs: Sequence[Pair]) -> list[Request]:
        """Pairs as inputs, those with the same input as one, cut to the window from the left."""
        found: dict[tuple[tuple[int, ...], tuple[int, ...]], Request] = {}
        for number, (context, continuation) in enumerate(pairs):
            if not context or not continuation:
                what = "context" if not context else "continuation"
                raise EvaluationError(f"pair {number} has an empty {what}; there is nothing to score.")
            room = self.window + 1 - len(continuation)
            kept, wanted = tuple(context[-room:]), tuple(continuation)
            self.tally.cut_pairs += len(kept) < len(context)
            self.tally.pairs_positions += len(kept) + len(wanted) - 1
            key = (kept, wanted[:-1])
            request = found.setdefault(key, Request(kept, wanted[:-1], {}))
            request.targets.setdefault(wanted, []).append(number)
        self.tally.pairs += len(pairs)
        return list(found.values())

    def _plan(self, requests: Sequence[Request]) -> list[Batch]:
        """Batches that share what this model can share."""
        tally = self.tally
        self._try_branches([row for row in rows_of(requests, together=True) if len(row) > 1])
        together = bool(tally.branches)
        batches = list(plan(requests, self.tokens_at_once, together=together, trunks=tally.trunks is not False))
        if tally.trunks is None and (behind := [batch for batch in batches if batch.trunk]):
            longest_trunk = max(behind, key=lambda batch: len(batch.trunk))
            rows = (longest_trunk.rows * 2)[:2]  # one would not tell a cache that is not repeated for each row
            tally.trunks = self._is_same([Batch(longest_trunk.trunk, rows)], [Batch((), (row,)) for row in rows])
            if not tally.trunks:
                return list(plan(requests, self.tokens_at_once, together=together, trunks=False))
        return batches

    def _try_branches(self, branched: Sequence[Row]) -> None:
        """Try branches on the longest row, which tells places in a row from places in a text, and on the row with the
        longest input, which tells a window that the mask takes away; again where longer ones come."""
        if not branched or self.tally.branches is False:
            return
        rows = [max(branched, key=lambda row: (size(row), row[0].context)) for size in (length_of, longest_input)]
        sizes = length_of(rows[0]), longest_input(rows[1])
        if self.tally.branches and sizes[0] <= self.branched[0] and sizes[1] <= self.branched[1]:
            return
        for row in dict.fromkeys(rows):
            alone = [Batch((), ((each,),)) for each in row]
            self.tally.branches = self._is_same([Batch((), (row,))], alone)
            if not self.tally.branches:
                return
        self.branched = sizes

    def _is_same(self, shared: Sequence[Batch], plain: Sequence[Batch]) -> bool | None:
        """Whether two ways to run the same requests give the same log-probabilities; None where memory does not say."""
        positions = self.tally.computed_positions
        try:
            a, b = (np.concatenate([self._run(batch)[0] for batch in way]) for way in (shared, plain))
        except (TypeError, AttributeError, ValueError, IndexError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and is_out_of_memory(error):
                self.tally.untried = True
                return None
            return False  # no cache, one that rows cannot be picked from, no such mask, or no positions of one's own
        finally:
            self.tally.computed_positions = positions
        return bool(np.allclose(a, b, rtol=SAME_SHARE, atol=SAME_NATS, equal_nan=True))

    def _run(self, batch: Batch) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        """Sum of log-probabilities and greediness of every continuation of a batch, rows in order."""
        begin = len(batch.trunk)
        trunk = self._fill(batch.trunk) if batch.trunk else None
        counts = [sum(len(request.targets) for request in row) for row in batch.rows]
        first_owner = list(accumulate(counts, initial=0))
        sums = torch.zeros(first_owner[-1], dtype=torch.float64, device=self.device)
        misses = torch.zeros_like(sums)
        waiting: list[tuple[Tensor, ...]] = []
        for alike in groups_alike(batch.rows, begin, self.least_positions):
            hidden = self._states([batch.rows[each] for each in alike], begin, trunk)
            where = [
                (place, *each)
                for place, number in enumerate(alike)
                for each in scored_positions(batch.rows[number], begin, first_owner[number])
            ]
            rows, columns, targets, owners = torch.tensor(where, device=self.device).T
            waiting.append((hidden[rows, columns], targets, owners))
            if self.head is None or sum(len(states) for states, *_ in waiting) >= self.logits_at_once:
                self._read_off(waiting, sums, misses)
        self._read_off(waiting, sums, misses)
        both = torch.stack([sums, misses]).cpu().numpy()  # the one copy to the host
        return both[0], both[1] == 0

    def _fill(self, trunk: Sequence[int]) -> Any:
        """The cache after some ids; where the head splits, no logits are made."""
        self.tally.computed_positions += len(trunk)
        ids_BT = torch.tensor([trunk], device=self.device)
        return self.body(input_ids=ids_BT, use_cache=True).past_key_values

    def _states(self, rows: Sequence[Row], begin: int, trunk: Any) -> Tensor:
        """Last hidden states (B, T, D) behind the trunk, or logits (B, T, V) where the head does not split."""
        ids_BT = _padded([ids_of(row)[begin:] for row in rows]).to(self.device)
        self.tally.computed_positions += ids_BT.numel()
        given: dict[str, Any] = {"input_ids": ids_BT, "use_cache": trunk is not None}
        if trunk is not None:
            given["past_key_values"] = _picked(trunk, len(rows))
        if any(len(row) > 1 for row in rows):
            branches_BT, positions_BT = (_padded(each).to(self.device) for each in places(rows, begin))
            dtype = next(self.model.parameters()).dtype
            given |= {"attention_mask": _mask(branches_BT, begin, dtype), "position_ids": positions_BT}
        out = self.body(**given)
        states: Tensor = out.logits if self.head is None else out.last_hidden_state
        return states

    def _read_off(self, waiting: list[tuple[Tensor, ...]], sums: Tensor, misses: Tensor) -> None:
        """Add log-probabilities and misses of scored positions to their continuations, the head on many at a time.

        Args:
            waiting: states (N, D) (or logits of a model whose head cannot be split), tokens and continuations (N,) of
                some passes; emptied.
            sums: float64, one for each continuation; changed.
            misses: likewise, tokens that are not the likeliest.
        """
        if not waiting:
            return
        together = [torch.cat(each) for each in zip(*waiting, strict=True)]
        waiting.clear()
        for states_ND, targets, owners in zip(*(each.split(self.logits_at_once) for each in together), strict=True):
            logits_NV = (self.head(states_ND[None])[0] if self.head else states_ND).float()
            wanted_N = logits_NV.gather(-1, targets[:, None])[:, 0]
            sums.index_add_(0, owners, (wanted_N - logits_NV.logsumexp(dim=-1)).double())
            misses.index_add_(0, owners, (logits_NV.argmax(dim=-1) != targets).double())

    def _halved(self, batch: Batch, error: RuntimeError) -> list[Batch]:
        """Two batches in place of one that memory does not hold; a later call plans smaller ones from the start."""
        rows = batch.rows if len(batch.rows) > 1 else tuple((request,) for request in batch.rows[0])
        if len(rows) < 2:
            raise EvaluationError(
                f"not enough memory to score one input of {length_of(rows[0])} tokens. Lower the window, or use a "
                "machine with more memory."
            ) from error
        self.tokens_at_once = max(1, batch.positions // 2)
        middle = len(rows) // 2
        return [Batch(batch.trunk, rows[:middle]), Batch(batch.trunk, rows[middle:])]

    def _check(self, answers: Sequence[Answer | None]) -> None:
        """Every pair has an answer that is a number."""
        for number, answer in enumerate(answers):
            assert answer is not None, f"pair {number} was left out"
            if not np.isfinite(answer.log_probability):
                raise EvaluationError(
                    f"the log-probability of pair {number} is {answer.log_probability}. {said_of_damage(self.model)}"
                )


def _mask(branches_BT: Tensor, trunk: int, dtype: torch.dtype) -> Tensor:
    """What is added to attention scores, (B, 1, T, S + T): a position sees trunk, context, and its branch so far."""
    length = branches_BT.shape[1]
    same_BTT = (branches_BT[:, None, :] == 0) | (branches_BT[:, None, :] == branches_BT[:, :, None])
    seen_BTT = same_BTT & torch.ones(length, length, dtype=torch.bool, device=branches_BT.device).tril()
    mask_BTT = torch.zeros(seen_BTT.shape, dtype=dtype, device=branches_BT.device)
    mask_BTT.masked_fill_(~seen_BTT, torch.finfo(dtype).min)
    return nn.functional.pad(mask_BTT, (trunk, 0))[:, None]


def _picked(trunk: Any, rows: int) -> Any:
    """A cache of its own for so many rows that all go on from one trunk."""
    picked = copy.deepcopy(trunk)
    picked.batch_repeat_interleave(rows)
    return picked


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Ids (B, T), padded on the right with zeros, where a causal model does not look from a scored position."""
    ids_BT = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for number, row in enumerate(rows):
        ids_BT[number, : len(row)] = torch.tensor(row)
    return ids_BT
