"""Log-probabilities of continuations, fast: the forward pass of downstream tasks, and nothing else of them.

Four savings over a forward pass for every request with logits at every position: a prefix that many requests share (the
examples of a few-shot prompt, the question before its answers) is computed once; requests with the same input are one;
the head runs on scored positions alone; what a batch has found goes to the host in one copy. Where a model's cache does
not give back its own log-probabilities, prefixes are not shared, and that is recorded.
"""

# B requests of one batch, T positions, D hidden size, V vocabulary, N scored positions.

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby, pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from inheritune.errors import EvaluationError
from inheritune.evaluation.damage import said_of_damage
from inheritune.machine.head import Head, split_head
from inheritune.machine.memory import is_out_of_memory

TOKENS_AT_ONCE = 8192
"""Positions of one batch, those in the cache included."""

PREFIX_STEP = 8
"""Shared prefixes are cut to a multiple of this, so that requests of like length share a batch."""

LOGITS_AT_ONCE = 2**25
"""Elements of the largest logits tensor: 128 MiB in float32; a large vocabulary leaves the product some rows."""

PADDING = 0.05
"""Share of padding in a forward pass that is worth another one."""

LEAST_POSITIONS = {"cpu": 256, "cuda": 4096}
"""Positions of a forward pass that are not split further for the sake of padding."""

TRUNK_LEAST = 32
"""Tokens that the contexts of a whole batch must share for them to be computed once for all."""

LENGTHS_OF_TRUNKS = 128
"""So many lengths are told apart; it bounds how deep the search for trunks goes."""

SAME_LOG_PROBABILITY = 1e-4
"""How far, in nats, a shared prefix may move a log-probability."""

Pair = tuple[Sequence[int], Sequence[int]]
"""Token ids of a context and of its continuation; neither is empty."""


class Answer(NamedTuple):
    """What a model says of one continuation."""

    log_probability: float
    """Nats, summed over its tokens."""
    is_greedy: bool
    """Each of its tokens is the likeliest one."""


@dataclass(frozen=True)
class _Request:
    """One input, and the continuations that are read off it."""

    context: tuple[int, ...]
    tail: tuple[int, ...]
    """The continuation without its last token: input, like the context."""
    targets: dict[tuple[int, ...], list[int]] = field(compare=False, hash=False)
    """Continuation -> the numbers of the pairs that ask for it."""

    @property
    def ids(self) -> tuple[int, ...]:
        """The whole input."""
        return self.context + self.tail


@dataclass(frozen=True)
class _Batch:
    """Requests that are run together: behind one trunk, each fork a context, each tail a request."""

    trunk: tuple[int, ...]
    """Ids that every context of the batch begins with; computed once."""
    fork: int
    """Positions of a context, behind the trunk, that are computed once for all its requests."""
    contexts: tuple[tuple[_Request, ...], ...]

    @property
    def requests(self) -> list[_Request]:
        """In the order of the rows."""
        return [request for context in self.contexts for request in context]

    @property
    def positions(self) -> int:
        """Of all rows, with what the cache holds of each."""
        requests = self.requests
        return len(requests) * max(len(request.ids) for request in requests)


@dataclass
class Tally:
    """What the scoring of some pairs has needed."""

    pairs: int = 0
    pairs_positions: int = 0
    """Positions that one forward pass a pair would have taken."""
    computed_positions: int = 0
    cut_pairs: int = 0
    """Pairs whose context was longer than the window and lost its beginning."""
    shares_prefixes: bool = True


