"""What a model writes, and how varied it is."""

from collections.abc import Sequence
from pathlib import Path

import torch

from inheritune.data.tokenizer import open_tokenizer
from inheritune.errors import EvaluationError
from inheritune.evaluation.token_loss import check_ids
from inheritune.machine.probe import best_device
from inheritune.surgery.folder import load_model, resolve


def write(
    model: str | Path,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 64,
    seed: int = 0,
    temperature: float = 0.0,
) -> list[str]:
    """Continue each prompt.

    Args:
        model: folder or hub id.
        prompts: texts; the model's opening token is put in front of each.
        max_new_tokens: length of a continuation; it ends earlier at end-of-text or at the model's last position.
        seed: of the sampling.
        temperature: 0 takes the likeliest token each time; above 0 samples.

    Returns:
        The continuations, without their prompts.

    Raises:
        EvaluationError: a prompt that fills the model's positions, or has a token id beyond its embedding.
    """
    folder = resolve(model)
    network, tokenizer = load_model(folder).to(best_device()), open_tokenizer(folder)
    network.generation_config.pad_token_id = tokenizer.end_of_text_id  # one prompt at a time: nothing is padded
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    torch.manual_seed(seed)
    written = []
    positions = getattr(network.config.get_text_config(decoder=True), "max_position_embeddings", None)
    for prompt, ids in zip(prompts, tokenizer.encode_batch(list(prompts)), strict=True):
        start = [tokenizer.end_of_text_id, *ids.tolist()]
        check_ids(str(model), network, max(start))
        start_1T = torch.tensor([start], device=network.device)
        room = max_new_tokens if positions is None else min(max_new_tokens, positions - start_1T.shape[1])
        if room < 1:
            raise EvaluationError(
                f"the prompt {prompt[:40]!r}... has {start_1T.shape[1]} tokens, and the model {positions} positions. "
                "Give a shorter prompt."
            )
        with torch.no_grad():
            out_1T = network.generate(
                start_1T, attention_mask=torch.ones_like(start_1T), max_new_tokens=room, **sampling
            )
        new = out_1T[0, start_1T.shape[1] :].tolist()
        written.append(tokenizer.decode([token for token in new if token != tokenizer.end_of_text_id]))
    return written


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Share of different n-grams of white-space separated words among all of them, from 0 to 1.

    A model that repeats itself falls towards 0. Texts shorter than n words have no n-gram; none at all gives 0.

    Source: arXiv:1510.03055, distinct-1 and distinct-2.
    """
    grams = [
        tuple(words[begin : begin + n])
        for words in (text.split() for text in texts)
        for begin in range(len(words) - n + 1)
    ]
    return len(set(grams)) / len(grams) if grams else 0.0
