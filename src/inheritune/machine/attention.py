"""Causal attention by blocks of queries, for compiled training.

On a processor the backward of torch's fused attention takes several times as long as the products it is made of
(docs/performance.md). Here a block of queries meets only the keys up to its own last one, so almost half of the square
is never computed, and the compiler joins scaling, mask, softmax and casts.

On a GPU the blocks are those of torch's FlexAttention, which repeats bit for bit and is faster there than the fused
attention that does. Where nothing has to repeat, cuDNN's is faster still; it takes heads of a multiple of 8 alone, so
others (OpenLLaMA-3B's have 100) are filled up with zeros.
"""

# B batch, H query heads, K key and value heads, G query heads per key head, T positions, Q queries of one block, E keys
# up to the end of that block, D size of a head, W size of a value head.

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "inheritune_causal_blocks"
"""Under which Hugging Face models find it."""

SMALLEST_BLOCK, MOST_BLOCKS = 64, 4
"""Queries of a block at least, and blocks at most: more blocks save less and compile longer."""

SMALLEST_FLEX, LARGEST_FLEX = 16, 256
"""Sizes of a head that FlexAttention takes, and has settings for."""

CUDNN_MULTIPLE = 8
"""Sizes of a head that cuDNN takes are multiples of it."""

TRIAL_LENGTH = 8
"""Tokens of a row by which a switched model is compared with what it was."""

_block_masks: dict[int, BlockMask] = {}
"""Row length to which blocks of the causal square are computed, on the GPU; made before anything is compiled."""

CLOSE = 1e-4
"""Logits differ by at most this share of the largest one: rounding in float32, and nothing else."""


def block_size(length: int) -> int:
    """Queries of one block: a power of two from 64 on, so that at most four blocks make a row.

    >>> [block_size(length) for length in (17, 256, 512, 1024, 2048)]
    [64, 64, 128, 256, 512]
    """
    size = SMALLEST_BLOCK
    while size * MOST_BLOCKS < length:
        size *= 2
    return size


