import pytest
import torch

from inheritune.errors import RecipeError
from inheritune.surgery.positions import check_positions

SIZES = {
    "vocab_size": 260,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
OTHERS = {
    "roberta": {**SIZES, "max_position_embeddings": 130, "is_decoder": True},
    "bert": {**SIZES, "max_position_embeddings": 128, "is_decoder": True},
    "biogpt": {**SIZES, "max_position_embeddings": 128},
    "gpt_neo": {
        **SIZES,
        "num_layers": 1,
        "num_heads": 4,
        "max_position_embeddings": 128,
        "attention_types": [[["global"], 1]],
    },
    "gptj": {**SIZES, "n_positions": 128, "n_embd": 32, "n_layer": 1, "n_head": 4, "rotary_dim": 4},
    "ctrl": {"vocab_size": 260, "n_positions": 128, "n_embd": 32, "n_layer": 1, "n_head": 4, "dff": 64},
    "xglm": {
        "vocab_size": 260,
        "d_model": 32,
        "num_layers": 1,
        "attention_heads": 4,
        "ffn_dim": 64,
        "max_position_embeddings": 128,
    },
    "bloom": {"vocab_size": 260, "hidden_size": 32, "n_layer": 1, "n_head": 4},
}
TABLES = {"gpt2", "opt", "roberta", "bert", "biogpt", "gpt_neo", "gptj", "ctrl"}
POSITIONS = 128


def runs(model, length):
    """Whether the model's own forward takes a row of this length."""
    ids = torch.arange(length)[None] % 200 + 5
    try:
        with torch.no_grad():
            model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    except (IndexError, RuntimeError):
        return False
    return True


def check(name, model):
    assert check_positions(model, POSITIONS) is None
    assert check_positions(model.config, POSITIONS) is None
    assert runs(model, POSITIONS)
    for given in (model, model.config):
        if name in TABLES:
            with pytest.raises(
                RecipeError, match=rf"length of 129 .* from a table of {POSITIONS} \(.*\).* to {POSITIONS} or"
            ):
                check_positions(given, POSITIONS + 1)
        elif name == "bloom":
            assert check_positions(given, POSITIONS + 1) is None
        else:
            assert f"made for {POSITIONS} positions" in check_positions(given, POSITIONS + 1)
    assert runs(model, POSITIONS + 1) == (name not in TABLES)


def test_a_row_beyond_a_table_is_refused_and_one_that_can_run_is_warned_of(family, build_model):
    check(family, build_model(family))


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_tables_with_an_offset_a_padding_or_sines_are_measured_as_the_model_uses_them(name, build_model):
    check(name, build_model(name, **OTHERS[name]))


def test_the_table_is_named(build_model):
    with pytest.raises(
        RecipeError, match=r"'opt' reads its positions from a table of 128 \(model\.decoder\.embed_positions\)"
    ):
        check_positions(build_model("opt"), 200)
