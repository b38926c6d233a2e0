"""The models whose training is timed, and what one step of each computes."""

# M sequences of the micro-batch, T positions.

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Shape:
    """One model and one step of so many micro-batches of one size, so that every contender does the same work."""

    family: str
    """"llama" (gated MLP, no biases) or "gpt2"."""
    hidden_size: int
    depth: int
    heads: int
    inner_size: int
    vocabulary: int
    sequence_length: int
    micro_batch: int
    tied: bool = True
    micro_batches: int = 1
    """Of one step."""

    @property
    def micro_tokens(self) -> int:
        """Tokens of one micro-batch."""
        return self.micro_batch * self.sequence_length

    @property
    def step_tokens(self) -> int:
        """Tokens of one step."""
        return self.micro_batches * self.micro_tokens

    def config(self) -> dict[str, Any]:
        """``config.json`` of the model."""
        common = {
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": self.tied,
            "bos_token_id": 0,
            "eos_token_id": 0,
        }
        if self.family == "gpt2":
            no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
            sizes = {"n_embd": self.hidden_size, "n_layer": self.depth, "n_head": self.heads}
            return {
                "model_type": "gpt2", **common, **no_dropout, **sizes,
                "n_inner": self.inner_size, "n_positions": self.sequence_length,
            }  # fmt: skip
        return {
            "model_type": "llama", **common, "hidden_size": self.hidden_size, "num_hidden_layers": self.depth,
            "num_attention_heads": self.heads, "intermediate_size": self.inner_size,
            "max_position_embeddings": self.sequence_length,
        }  # fmt: skip

    def linears(self) -> dict[str, tuple[int, int, int]]:
        """Name to (inputs, outputs, how many there are) of the weight matrices that are multiplied with."""
        width, inner = self.hidden_size, self.inner_size
        if self.family == "gpt2":
            layer = {"query, key, value": (width, 3 * width, 1), "output": (width, width, 1)}
            layer |= {"MLP in": (width, inner, 1), "MLP out": (inner, width, 1)}
        else:
            layer = {"query, key, value, output": (width, width, 4)}
            layer |= {"MLP gate, up": (width, inner, 2), "MLP down": (inner, width, 1)}
        per_model = {name: (inputs, outputs, count * self.depth) for name, (inputs, outputs, count) in layer.items()}
        return {**per_model, "head": (width, self.vocabulary, 1)}

    def step_flops(self) -> float:
        """FLOPs of one step: 6 per weight that is multiplied with and token, and attention's products forward and
        backward over the causal half. What is computed a second time does not count."""
        weights = sum(inputs * outputs * count for inputs, outputs, count in self.linears().values())
        attention = 6 * self.depth * self.hidden_size * self.sequence_length  # 12 T D a token and layer, half of it
        return float(self.step_tokens * (6 * weights + attention))


SHAPES = {
    "llama": Shape("llama", 288, 6, 6, 768, 32_000, 256, 16),
    "gpt2": Shape("gpt2", 768, 12, 12, 3072, 50_257, 512, 8),
    "tiny": Shape("llama", 128, 4, 4, 344, 4_096, 256, 16),
    "llama-1.8b": Shape("llama", 3200, 13, 32, 8640, 32_000, 2048, 4, tied=False, micro_batches=16),
    "gpt2-xl": Shape("gpt2", 1600, 48, 25, 6400, 50_257, 1024, 8, micro_batches=16),
}
"""The CPU's three, and the GPU's two: the paper's child (half of OpenLLaMA-3B) and GPT-2 XL, with the paper's 131,072
tokens a step in micro-batches that fit 80 GB for every contender."""


def sweep_of(shape: Shape) -> dict[str, list[tuple[int, Shape]]]:
    """What cost grows with: one size at a time, the others as they are."""

    def varied(name: str, values: list[int], **along: Any) -> list[tuple[int, Shape]]:
        return [(value, replace(shape, **{name: value}, **along)) for value in values]

    return {
        "depth": varied("depth", [3, 6, 12, 24]),
        "width": [
            (width, replace(shape, hidden_size=width, heads=width // 48, inner_size=width * 8 // 3))
            for width in (144, 288, 576)
        ],
        "vocabulary": varied("vocabulary", [8_000, 32_000, 128_000]),
        "sequence length": [
            (length, replace(shape, sequence_length=length, micro_batch=shape.step_tokens // length))
            for length in (128, 256, 512, 1024)
        ],
        "micro-batch": varied("micro_batch", [2, 4, 8, 16, 32]),
    }
