import pytest
from pydantic import ValidationError

from inheritune.errors import RecipeError
from inheritune.recipe import Recipe, commented_recipe, known_keys, may_change, recipe_differences

SMALL = "reference: {model: some/model}\ndata: {sources: [text]}\n"


@pytest.fixture
def load(tmp_path):
    def load(text, overrides={}):  # noqa: B006
        path = tmp_path / "my.yaml"
        path.write_text(text, encoding="utf-8")
        return Recipe.load(path, overrides)

    return load


def problems(load, text, overrides={}):  # noqa: B006
    with pytest.raises(RecipeError) as refused:
        load(text, overrides)
    return str(refused.value)


def test_the_smallest_recipe_has_the_defaults_of_the_design(load):
    recipe = load(SMALL)
    assert recipe.run_dir == "runs/my"
    assert (recipe.growth.mode, recipe.growth.step, recipe.growth.margin) == ("restart", 2, 0.01)
    assert (recipe.train.peak_lr, recipe.train.schedule, recipe.train.validations) == (3e-4, "wsd", 20)
    assert recipe.baselines == ["scratch"]


def test_a_recipe_has_at_most_sixty_keys():
    keys = known_keys()
    leaves = [key for key in keys if not any(other.startswith(f"{key}.") for other in keys)]
    assert 30 < len(leaves) <= 60


def test_a_seed_is_no_larger_than_torch_takes(load):
    assert load(SMALL, {"seed": str(2**63 - 1)}).seed == 2**63 - 1
    assert "seed" in problems(load, SMALL, {"seed": "1e20"})


def test_quantities_are_read_with_their_units(load):
    recipe = load(SMALL + "train: {batch_tokens: 131k, peak_lr: 2e-4, warmup_fraction: 5%}\n")
    assert (recipe.train.batch_tokens, recipe.train.peak_lr) == (131_000, 2e-4)
    assert recipe.train.warmup_fraction == pytest.approx(0.05)


def test_a_resolved_recipe_loads_back_equal(load):
    recipe = load(SMALL + "seed: 7\ngrowth: {target: 3.2}\ntrain: {compile: false, micro_batch: 4}\n")
    assert load(recipe.dump()) == recipe


def test_a_recipe_cannot_be_edited(load):
    with pytest.raises(ValidationError, match="frozen"):
        load(SMALL).seed = 3


def test_all_problems_come_at_once_with_file_line_and_nearest_key(load):
    said = problems(
        load,
        "reference: {modle: x}\n"
        "data:\n"
        "  sources: []\n"
        "  token_budgte: 3\n"
        "  sequence_length: banana\n"
        "train: {peak_lr: -1, schedule: wds, compile: maybe}\n"
        "growth: {mode: onwards}\n"
        "trian: 3\n",
        {"train.peak-lrr": "1", "train.passes": "x"},
    )
    for line in (
        "my.yaml:1: reference.modle: there is no such key. Nearest is reference.model.",
        "my.yaml:3: data.sources: List should have at least 1 item",
        "my.yaml:4: data.token_budgte: there is no such key. Nearest is data.token_budget.",
        "my.yaml:5: data.sequence_length: 'banana' is not a quantity",
        "my.yaml:6: train.peak_lr: Input should be greater than 0 (got -1)",
        "my.yaml:6: train.schedule: Input should be 'wsd' or 'cosine' (got 'wds')",
        "my.yaml:6: train.compile:",
        "my.yaml:7: growth.mode: Input should be 'restart', 'continue' or 'identity' (got 'onwards')",
        "my.yaml:8: trian: there is no such key. Nearest is train.",
        "--train.peak-lrr: there is no such key. Nearest is --train.peak-lr.",
        "--train.passes: 'x' is not a quantity",
    ):
        assert line in said.replace(str(load.__closure__[0].cell_contents) + "/", ""), line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("- a\n- b\n", "a recipe is a mapping"),
        ("reference: [\n", "my.yaml:2: not YAML"),
        (SMALL + "seed: 1\nseed: 2\n", "my.yaml:4: seed: given twice"),
        ("data: {sources: [a]}\n", "reference: this key is needed and missing"),
        ("reference: {}\ndata: {sources: [a]}\n", "exactly one of reference.model and reference.train"),
        (
            "reference: {model: a, train: {config: {}}}\ndata: {sources: [a]}\n",
            "exactly one of reference.model and reference.train",
        ),
        ("reference: {model: a}\ndata: {sources: [{path: a, hub: b}]}\n", "exactly one of path and hub"),
    ],
)
def test_a_recipe_that_is_none_is_refused(text, said, load):
    assert said in problems(load, text)


def test_a_missing_file_says_how_to_write_one(tmp_path):
    with pytest.raises(RecipeError, match="inheritune init"):
        Recipe.load(tmp_path / "nowhere.yaml")


def test_overrides_win_over_the_file_in_kebab_case(load):
    recipe = load(SMALL + "train: {peak_lr: 1e-3}\n", {"train.peak-lr": "2e-4", "data.sources": "[a, b]", "seed": "3"})
    assert (recipe.train.peak_lr, recipe.data.sources, recipe.seed) == (2e-4, ["a", "b"], 3)


def test_half_lives_fractions_and_lists_are_read_from_the_command_line(load):
    given = {
        "train.beta2-half-life": "10M",
        "train.average-half-life": "1.5M",
        "train.freeze": '["model.embed_tokens.*", "*.layers.0.*"]',
        "train.distill-weight": "50%",
        "train.dropout": "0.1",
    }
    train = load(SMALL, given).train
    assert (train.beta2_half_life, train.average_half_life) == (10_000_000, 1_500_000)
    assert train.freeze == ["model.embed_tokens.*", "*.layers.0.*"]
    assert (train.distill_weight, train.dropout) == (0.5, 0.1)


