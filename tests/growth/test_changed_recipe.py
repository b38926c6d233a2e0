"""A recipe that changed under a run: what is allowed goes on and is recorded, more is done, the rest is refused."""

import json

import pytest

from inheritune.errors import DataError, InherituneError, RecipeError, Stopped, TrainingError
from inheritune.growth import stages
from inheritune.job import grow
from inheritune.recipe import Recipe
from inheritune.training import stage
from inheritune.training.sinks import Silent

pytestmark = pytest.mark.reliability("R21")

OUT_OF_REACH = {"growth__target": 0.1}


@pytest.fixture
def trained(monkeypatch):
    """Names of the stages whose loop has run, in order."""
    names, honest = [], stage.run_loop

    def spy(*given, plan, **settings):
        names.append(plan.stage)
        return honest(*given, plan=plan, **settings)

    monkeypatch.setattr(stage, "run_loop", spy)
    return names


def events(folder, kind):
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [line["message"] for line in lines if line["kind"] == kind]


def test_a_finished_search_goes_deeper_and_trains_nothing_again(recipe, tmp_path, trained, lines):
    first = grow(recipe(**OUT_OF_REACH, growth__max_depth=2), progress=Silent()).summary
    assert trained == ["round-1", "scratch"]
    second = grow(recipe(**OUT_OF_REACH, growth__max_depth=4), progress=lines).summary
    assert trained == ["round-1", "scratch", "round-2", "scratch-4"]
    assert [each["depth"] for each in second["rounds"]] == [2, 4]
    assert second["rounds"][0] == first["rounds"][0]
    assert second["baselines"]["scratch"]["depth"] == 4
    assert second["baselines"]["scratch"]["tokens"] == second["child"]["tokens"] == 2 * first["child"]["tokens"]
    assert any("goes on with a changed recipe: growth.max_depth: 2 -> 4" in line for line in lines.said)
    assert events(tmp_path / "run", "recipe changed") == ["growth.max_depth: 2 -> 4"]
    assert Recipe.load(tmp_path / "run" / "recipe.yaml").growth.max_depth == 4
    assert "4 layers" in (tmp_path / "run" / "report.html").read_text()


def test_training_settings_that_were_refused_are_mended_in_place(recipe, tmp_path, trained):
    with pytest.raises(RecipeError, match="Nearest is"):
        grow(recipe(train__freeze=["model.embed_token.*"]), progress=Silent())
    scored = (tmp_path / "run" / "stages" / "reference" / "validation" / "decide-0.npy").stat().st_mtime_ns
    grow(recipe(train__freeze=["model.embed_tokens.*"]), progress=Silent())
    assert trained[0] == "round-1"
    assert (tmp_path / "run" / "stages" / "reference" / "validation" / "decide-0.npy").stat().st_mtime_ns == scored
    with pytest.raises(RecipeError, match=r"was made by another recipe:\n  train\.freeze"):
        grow(recipe(train__freeze=["model.norm.*"]), progress=Silent())


@pytest.mark.parametrize("mode", ["restart", "continue"])
@pytest.mark.parametrize("change", [{"train__passes": 2}, {"data__token_budget": 4000}])
def test_a_finished_search_is_given_more_tokens(change, mode, recipe, tmp_path, trained):
    settings = {**OUT_OF_REACH, "growth__max_depth": 3, "growth__mode": mode}
    first = grow(recipe(**settings), progress=Silent()).summary
    assert trained == ["round-1", "round-2", "scratch"]
    second = grow(recipe(**settings, **change), progress=Silent()).summary
    assert trained[3:] == ["round-2", "scratch"]  # the last child goes on; the round before it stays as it is
    assert second["rounds"][0] == first["rounds"][0]
    last = second["rounds"][1]
    assert last["tokens"] == 15 * 256 > first["rounds"][1]["tokens"]
    assert last["spent_tokens"] == last["tokens"] + 256  # one step of the first cool-down was thrown away
    assert second["child"]["tokens"] == last["tokens_total"] == first["rounds"][0]["tokens"] + last["spent_tokens"]
    assert second["baselines"]["scratch"]["tokens"] >= second["child"]["tokens"] - 256
    assert (tmp_path / "run" / "stages" / "round-2" / "validation" / f"decide-{last['tokens']}.npy").exists()
    assert events(tmp_path / "run", "extended")