def causal_attention(query_BHTD: Tensor, key_BKTD: Tensor, value_BKTW: Tensor, scale: float) -> Tensor:
    """softmax(scale x query key^T) value, over the keys up to each query.

    Products are in the dtype of the values, the softmax in float32. H is a multiple of K; query head h reads key
    head h // (H / K).

    Returns:
        (B, H, T, W) in the dtype of the values.
    """
    heads, length = query_BHTD.shape[1:3]
    key_heads = key_BKTD.shape[1]
    query_BHTD, key_BKTD, value_BKTW = (
        each.to(value_BKTW.dtype).contiguous() for each in (query_BHTD, key_BKTD, value_BKTW)
    )  # once, not block by block: what autocast would do, and the backward pass keeps one copy, not one of each block
    grouped_BKGTD = query_BHTD.unflatten(1, (key_heads, heads // key_heads))
    position_T = torch.arange(length, dtype=torch.int32, device=query_BHTD.device)
    size = block_size(length)
    blocks = []
    for start in range(0, length, size):
        end = min(start + size, length)
        query_BKMD = grouped_BKGTD[..., start:end, :].flatten(2, 3)  # M = G x Q: the keys are not repeated
        scores_BKME = (query_BKMD @ key_BKTD[..., :end, :].transpose(-1, -2)) * scale
        scores_BKGQE = scores_BKME.unflatten(2, (-1, end - start)).float()
        is_past_QE = position_T[start:end, None] >= position_T[:end]
        weights_BKGQE = torch.where(is_past_QE, scores_BKGQE, float("-inf")).softmax(-1).to(value_BKTW.dtype)
        mixed_BKMW = weights_BKGQE.flatten(2, 3) @ value_BKTW[..., :end, :]
        blocks.append(mixed_BKMW.unflatten(2, (-1, end - start)).flatten(1, 2))
    return torch.cat(blocks, dim=2)


def _is_past(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Whether a query may see a key, by their positions."""
    return query >= key


def causal_attention_on_gpu(query_BHTD: Tensor, key_BKTD: Tensor, value_BKTW: Tensor, scale: float) -> Tensor:
    """As ``causal_attention``, by FlexAttention where torch is held to deterministic algorithms, else by torch's choice
    of fused attention for heads filled up to what all of them take.

    The row's length is one that ``attend_by_blocks`` was given.
    """
    is_grouped = query_BHTD.shape[1] != key_BKTD.shape[1]
    if torch.are_deterministic_algorithms_enabled():
        mask = _block_masks[query_BHTD.shape[2]]
        mixed_BHTW: Tensor = flex_attention(
            query_BHTD, key_BKTD, value_BKTW, block_mask=mask, scale=scale, enable_gqa=is_grouped
        )
        return mixed_BHTW
    query, key, value = map(_fill_up, (query_BHTD, key_BKTD, value_BKTW))
    mixed_BHTW = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=is_grouped)
    return mixed_BHTW[..., : value_BKTW.shape[-1]]


def _fill_up(heads_BHTD: Tensor) -> Tensor:
    """Zeros to the next multiple that cuDNN takes; they change no product."""
    missing = -heads_BHTD.shape[-1] % CUDNN_MULTIPLE
    return F.pad(heads_BHTD, (0, missing)) if missing else heads_BHTD


def _serves(query: Tensor, value: Tensor) -> bool:
    """Whether attention by blocks takes these; always on a processor."""
    smallest, largest = sorted((query.shape[-1], value.shape[-1]))
    fits = smallest >= SMALLEST_FLEX and largest <= LARGEST_FLEX
    return not query.is_cuda or (fits and query.shape[2] in _block_masks)


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """What an attention layer of transformers calls; all but plain causal attention with gradients is left to
    transformers' own, so that scores are computed as ever.

    Args and returns: as ``transformers.integrations.sdpa_attention.sdpa_attention_forward``.
    """
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    is_plain = attention_mask is None and causal and not dropout and query.shape[2] == key.shape[2]
    if (
        not torch.is_grad_enabled()
        or not is_plain
        or not _serves(query, value)
        or any(others.get(name) is not None for name in ("position_bias", "cache", "softcap", "s_aux"))
    ):
        mixed: Tensor = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal=is_causal, **others
        )[0]
        return mixed, None
    attend = causal_attention_on_gpu if query.is_cuda else causal_attention
    mixed_BHTW = attend(query, key, value, query.shape[-1] ** -0.5 if scaling is None else scaling)
    return mixed_BHTW.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attention_forward)
AttentionMaskInterface.register(NAME, sdpa_mask)


def attend_by_blocks(model: Any, sequence_length: int) -> bool:
    """Switch a model from transformers' fused attention to attention by blocks, if it then computes what it did.

    Args:
        model: a Hugging Face causal language model in float32, on any device.
        sequence_length: tokens of the rows it will be trained on; a GPU attends by blocks at that length alone.

    Returns:
        Whether it was switched; a model whose attention is not chosen by name, or whose logits would change by
        more than rounding, is left as it was.
    """
    if model.config._attn_implementation != "sdpa" or not model._can_set_attn_implementation():
        return False
    rows = model.get_input_embeddings().weight.shape[0]
    ids_BT = torch.arange(2 * TRIAL_LENGTH, device=model.device).reshape(2, TRIAL_LENGTH) % rows
    if model.device.type == "cuda":
        for length in {TRIAL_LENGTH, sequence_length} - _block_masks.keys():
            _block_masks[length] = create_block_mask(_is_past, None, None, length, length, device=model.device)
    was_training = model.training
    model.eval()
    try:
        with warnings.catch_warnings(), torch.enable_grad():  # with gradients, as in training
            warnings.filterwarnings("ignore", "flex_attention called without torch.compile")
            before_BTV = model(input_ids=ids_BT, use_cache=False).logits.detach()
            model.set_attn_implementation(NAME)
            after_BTV = model(input_ids=ids_BT, use_cache=False).logits.detach()
    finally:
        model.train(was_training)
    is_same = bool((after_BTV - before_BTV).abs().max() <= CLOSE * before_BTV.abs().max())
    if not is_same:
        model.set_attn_implementation("sdpa")
    return is_same