def test_fields_of_the_reference_config_are_free(load):
    recipe = load("reference: {train: {config: {model_type: llama, hidden_size: 64}}}\ndata: {sources: [a]}\n")
    assert recipe.reference.train.config == {"model_type": "llama", "hidden_size": 64}


def test_the_commented_recipe_names_every_key_and_loads_once_filled_in(load):
    text = commented_recipe()
    for key in known_keys():
        if not key.startswith("reference.train."):
            assert f"{key.rpartition('.')[2]}:" in text, key
    recipe = load(text, {"reference.model": "some/model", "data.sources": "[texts]"})
    assert recipe.data.token_budget == 10**9
    assert recipe.train == load(SMALL).train


def test_differences_are_named_key_by_key(load):
    old, new = load(SMALL), load(SMALL, {"train.peak-lr": "2e-4", "growth.margin": "0.02"})
    assert recipe_differences(old, new) == {"growth.margin": (0.01, 0.02), "train.peak_lr": (0.0003, 0.0002)}
    assert recipe_differences(old, old) == {}


@pytest.mark.parametrize(
    "line",
    [
        "train: {warmup_fraction: 0.1%}",
        "train: {batch_tokens: 0.5M}",
        "growth: {total_tokens: 1e18k}",
        "run_dir: 1.0rc",
    ],
)
def test_a_number_with_a_suffix_is_no_plain_number(load, line):
    load(SMALL + line + "\n")


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("train: {passes: null}", "train.passes"),
        ("train: {passes: [1]}", "train.passes"),
        ("train: {peak_lr: true}", "train.peak_lr"),
        ("growth: {target: -1}", "growth.target"),
        ("growth: {target: .nan}", "growth.target"),
        ("inherit: {layers: 0}", "inherit.layers"),
        ("inherit: {layers: [3, 1]}", "inherit.layers"),
        ("inherit: {layers: most}", "inherit.layers"),
        ("inherit: {layers: drop}", "inherit.layers"),
        ("train: {warmup_fraction: 0.9, cooldown_fraction: 0.9}", "train"),
        ("train: {beta2_half_life: 0}", "train.beta2_half_life"),
        ("train: {average_half_life: -1M}", "train.average_half_life"),
        ("train: {inherited_lr_scale: 0}", "train.inherited_lr_scale"),
        ("train: {freeze: lm_head}", "train.freeze"),
        ("train: {freeze: [1]}", "train.freeze"),
        ("train: {distill_weight: 1.1}", "train.distill_weight"),
        ("train: {distill_temperature: 0}", "train.distill_temperature"),
        ("train: {dropout: 1}", "train.dropout"),
        ("train: {dropout: true}", "train.dropout"),
        ("growth: {start_depth: 5, max_depth: 3}", "growth"),
        ("? [a]\n: 1", "not YAML"),
        ("seed: 2024-13-45", "cannot be read"),
        ("seed: &a [*a]", "alias"),
    ],
)
def test_a_wrong_value_is_refused_and_never_a_traceback(load, line, key):
    assert key in problems(load, SMALL + line + "\n")


@pytest.mark.parametrize(
    ("written", "layers"),
    [
        ("12", 12),
        ("'12'", 12),
        ("half", "half"),
        ("0-5,8,-1", "0-5,8,-1"),
        ("drop 20-27", "drop 20-27"),
        ("[0, 1]", [0, 1]),
    ],
)
def test_layers_are_written_in_a_recipe_as_on_the_command_line(load, written, layers):
    assert load(f"{SMALL}inherit:\n  layers: {written}\n").inherit.layers == layers


def test_a_section_without_keys_has_its_defaults(load):
    assert load(SMALL + "train:\nrun_dir:\n") == load(SMALL)


def test_a_revision_that_looks_like_a_number_survives_the_run_folder(load):
    recipe = load("reference: {model: a, revision: '12e4'}\ndata: {sources: [a]}\n")
    assert load(recipe.dump()) == recipe


@pytest.mark.parametrize(
    ("key", "allowed"),
    [
        ("train.validations", True),
        ("train.keep_checkpoints", True),
        ("train.on_bad_step", True),
        ("data.token_budget", True),
        ("train.passes", True),
        ("growth.max_depth", True),
        ("growth.total_tokens", True),
        ("train.peak_lr", False),
        ("growth.mode", False),
        ("data.sources", False),
    ],
)
def test_what_may_change_under_a_run(key, allowed):
    assert key in known_keys()
    assert may_change(key) is allowed


def test_a_rise_and_a_cool_down_that_do_not_fit_into_a_round_are_refused():
    with pytest.raises(ValueError, match=r"rewarm_fraction and train\.cooldown_fraction are together more"):
        Recipe.model_validate(
            {
                "reference": {"model": "a"},
                "data": {"sources": ["b"]},
                "growth": {"mode": "continue", "rewarm_fraction": 0.9},
            }
        )


@pytest.mark.parametrize("given", ["a.jsonl", "[a.jsonl]"])
def test_one_source_need_not_be_a_list(load, given):
    assert load(f"reference: {{model: some/model}}\ndata: {{sources: {given}}}\n").data.sources == ["a.jsonl"]
    assert load(SMALL, {"data.sources": given}).data.sources == ["a.jsonl"]


def test_one_source_may_be_a_mapping(load):
    (source,) = load("reference: {model: some/model}\ndata: {sources: {hub: a/b}}\n").data.sources
    assert source.hub == "a/b"


def test_a_source_that_is_neither_is_refused_with_its_line(load):
    with pytest.raises(RecipeError, match=r"my\.yaml:2: data\.sources"):
        load("reference: {model: some/model}\ndata: {sources: 3}\n")
