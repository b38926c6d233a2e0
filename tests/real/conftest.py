"""Real data beside the clone: corpora, and a really pretrained Llama of 260 thousand parameters (TinyStories).

A clone without the folder skips these tests and says so.
"""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data."""
    if not (DATA / "SOURCES.md").exists():
        pytest.skip("no folder of real data (../shared/data) beside this clone")
    return DATA


def _read_weights(path: Path) -> tuple[dict[str, int], dict[str, np.ndarray]]:
    """The legacy llama2.c checkpoint: seven int32, then float32 blocks, each with all layers together."""
    content = path.read_bytes()
    names = ("dim", "hidden", "layers", "heads", "kv_heads", "vocabulary", "positions")
    shape = dict(zip(names, struct.unpack("<7i", content[:28]), strict=True))
    d, f, n, v = shape["dim"], shape["hidden"], shape["layers"], shape["vocabulary"]
    kv = shape["kv_heads"] * (d // shape["heads"])
    blocks = {
        "embedding": (v, d), "attention_norm": (n, d), "wq": (n, d, d), "wk": (n, kv, d), "wv": (n, kv, d),
        "wo": (n, d, d), "mlp_norm": (n, d), "w1": (n, f, d), "w2": (n, d, f), "w3": (n, f, d), "final_norm": (d,),
    }  # fmt: skip
    weights, begin = {}, 28
    for name, dimensions in blocks.items():
        size = 4 * int(np.prod(dimensions))
        weights[name] = np.frombuffer(content[begin : begin + size], dtype="<f4").reshape(dimensions)
        begin += size
    return shape, weights


def _halves(rows: np.ndarray, heads: int) -> torch.Tensor:
    """Rows of wq or wk from neighbouring rotary pairs to halves, as Hugging Face Llama turns them."""
    out, width = rows.shape
    return torch.from_numpy(rows.reshape(heads, out // heads // 2, 2, width).swapaxes(1, 2).reshape(out, width).copy())


def _tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """The llama2.c vocabulary as a byte-fallback BPE: the adjacent pair whose joined piece scores best merges first."""
    content, pieces, begin = path.read_bytes(), [], 4
    while begin < len(content):
        score, length = struct.unpack("<fi", content[begin : begin + 8])
        pieces.append((content[begin + 8 : begin + 8 + length].decode("utf-8", errors="replace"), score))
        begin += 8 + length
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    names += [piece.replace(" ", "▁") for piece, _ in pieces[259:]]
    ids = {name: index for index, name in enumerate(names)}
    scores = [score for _, score in pieces]
    merges = []
    for name in names[259:]:
        for cut in range(1, len(name)):
            if name[:cut] in ids and name[cut:] in ids:
                merges.append((-scores[ids[name]], ids[name], name[:cut], name[cut:]))
    merges.sort()
    tokenizer = Tokenizer(
        models.BPE(
            vocab=ids, merges=[(left, right) for _, _, left, right in merges], unk_token="<unk>",
            fuse_unk=True, byte_fallback=True,
        )
    )  # fmt: skip
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in ("<unk>", "<s>", "</s>")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="session")
def stories260k(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pretrained model as a Hugging Face folder with its tokenizer."""
    folder = tmp_path_factory.mktemp("stories260k")
    shape, weights = _read_weights(shared_data / "models" / "stories260k" / "stories260K_checkpoint_legacy.bin")
    config = LlamaConfig(
        hidden_size=shape["dim"], intermediate_size=shape["hidden"], num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"], num_key_value_heads=shape["kv_heads"], vocab_size=shape["vocabulary"],
        max_position_embeddings=shape["positions"], rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    state = {
        "model.embed_tokens.weight": torch.from_numpy(weights["embedding"].copy()),
        "model.norm.weight": torch.from_numpy(weights["final_norm"].copy()),
    }
    for layer in range(shape["layers"]):
        prefix = f"model.layers.{layer}."
        state[prefix + "self_attn.q_proj.weight"] = _halves(weights["wq"][layer], shape["heads"])
        state[prefix + "self_attn.k_proj.weight"] = _halves(weights["wk"][layer], shape["kv_heads"])
        plain = {
            "input_layernorm": "attention_norm", "self_attn.v_proj": "wv", "self_attn.o_proj": "wo",
            "post_attention_layernorm": "mlp_norm", "mlp.gate_proj": "w1", "mlp.down_proj": "w2", "mlp.up_proj": "w3",
        }  # fmt: skip
        for theirs, ours in plain.items():
            state[f"{prefix}{theirs}.weight"] = torch.from_numpy(weights[ours][layer].copy())
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert missing == ["lm_head.weight"]
    assert not unexpected
    model.save_pretrained(folder)
    _tokenizer(shared_data / "tokenizers" / "stories260k-sp512" / "tokenizer.bin").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def cased_excerpt(shared_data: Path) -> str:
    """30 KB of TinyStories in original case."""
    return (shared_data / "corpora" / "tinystories" / "tinystories-cased-excerpt.txt").read_text(encoding="utf-8")


def write_jsonl(path: Path, texts: list[str]) -> Path:
    """Texts as JSON lines."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path