def test_a_search_that_is_stopped_while_it_is_extended_ends_like_one_that_was_not(recipe, tmp_path, monkeypatch):
    settings = {**OUT_OF_REACH, "growth__max_depth": 3, "growth__mode": "continue"}
    summaries = []
    for name in ("whole", "parts"):
        grow(recipe(**settings, run_dir=str(tmp_path / name)), progress=Silent())
        more = recipe(**settings, run_dir=str(tmp_path / name), data__token_budget=4000)
        if name == "parts":
            honest, calls = stages.train, []

            def stopping(*given, stop, honest=honest, calls=calls, **settings):
                calls.append(1)
                if len(calls) == 1:
                    stop.requested = True
                return honest(*given, stop=stop, **settings)

            monkeypatch.setattr(stages, "train", stopping)
            with pytest.raises(Stopped):
                grow(more, progress=Silent())
        summaries.append(grow(more, progress=Silent()).summary)
    left, right = ((tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert left == right
    assert summaries[0]["child"]["loss_nats"] == summaries[1]["child"]["loss_nats"]


def test_how_a_run_is_watched_and_kept_may_change_and_a_finished_one_stays_done(recipe, tmp_path, trained, lines):
    grow(recipe(), progress=Silent())
    count = len(trained)
    changed = recipe(train__validations=5, train__keep_checkpoints=1, train__save_every_minutes=1.0)
    grow(changed, progress=lines)
    assert len(trained) == count
    assert any("done already" in line for line in lines.said)
    assert set(events(tmp_path / "run", "recipe changed")) == {
        "train.validations: 2 -> 5",
        "train.keep_checkpoints: 2 -> 1",
        "train.save_every_minutes: 10.0 -> 1.0",
    }


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"train__peak_lr": 2e-3}, "train.peak_lr: 0.001 -> 0.002"),
        ({"growth__margin": 0.5}, "growth.margin: 0.01 -> 0.5"),
        ({"growth__step": 1}, "growth.step: 2 -> 1"),
        ({"seed": 1}, "seed: 0 -> 1"),
    ],
)
def test_the_rest_is_refused_with_what_differs_and_what_would_be_allowed(change, line, recipe, tmp_path):
    grow(recipe(), progress=Silent())
    before = (tmp_path / "run" / "recipe.yaml").read_text()
    with pytest.raises(RecipeError) as refused:
        grow(recipe(**change, train__validations=5), progress=Silent())
    said = str(refused.value)
    assert f"made by another recipe:\n  {line}\n" in said
    assert "These may change: train.validations: 2 -> 5." in said and "--fresh" in said
    assert (tmp_path / "run" / "recipe.yaml").read_text() == before
    assert (tmp_path / "run" / "summary.json").exists()


def test_a_depth_below_what_was_begun_is_refused_and_the_former_recipe_still_works(recipe, tmp_path):
    deep = recipe(**OUT_OF_REACH, growth__max_depth=3)
    grow(deep, progress=Silent())
    with pytest.raises(RecipeError, match=r"growth\.max_depth is 2, and this run has begun a child of 3 layers"):
        grow(recipe(**OUT_OF_REACH, growth__max_depth=2), progress=Silent())
    assert grow(deep, progress=Silent()).summary["state"] == "done"


def test_sources_that_changed_are_refused_when_the_budget_is_raised(recipe, tmp_path, text_file):
    copy = tmp_path / "texts.jsonl"
    copy.write_text(text_file.read_text())
    grow(recipe(data__sources=[str(copy)]), progress=Silent())
    lines = copy.read_text().splitlines(keepends=True)
    copy.write_text("".join(lines[40:]))
    with pytest.raises(DataError, match="has changed since"):
        grow(recipe(data__sources=[str(copy)], data__token_budget=4000), progress=Silent())


def test_a_reference_made_here_is_not_trained_again(recipe, tmp_path, trained):
    config = {
        "model_type": "llama",
        "vocab_size": 300,
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
    }
    made = {"reference": {"train": {"config": config, "passes": 1}}, **OUT_OF_REACH, "growth__max_depth": 2}
    grow(recipe(**made), progress=Silent())
    assert trained == ["reference", "round-1", "scratch"]
    grow(recipe(**made, data__token_budget=3000), progress=Silent())
    assert trained[3:] == ["round-1", "scratch"]


def test_less_than_was_done_is_refused_where_it_was_done(recipe):
    grow(recipe(train__passes=2), progress=Silent())
    with pytest.raises(RecipeError, match="budget_tokens: 2000 -> 1000"):
        grow(recipe(train__passes=2, data__token_budget=1000), progress=Silent())
    with pytest.raises(RecipeError, match="passes: 2 -> 1"):
        grow(recipe(), progress=Silent())
    assert grow(recipe(train__passes=2), progress=Silent()).summary["state"] == "done"


