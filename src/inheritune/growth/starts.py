"""Models that start at random, by their own initialiser: a reference made here, and the scratch baseline."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from inheritune import runs
from inheritune.data.tokenizer import open_tokenizer
from inheritune.errors import RecipeError
from inheritune.surgery.anatomy import find_layers
from inheritune.surgery.folder import build_on_meta, quiet


def start_from_config(config: dict[str, Any], tokenizer: Path, out: Path, *, seed: int) -> None:
    """A fresh model of a config, with the tokenizer's files beside it.

    Args:
        config: ``model_type`` and fields of its Hugging Face config; the vocabulary size and the end-of-text id are
            the tokenizer's where they are not given.
        tokenizer: folder of the tokenizer.
        out: folder to make.
        seed: of the initialiser.

    Raises:
        RecipeError: an unknown ``model_type``, or fields that its config refuses.
    """
    fields = dict(config)
    model_type = fields.pop("model_type", None)
    text = open_tokenizer(tokenizer)
    if fields.setdefault("vocab_size", text.vocab_size) < text.vocab_size:
        raise RecipeError(
            f"reference.train.config.vocab_size is {fields['vocab_size']}, and the tokenizer has {text.vocab_size} "
            "entries. Raise it, or leave it out."
        )
    for name in ("bos_token_id", "eos_token_id"):
        fields.setdefault(name, text.end_of_text_id)
    with _refusing(model_type):
        built = AutoConfig.for_model(model_type, **fields)
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(built)
    _save(model, tokenizer, out)


def depth_of_config(config: dict[str, Any]) -> int:
    """Decoder layers of the model that a config describes; it is built without memory (device meta).

    Raises:
        RecipeError: an unknown ``model_type``, or fields that its config refuses.
        SurgeryError: a model whose layers cannot be told apart.
    """
    fields = dict(config)
    model_type = fields.pop("model_type", None)
    with _refusing(model_type):
        model = build_on_meta(AutoConfig.for_model(model_type, **fields))
    return find_layers(model).depth


@contextmanager
def _refusing(model_type: Any) -> Iterator[None]:
    """Turn what transformers says of a config into our own error."""
    try:
        yield
    except Exception as error:  # transformers raises what its config and model classes like; the cause is kept
        raise RecipeError(
            f"reference.train.config cannot be built as {model_type!r}: {error}. "
            "Name a model_type of transformers and fields of its config."
        ) from error


def start_like(model_folder: Path, out: Path, *, seed: int) -> None:
    """A fresh model of the same config as ``model_folder``, with its tokenizer: the baseline from scratch."""
    config = AutoConfig.from_pretrained(model_folder, local_files_only=True)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    _save(model, model_folder, out)


def _save(model: Any, tokenizer: Path, out: Path) -> None:
    """Write the model, with the tokenizer's files byte for byte."""
    not_tokenizer = {"config.json", "generation_config.json", "certificate.json", "README.md"}
    with runs.new_folder(out) as new:
        with quiet():
            model.save_pretrained(new)
        for path in tokenizer.iterdir():
            if path.is_file() and ".safetensors" not in path.name and path.name not in not_tokenizer:
                shutil.copyfile(path, new / path.name)
