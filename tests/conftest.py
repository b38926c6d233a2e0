"""Tiny random references of the ten families of the design (two Gemmas), built on the spot, offline, on the CPU."""

import json
import os
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # tests side by side: a thread each, since torch's threads wait by spinning
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from inheritune.data.shards import prepare

hypothesis.settings.register_profile("house", deadline=None)  # a busy machine is not a fault of the code
hypothesis.settings.load_profile("house")

VOCABULARY = 260
"""256 bytes, ``<|endoftext|>`` and three rows to spare, as published models have them."""

END_OF_TEXT = 256

COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "bos_token_id": END_OF_TEXT,
    "eos_token_id": END_OF_TEXT,
    "pad_token_id": None,
}
GROUPED = {**COMMON, "num_key_value_heads": 2, "head_dim": 8}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "gpt2": {**COMMON, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "gpt_neox": COMMON,
    "qwen3": GROUPED,
    "gemma2": {**GROUPED, "query_pre_attn_scalar": 8, "sliding_window": 8},
    "gemma3_text": {
        **GROUPED,
        "query_pre_attn_scalar": 8,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
    },
    "opt": {**COMMON, "ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.0},
    "phi3": {**COMMON, "num_key_value_heads": 2, "original_max_position_embeddings": 128},
    "cohere": {**COMMON, "num_key_value_heads": 2},
    "qwen3_moe": {**GROUPED, "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2},
    "mamba": {**COMMON, "state_size": 8, "time_step_rank": 4},
}

BuildModel = Callable[..., PreTrainedModel]
SaveReference = Callable[..., Path]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for ``family`` runs once for each family."""
    given = [name for mark in metafunc.definition.iter_markers("parametrize") for name in str(mark.args[0]).split(",")]
    if "family" in metafunc.fixturenames and "family" not in given:
        metafunc.parametrize("family", sorted(FAMILIES))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The names of the reliability tests that a test shows go into the JUnit file, where benchmarks read them."""
    for item in items:
        item.user_properties += [("reliability", mark.args[0]) for mark in item.iter_markers("reliability")]


@pytest.fixture(scope="session")
def full() -> bool:
    """Whether the long form is asked for (INHERITUNE_FULL is set): every kill, every length, the whole soak."""
    return bool(os.environ.get("INHERITUNE_FULL"))


def tiny_model(family: str, **config_overrides: Any) -> PreTrainedModel:
    """A seeded random causal LM in eval mode, float32; matrices of standard deviation 0.1, so that every layer matters.

    Config keys are the general ones (``num_hidden_layers``, ``hidden_size``) for every family. Other model types
    work too, with every key given.
    """
    settings = {**FAMILIES.get(family, {}), **config_overrides}
    if "num_hidden_layers" in config_overrides and "layer_types" in settings and "layer_types" not in config_overrides:
        pattern = settings["layer_types"]
        depth = config_overrides["num_hidden_layers"]
        settings["layer_types"] = [pattern[index % len(pattern)] for index in range(depth)]
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings), dtype=torch.float32)
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                torch.nn.init.normal_(parameter.data, std=0.1)
            else:
                parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE without merges: 256 tokens of one byte and ``<|endoftext|>`` (id 256)."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>")
    assert fast.eos_token_id == END_OF_TEXT
    return fast


def tiny_reference(
    family: str, folder: Path, with_tokenizer: bool = True, *, max_shard_size: str = "5GB", **config_overrides: Any
) -> Path:
    """Save ``tiny_model`` (and the byte tokenizer) as a Hugging Face folder; gives the folder."""
    tiny_model(family, **config_overrides).save_pretrained(folder, max_shard_size=max_shard_size)
    if with_tokenizer:
        byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def families() -> dict[str, Callable[[], PreTrainedModel]]:
    """Name -> builder of a tiny random model."""

    def builder(name: str) -> Callable[[], PreTrainedModel]:
        return lambda: tiny_model(name)

    return {name: builder(name) for name in FAMILIES}


@pytest.fixture
def family_names() -> list[str]:
    """The names of the families, sorted."""
    return sorted(FAMILIES)


@pytest.fixture
def build_model() -> BuildModel:
    """``build_model(family, **config_overrides) -> PreTrainedModel``."""
    return tiny_model


@pytest.fixture
def save_reference() -> SaveReference:
    """``save_reference(family, folder, with_tokenizer=True, *, max_shard_size="5GB", **config_overrides) -> Path``."""
    return tiny_reference


@pytest.fixture(scope="session")
def reference_saver() -> SaveReference:
    """``save_reference`` for fixtures of a whole session."""
    return tiny_reference


def tiny_texts(count: int = 260) -> list[str]:
    """Short texts with something to learn: words of a small seeded vocabulary."""
    words = ["the", "layer", "child", "keeps", "first", "deep", "loss", "falls", "slowly", "and", "then", "grows"]
    generator = random.Random(0)
    return [f"{number}: " + " ".join(generator.choices(words, k=generator.randint(5, 30))) for number in range(count)]


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """260 tiny documents as JSON lines."""
    path = tmp_path_factory.mktemp("text") / "words.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in tiny_texts()), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_shards(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny documents as shards under the byte tokenizer: about 20 thousand training tokens."""
    folder = tmp_path_factory.mktemp("shards")
    byte_tokenizer().save_pretrained(folder / "tokenizer")
    prepare([str(text_file)], folder / "data", tokenizer=folder / "tokenizer", min_documents=60)
    return folder / "data"