@pytest.mark.parametrize(
    ("begun", "wish", "mended"),
    [
        ({}, {"data__token_budget": 10**9}, {"data__token_budget": 4000}),
        ({}, {"growth__max_depth": 40}, {"growth__max_depth": 4}),
        ({"train__schedule": "cosine"}, {"train__passes": 2}, {}),
        ({"train__schedule": "cosine"}, {"data__token_budget": 4000}, {}),
    ],
)
def test_a_wish_that_was_refused_can_be_taken_back(begun, wish, mended, recipe):
    settings = {**OUT_OF_REACH, "growth__max_depth": 2, **begun}
    grow(recipe(**settings), progress=Silent())
    with pytest.raises(InherituneError):
        grow(recipe(**{**settings, **wish}), progress=Silent())
    assert grow(recipe(**{**settings, **mended}), progress=Silent()).summary["state"] == "done"


def test_the_total_holds_for_an_extension_too(recipe, tmp_path):
    settings = {**OUT_OF_REACH, "growth__max_depth": 3, "growth__total_tokens": 5000}
    first = grow(recipe(**settings), progress=Silent()).summary
    second = grow(recipe(**settings, data__token_budget=4500), progress=Silent()).summary
    assert second["child"]["tokens"] == first["child"]["tokens"] <= 5000
    assert "and growth.total_tokens is 5000" in events(tmp_path / "run", "not extended")[0]


def test_a_kill_between_a_reference_and_its_record_is_mended(recipe, tmp_path, monkeypatch):
    config = {"model_type": "llama", "vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 4}
    config |= {"num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 64}
    made = {"reference": {"train": {"config": config, "passes": 1}}, "growth__max_depth": 2, "baselines": []}
    honest = stages.runs.remove_folder

    def killed(folder):
        if folder.name == "start":
            raise KeyboardInterrupt
        honest(folder)

    monkeypatch.setattr(stages.runs, "remove_folder", killed)
    with pytest.raises(KeyboardInterrupt):
        grow(recipe(**made), progress=Silent())
    monkeypatch.setattr(stages.runs, "remove_folder", honest)
    assert grow(recipe(**made), progress=Silent()).summary["reference"]["training_tokens"] > 0
    assert not list((tmp_path / "run" / "stages" / "reference" / "checkpoints").glob("*"))


STEPWISE = {**OUT_OF_REACH, "growth__max_depth": 3, "growth__start_depth": 1, "baselines": []}


@pytest.mark.parametrize("mode", ["restart", "continue"])
def test_killed_between_the_renames_of_an_extended_model_it_goes_on(mode, recipe, tmp_path, monkeypatch):
    settings = {**STEPWISE, "growth__mode": mode}
    grow(recipe(**settings), progress=Silent())
    paths = type(tmp_path)
    honest = paths.rename

    def killed(self, target):
        moved = honest(self, target)
        if self.name == "model" and self.parent.name == "round-2" and str(target).endswith(".model.old"):
            raise SystemExit
        return moved

    monkeypatch.setattr(paths, "rename", killed)
    with pytest.raises(SystemExit):
        grow(recipe(**settings, train__passes=2), progress=Silent())
    monkeypatch.setattr(paths, "rename", honest)
    rounds = grow(recipe(**settings, train__passes=2), progress=Silent()).summary["rounds"]
    assert [each["tokens"] for each in rounds] == [7 * 256, 15 * 256]


def test_killed_before_the_second_child_is_there_the_first_can_still_be_extended(recipe, monkeypatch):
    honest, calls = stages.inherit, []

    def killed(*given, **named):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return honest(*given, **named)

    monkeypatch.setattr(stages, "inherit", killed)
    with pytest.raises(KeyboardInterrupt):
        grow(recipe(**STEPWISE), progress=Silent())
    monkeypatch.setattr(stages, "inherit", honest)
    rounds = grow(recipe(**STEPWISE, train__passes=2), progress=Silent()).summary["rounds"]
    assert [each["tokens"] for each in rounds] == [15 * 256, 15 * 256]


def test_a_damaged_state_is_not_grown_from(recipe, tmp_path, monkeypatch):
    settings = {**STEPWISE, "growth__mode": "continue"}

    def killed(*given, **named):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stages, "deepen", killed)
        with pytest.raises(KeyboardInterrupt):
            grow(recipe(**settings), progress=Silent())
    path = next((tmp_path / "run" / "stages" / "round-1" / "checkpoints").glob("step-*")) / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 0x40
    path.write_bytes(bytes(content))
    with pytest.raises(TrainingError, match="is damaged or gone"):
        grow(recipe(**settings), progress=Silent())