class Scorer:
    """A model that says how likely continuations are."""

    def __init__(self, model: nn.Module, *, window: int, tokens_at_once: int = TOKENS_AT_ONCE) -> None:
        """Look at a model: can its head be split, does its cache give its own log-probabilities back?

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
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            split = split_head(self.model)
            self.head: Head | None = split.head if split else None
            self.tally.shares_prefixes = self._cache_is_exact()

    def score(self, pairs: Sequence[Pair], *, progress: Callable[[int], None] | None = None) -> list[Answer]:
        """Log-probability of each continuation after its context, float32 logits and log-sum-exp.

        Args:
            pairs: token ids of context and continuation.
            progress: called with the number of pairs that were answered.

        Raises:
            EvaluationError: an empty context or continuation, a continuation longer than the window, no memory for
                a single request, or a log-probability that is not a number.
        """
        requests = self._requests(pairs)
        answers: list[Answer | None] = [None] * len(pairs)
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            waiting = list(plan(requests, self.tokens_at_once, share=self.tally.shares_prefixes))[::-1]
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
        return [answer for answer in answers if answer is not None]

    def _requests(self, pairs: Sequence[Pair]) -> list[_Request]:
        """Pairs as inputs, those with the same input as one, cut to the window from the left."""
        found: dict[tuple[tuple[int, ...], tuple[int, ...]], _Request] = {}
        for number, (context, continuation) in enumerate(pairs):
            if not context or not continuation:
                what = "context" if not context else "continuation"
                raise EvaluationError(f"pair {number} has an empty {what}; there is nothing to score.")
            if len(continuation) > self.window:
                raise EvaluationError(
                    f"a continuation of {len(continuation)} tokens does not fit a window of {self.window}. "
                    "Raise the window, or leave that item out."
                )
            room = self.window + 1 - len(continuation)
            kept, wanted = tuple(context[-room:]), tuple(continuation)
            self.tally.cut_pairs += len(kept) < len(context)
            self.tally.pairs_positions += len(kept) + len(wanted) - 1
            key = (kept, wanted[:-1])
            request = found.setdefault(key, _Request(kept, wanted[:-1], {}))
            request.targets.setdefault(wanted, []).append(number)
        self.tally.pairs += len(pairs)
        return list(found.values())

    def _run(self, batch: _Batch) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        """Sum of log-probabilities and greediness of every continuation of a batch, rows in order."""
        requests = batch.requests
        begin = len(batch.trunk) + batch.fork
        cache, cache_rows = self._prefix(batch)
        first_owner = list(accumulate((len(request.targets) for request in requests), initial=0))
        sums = torch.zeros(first_owner[-1], dtype=torch.float64, device=self.device)
        misses = torch.zeros_like(sums)
        waiting: list[tuple[Tensor, ...]] = []
        for alike in _alike([len(request.ids) - begin for request in requests], self.least_positions):
            ids_BT = _padded([requests[row].ids[begin:] for row in alike]).to(self.device)
            hidden = self._states(ids_BT, _picked(cache, [cache_rows[row] for row in alike]))
            where: list[tuple[int, int, int, int]] = []
            for place, row in enumerate(alike):
                scored = len(requests[row].context) - 1 - begin
                for owner, continuation in enumerate(requests[row].targets, start=first_owner[row]):
                    where += [(place, scored + at, token, owner) for at, token in enumerate(continuation)]
            rows, columns, targets, owners = torch.tensor(where, device=self.device).T
            waiting.append((hidden[rows, columns], targets, owners))
            if self.head is None or sum(len(states) for states, *_ in waiting) >= self.logits_at_once:
                self._read_off(waiting, sums, misses)
        self._read_off(waiting, sums, misses)
        both = torch.stack([sums, misses]).cpu().numpy()  # the one copy to the host
        return both[0], both[1] == 0

    def _prefix(self, batch: _Batch) -> tuple[Any, list[int]]:
        """The cache of trunk and forks (None where there is none), and the row of it that each request goes on from."""
        cache = None
        if batch.trunk:
            cache = self._fill(torch.tensor([batch.trunk], device=self.device), None)
        if not batch.fork:
            return cache, [0] * len(batch.requests)
        begin = len(batch.trunk)
        forks = [context[0].ids[begin : begin + batch.fork] for context in batch.contexts]
        cache = self._fill(torch.tensor(forks, device=self.device), _picked(cache, [0] * len(forks)))
        return cache, [row for row, context in enumerate(batch.contexts) for _ in context]

    def _fill(self, ids_BT: Tensor, cache: Any) -> Any:
        """The cache after some ids; no logits are made."""
        self.tally.computed_positions += ids_BT.numel()
        body = getattr(self.model, self.model.base_model_prefix)
        return body(input_ids=ids_BT, past_key_values=cache, use_cache=True).past_key_values

    def _states(self, ids_BT: Tensor, cache: Any) -> Tensor:
        """Last hidden states (B, T, D), or logits (B, T, V) of a model whose head cannot be split."""
        self.tally.computed_positions += ids_BT.numel()
        given = {} if cache is None else {"past_key_values": cache}
        if self.head is None:
            logits: Tensor = self.model(input_ids=ids_BT, use_cache=cache is not None, **given).logits
            return logits
        body = getattr(self.model, self.model.base_model_prefix)
        states: Tensor = body(input_ids=ids_BT, use_cache=cache is not None, **given).last_hidden_state
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

    def _halved(self, batch: _Batch, error: RuntimeError) -> list[_Batch]:
        """Two batches in place of one that memory does not hold; a later call plans smaller ones from the start."""
        if len(batch.contexts) > 1:
            middle = len(batch.contexts) // 2
            parts = [batch.contexts[:middle], batch.contexts[middle:]]
        elif len(requests := batch.contexts[0]) > 1:
            middle = len(requests) // 2
            parts = [(requests[:middle],), (requests[middle:],)]
        else:
            raise EvaluationError(
                f"not enough memory to score one input of {len(batch.requests[0].ids)} tokens. Lower the window, or "
                "use a machine with more memory."
            ) from error
        self.tokens_at_once = max(1, batch.positions // 2)
        return [_Batch(batch.trunk, batch.fork, part) for part in parts]

    def _cache_is_exact(self) -> bool:
        """Whether trunk, fork and tails give the log-probabilities of plain forward passes, on ids made up."""
        generator = torch.Generator().manual_seed(0)
        trunk, *contexts = torch.randint(self.vocabulary, (4, 2 * PREFIX_STEP), generator=generator).tolist()
        made = [
            (trunk + context, continuation)
            for context in contexts
            for continuation in torch.randint(self.vocabulary, (2, 5), generator=generator).tolist()
        ]
        longest = max(len(context) + len(continuation) for context, continuation in made)
        if longest > self.window + 1 or not hasattr(self.model, self.model.base_model_prefix):
            return False
        counted, self.tally = self.tally, Tally()
        requests = self._requests(made)
        try:
            plain = [self._run(batch) for batch in plan(requests, TOKENS_AT_ONCE, share=False)]
            shared = [self._run(batch) for batch in plan(requests, TOKENS_AT_ONCE, share=True, trunk_least=PREFIX_STEP)]
        except (TypeError, AttributeError, ValueError, IndexError, NotImplementedError):
            return False  # no cache, or one that rows cannot be picked from
        finally:
            self.tally = counted
        sums = [np.sort(np.concatenate([each for each, _ in way])) for way in (plain, shared)]
        return bool(np.abs(sums[0] - sums[1]).max() <= SAME_LOG_PROBABILITY)

    def _check(self, answers: Sequence[Answer | None]) -> None:
        """Every pair has an answer that is a number."""
        for number, answer in enumerate(answers):
            assert answer is not None, f"pair {number} was left out"
            if not np.isfinite(answer.log_probability):
                raise EvaluationError(
                    f"the log-probability of pair {number} is {answer.log_probability}. {said_of_damage(self.model)}"
                )


def _picked(cache: Any, rows: Sequence[int]) -> Any:
    """A cache of its own with some rows of another, as often as they are named; None of None."""
    if cache is None:
        return None
    picked = copy.deepcopy(cache)
    picked.batch_select_indices(torch.tensor(rows, device=picked.layers[0].keys.device))
    return picked


def _alike(lengths: Sequence[int], least_positions: int) -> Iterator[list[int]]:
    """Indices of rows in groups of like length, the longest first: little padding, yet enough for a matrix product."""
    group: list[int] = []
    wanted = 0
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        padded = lengths[group[0]] * (len(group) + 1) if group else 0
        if padded > least_positions and wanted + lengths[row] < (1 - PADDING) * padded:
            yield group
            group, wanted = [], 0
        group.append(row)
        wanted += lengths[row]
    yield group


def plan(
    requests: Sequence[_Request], tokens_at_once: int, *, share: bool = True, trunk_least: int = TRUNK_LEAST
) -> Iterator[_Batch]:
    """Requests as batches, the longest first within a trunk.

    Requests with one context share its beginning (a fork); contexts with a long common beginning share that (a trunk).

    Args:
        requests: with different inputs.
        tokens_at_once: positions of one batch, rows times the longest input.
        share: compute shared prefixes once; else every input is run whole.
        trunk_least: fewest tokens of a trunk.
    """
    ordered = sorted(requests, key=lambda request: request.context)
    contexts = [tuple(each) for _, each in groupby(ordered, key=lambda request: request.context)]
    trunks = _trunks([each[0].context for each in contexts], trunk_least) if share else [(0, len(contexts), 0)]
    for begin, end, length in trunks:
        trunk = contexts[begin][0].context[:length]
        sized = sorted(((_fork(each, length) if share else 0, each) for each in contexts[begin:end]), key=_size)
        for fork, alike in groupby(sized, key=lambda pair: pair[0]):
            batch: list[tuple[_Request, ...]] = []
            rows = longest = 0
            for _, context in alike:
                width = max(longest, max(len(request.ids) for request in context))
                if batch and (rows + len(context)) * width > tokens_at_once:
                    yield _Batch(trunk, fork, tuple(batch))
                    batch, rows, width = [], 0, max(len(request.ids) for request in context)
                batch.append(context)
                rows, longest = rows + len(context), width
            yield _Batch(trunk, fork, tuple(batch))


def _size(pair: tuple[int, tuple[_Request, ...]]) -> tuple[int, int]:
    """Longest first, by what is shared and then by what is not."""
    fork, context = pair
    return -fork, -max(len(request.ids) for request in context)


def _fork(context: tuple[_Request, ...], trunk: int) -> int:
    """Positions behind the trunk that the requests of one context share; the last of a context is scored, so not it."""
    if len(context) == 1:
        return 0
    return max(0, (len(context[0].context) - 1 - trunk) // PREFIX_STEP * PREFIX_STEP)


def _trunks(contexts: Sequence[tuple[int, ...]], least: int) -> list[tuple[int, int, int]]:
    """Ranges [begin, end) of sorted contexts and the length of the trunk that pays most for each; 0 is none.

    A range is either one trunk (its common beginning, once instead of for each context) or falls apart where that is
    shortest, whichever saves more.
    """
    longest = max(map(len, contexts), default=0)
    step = PREFIX_STEP * -(-longest // (PREFIX_STEP * LENGTHS_OF_TRUNKS))
    common = [_common(a, b) // step * step for a, b in pairwise(contexts)]

    def best(begin: int, end: int) -> tuple[int, list[tuple[int, int, int]]]:
        """Tokens saved, and the ranges that save them."""
        alone = [(begin, end, 0)]
        if end - begin < 2:
            return 0, alone
        lowest = min(common[begin : end - 1])
        cuts = [begin, *(at + 1 for at in range(begin, end - 1) if common[at] == lowest), end]
        parts = [best(a, b) for a, b in pairwise(cuts)]
        apart = sum(saved for saved, _ in parts)
        # the last token of the shortest context is scored, and a trunk holds none that is
        room = (min(len(each) for each in contexts[begin:end]) - 1) // step * step
        length = min(lowest, room)
        together = (end - begin - 1) * length if length >= least else 0
        if together and together >= apart:
            return together, [(begin, end, length)]
        if not apart:
            return 0, alone
        ranges = [each for _, part in parts for each in part]
        merged: list[tuple[int, int, int]] = []
        for each in ranges:  # neighbours without a trunk are one range
            if merged and not each[2] and not merged[-1][2]:
                merged[-1] = (merged[-1][0], each[1], 0)
            else:
                merged.append(each)
        return apart, merged

    return best(0, len(contexts))[1]


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning."""
    for position, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return position
    return min(len(a), len(b))


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Ids (B, T), padded on the right with zeros, where a causal model does not look from a scored position."""
    ids_BT = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for number, row in enumerate(rows):
        ids_BT[number, : len(row)] = torch.tensor(row)
    return ids_BT
