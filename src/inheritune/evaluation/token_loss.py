"""The loss of a model on documents, one rule for reference, child and baselines (law 4).

Each document alone, end-of-text in front, disjoint windows of the sequence length, float32 forward pass and float32
log-sum-exp, whatever precision a model was trained in.
"""

# B windows of one batch, T positions, D hidden size, V vocabulary, N scored positions.

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from inheritune.errors import EvaluationError
from inheritune.evaluation.damage import said_of_damage
from inheritune.machine.allocator import freed_memory_given_back
from inheritune.machine.head import SplitModel, split_head
from inheritune.machine.memory import is_out_of_memory

LOGITS_AT_ONCE = 2**24
"""Elements of the largest logits tensor: 64 MiB in float32."""

TOKENS_AT_ONCE = 8192
"""Positions of one forward pass."""


def summed_nats(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Negative log-probability of each target, float32 (N,), by a float32 log-sum-exp."""
    logits_NV = logits_NV.float()
    return logits_NV.logsumexp(dim=-1) - logits_NV.gather(-1, targets_N[:, None])[:, 0]


def check_ids(name: str, model: nn.Module, largest: int) -> None:
    """Refuse a token id that the model's embedding does not have.

    Raises:
        EvaluationError: ``largest`` is beyond it.
    """
    rows = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    if largest >= rows:
        raise EvaluationError(
            f"the tokenizer of {name} gives token id {largest}, and its embedding has {rows} rows (ids 0 to "
            f"{rows - 1}). Put the model's own tokenizer into its folder."
        )


Window = tuple[int, int, int]
"""Scored tokens, document, and where in it the window begins."""


def cut_windows(documents: Sequence[npt.NDArray[np.integer]], sequence_length: int) -> list[Window]:
    """Disjoint windows that predict every token after each document's first one once, the longest first.

    Raises:
        EvaluationError: a document without a token to predict.
    """
    windows = []
    for index, document in enumerate(documents):
        if len(document) < 2:
            raise EvaluationError(f"document {index} has no token to predict. Leave empty documents out.")
        for begin in range(0, len(document) - 1, sequence_length):
            windows.append((min(sequence_length, len(document) - 1 - begin), index, begin))
    return sorted(windows, key=lambda window: (-window[0], window[1], window[2]))


def fill_batch(documents: Sequence[npt.NDArray[np.integer]], batch: Sequence[Window]) -> tuple[Tensor, Tensor]:
    """Token ids and targets of some windows, int64 (B, T) on the CPU, padded on the right; a target of -1 is none."""
    length = batch[0][0]
    ids_BT = torch.zeros(len(batch), length, dtype=torch.long)
    targets_BT = torch.full((len(batch), length), -1)
    for row, (size, index, begin) in enumerate(batch):
        tokens = torch.from_numpy(documents[index][begin : begin + size + 1].astype(np.int64))
        ids_BT[row, :size], targets_BT[row, :size] = tokens[:-1], tokens[1:]
    return ids_BT, targets_BT


def score_documents(
    model: nn.Module,
    documents: Sequence[npt.NDArray[np.integer]],
    *,
    sequence_length: int,
    tokens_at_once: int = TOKENS_AT_ONCE,
    check_stop: Callable[[], None] | None = None,
) -> npt.NDArray[np.float64]:
    """Summed loss and number of scored tokens of each document.

    Every token after the first (end-of-text) is predicted exactly once; what it sees reaches back to the start of
    its window. Windows of like length share a batch and are padded on the right, where a causal model does not look.
    Where memory runs out, the batch is halved.

    Args:
        model: a Hugging Face causal language model; it is left in the mode it came in.
        documents: token ids, end-of-text first.
        sequence_length: positions of one window.
        tokens_at_once: positions of one forward pass; the result does not depend on it.
        check_stop: called between batches; may raise.

    Returns:
        float64 (documents, 2): nats and tokens.

    Raises:
        EvaluationError: a document without a token to predict, no memory for a single window, or a loss that is not
            finite.
    """
    windows = cut_windows(documents, sequence_length)
    device = next(model.parameters()).device
    sums = np.zeros((len(documents), 2))
    was_training = model.training
    model.eval()
    try:
        with freed_memory_given_back(), torch.no_grad(), torch.compiler.set_stance("force_eager"):
            split = split_head(model)
            if split is None:  # all logits of a batch are made at once
                rows = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
                tokens_at_once = min(tokens_at_once, max(1, LOGITS_AT_ONCE // rows))
            position = 0
            while position < len(windows):
                if check_stop:
                    check_stop()
                length = windows[position][0]
                batch = windows[position : position + max(1, tokens_at_once // length)]
                ids_BT, targets_BT = fill_batch(documents, batch)
                try:
                    nats, owner = _score_batch(model, split, ids_BT.to(device), targets_BT.to(device), batch)
                except RuntimeError as error:
                    if not is_out_of_memory(error):
                        raise
                    if len(batch) == 1:
                        raise EvaluationError(
                            f"not enough memory to score one window of {length} tokens. Lower the sequence length, "
                            "or use a machine with more memory."
                        ) from error
                    tokens_at_once = length * (len(batch) // 2)
                    continue
                position += len(batch)
                sums[:, 0] += np.bincount(owner, weights=nats, minlength=len(documents))
                sums[:, 1] += np.bincount(owner, minlength=len(documents))
    finally:
        model.train(was_training)
    if not np.isfinite(sums).all():
        bad = int(np.flatnonzero(~np.isfinite(sums[:, 0]))[0])
        raise EvaluationError(f"the loss on document {bad} is not finite. {said_of_damage(model)}")
    return sums


def _score_batch(
    model: nn.Module,
    split: SplitModel | None,
    ids_BT: Tensor,
    targets_BT: Tensor,
    batch: Sequence[Window],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Loss of each scored position of a batch of windows, and the document it belongs to; both (N,)."""
    scored_BT = targets_BT >= 0
    if split:
        nats = nats_by_chunks(split.head, split.body(ids_BT)[scored_BT], targets_BT[scored_BT])
    else:
        logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
        nats = summed_nats(logits_BTV[scored_BT], targets_BT[scored_BT])
    owners_BT = torch.tensor([index for _, index, _ in batch], device=ids_BT.device)[:, None].expand_as(ids_BT)
    return nats.double().cpu().numpy(), owners_BT[scored_BT].cpu().numpy()


def nats_by_chunks(head: nn.Module, states_ND: Tensor, targets_N: Tensor) -> Tensor:
    """Losses of N positions, the head on a few of them at a time; float32 (N,)."""
    first_NV = head(states_ND[None, :1])[0]
    positions = max(1, LOGITS_AT_ONCE // first_NV.shape[-1])
    return torch.cat(
        [
            summed_nats(head(states_CD[None])[0], targets_C)
            for states_CD, targets_C in zip(states_ND.split(positions), targets_N.split(positions), strict=True)
        ]
    )
