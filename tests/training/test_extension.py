"""A stage asked for more goes on from before its cool-down, exactly; what may change under it, and what not."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inheritune.data.batches import Position
from inheritune.data.shards import Shards, prepare
from inheritune.errors import RecipeError, Stopped, SurgeryError, TrainingError
from inheritune.training import going_on, learner, stage
from inheritune.training.checkpoint import drop_after
from inheritune.training.going_on import open_checkpoint, read_result
from inheritune.training.settings import passes_with

EVEN = {"warmup_fraction": 0.0, "cooldown_fraction": 0.25}  # the rise is part of the plan: without one, plans agree


def test_a_finished_stage_trained_on_equals_one_that_was_asked_for_all_of_it_at_once(lab):
    lab.run("out", recipe={**EVEN, "passes": 1})
    assert read_result(lab.folder / "out").loop.steps == 12
    longer = lab.run("out", recipe={**EVEN, "passes": 2})
    whole = lab.run("whole", recipe={**EVEN, "passes": 2})
    lab.assert_equal("out", "whole", ["train"])  # looks are spread over the length, which was another
    assert longer.loop.steps == whole.loop.steps == 24
    assert longer.loop.discarded_tokens == 3 * lab.BATCH  # the first cool-down, three of twelve steps
    assert longer.loop.spent_tokens == longer.loop.tokens + 3 * lab.BATCH
    assert whole.loop.discarded_tokens == 0
    assert any(
        kind == "extended" and "step 9, before its cool-down, to 24 steps (was 12)" in m for kind, m in lab.events
    )


def test_a_stage_that_is_under_way_takes_a_larger_budget_wherever_it_stands(lab):
    lab.run("whole", recipe={**EVEN, "passes": 2})
    for name, count in (("early", 6), ("cooling", 12)):
        with pytest.raises(Stopped):
            lab.run(name, recipe=EVEN, stop=lab.StopAt(count))
        lab.run(name, recipe={**EVEN, "passes": 2})
        lab.assert_equal(name, "whole", ["train"])


def test_extended_twice_and_stopped_in_between(lab):
    lab.run("whole", recipe={**EVEN, "passes": 4})
    lab.run("out", recipe=EVEN)
    with pytest.raises(Stopped):
        lab.run("out", recipe={**EVEN, "passes": 2}, stop=lab.StopAt(3))
    with pytest.raises(Stopped):
        lab.run("out", recipe={**EVEN, "passes": 4}, stop=lab.StopAt(9))
    lab.run("out", recipe={**EVEN, "passes": 4})
    lab.assert_equal("out", "whole", ["train"])


@pytest.mark.parametrize("moment", ["settings", "result", "checkpoints"])
def test_killed_while_it_is_extended_it_is_either_what_it_was_or_what_it_should_become(moment, lab, monkeypatch):
    lab.run("whole", recipe={**EVEN, "passes": 2})
    with pytest.raises(Stopped):
        lab.run("out", recipe=EVEN, stop=lab.StopAt(13))  # in the cool-down, with a checkpoint there
    place = {
        "settings": (going_on.runs, "write_json"),
        "result": (going_on, "_extend"),
        "checkpoints": (going_on, "drop_after"),
    }
    where, name = place[moment]
    honest = getattr(where, name)

    def killed(*given, **named):
        if moment == "result":
            honest(*given, **named)
        raise KeyboardInterrupt

    monkeypatch.setattr(where, name, killed)
    with pytest.raises(KeyboardInterrupt):
        lab.run("out", recipe={**EVEN, "passes": 2})
    monkeypatch.setattr(where, name, honest)
    lab.run("out", recipe={**EVEN, "passes": 2})
    lab.assert_equal("out", "whole", ["train"])


def test_a_larger_budget_finishes_the_pass_then_brings_the_new_text(lab, text_file, monkeypatch):
    def shards(budget, name):
        folder = lab.folder / name
        tokenizer = Shards.open(lab.shards).tokenizer
        return prepare(
            [str(text_file)], folder, tokenizer=tokenizer, token_budget=budget, min_documents=60, may_grow=True
        )

    seen, honest = [], learner.accumulate_gradient

    def spy(functions, rows, choices):
        seen.append(rows.cpu().numpy().copy())
        return honest(functions, rows, choices)

    monkeypatch.setattr(learner, "accumulate_gradient", spy)
    small = shards(3000, "data").sequence("train")
    old = [small.document(index).copy() for index in range(small.num_documents)]
    lab.run("out", shards=Shards.open(lab.folder / "data"), tokens=3000, recipe=EVEN)
    seen.clear()
    large = shards(6000, "data")
    documents = large.sequence("train")
    assert all(np.array_equal(documents.document(index), each) for index, each in enumerate(old[:-1]))
    result = lab.run("out", shards=large, tokens=6000, recipe=EVEN)
    assert result.loop.tokens > 5500

    opening = {tuple(documents.document(index)[:4].tolist()): index for index in range(documents.num_documents)}
    assert len(opening) == documents.num_documents
    places = [tuple(row[at : at + 4].tolist()) for rows in seen for row in rows for at in range(lab.LENGTH - 4)]
    owners = [opening[place] for place in places if place in opening]
    switch = next(place for place, owner in enumerate(owners) if owner >= len(old))
    assert switch > 2 and all(owner < len(old) for owner in owners[:switch])
    assert len(owners[switch:]) > 10 and all(owner >= len(old) for owner in owners[switch:])


@pytest.mark.reliability("R21")
def test_the_keys_that_may_change_change_and_are_told(lab):
    with pytest.raises(Stopped):
        lab.run("out", stop=lab.StopAt(6))
    lab.run("out", recipe={"validations": 4, "keep_checkpoints": 1, "save_every_minutes": 1e-9, "on_bad_step": "stop"})
    said = [message for kind, message in lab.events if kind == "changed"]
    assert said == [
        "out | on_bad_step: skip -> stop",
        "out | validations: 2 -> 4",
        "out | save_every_minutes: 1000.0 -> 1e-09",
        "out | keep_checkpoints: 2 -> 1",
    ]
    plain = lab.run("plain")
    assert lab.same(lab.weights("out"), lab.weights("plain"))
    assert plain.loop.steps == 12


@pytest.mark.reliability("R21")
@pytest.mark.parametrize(
    "recipe", [{"peak_lr": 2e-3}, {"beta2": 0.9}, {"schedule": "cosine"}, {"batch_tokens": 128}, {"weight_decay": 0.0}]
)
def test_the_others_are_refused_with_what_differs(recipe, lab):
    with pytest.raises(Stopped):
        lab.run("out", stop=lab.StopAt(6))
    (key,) = recipe
    before = (lab.folder / "out" / "settings.json").read_text()
    with pytest.raises(RecipeError, match=rf"made by other settings \({key}: .* -> .*\)\. Choose another folder"):
        lab.run("out", recipe={**recipe, "validations": 9})
    assert (lab.folder / "out" / "settings.json").read_text() == before


@pytest.mark.reliability("R21")
def test_fewer_tokens_are_refused_and_a_cosine_cannot_be_extended(lab):
    lab.run("out", recipe={"passes": 2})
    with pytest.raises(RecipeError, match="total_tokens: 6144 -> 3072"):
        lab.run("out")
    lab.run("cosine", recipe={"schedule": "cosine"})
    with pytest.raises(RecipeError, match=r"cosine schedule.*from 3072 to 6144 tokens.*wsd"):
        lab.run("cosine", recipe={"schedule": "cosine", "passes": 2})


@pytest.mark.reliability("R6")
def test_another_micro_batch_at_resume_sees_the_same_rows(lab, monkeypatch):
    seen, honest = [], learner.accumulate_gradient

    def spy(functions, rows, choices):
        seen.append((tuple(rows.flatten().tolist()), choices.micro_batch))
        return honest(functions, rows, choices)

    monkeypatch.setattr(learner, "accumulate_gradient", spy)
    lab.run("whole", recipe={"micro_batch": 8})
    rows = [key for key, _ in seen]
    seen.clear()
    with pytest.raises(Stopped):
        lab.run("parts", recipe={"micro_batch": 8}, stop=lab.StopAt(7))
    lab.run("parts", recipe={"micro_batch": 3})
    assert [key for key, _ in seen] == rows
    assert {size for _, size in seen} == {8, 3}
    left, right = (
        [line["loss_nats"] for line in lab.losses(name) if line["kind"] == "train"] for name in ("whole", "parts")
    )
    assert left == pytest.approx(right, rel=1e-5)


def test_a_finished_stage_keeps_the_checkpoint_from_before_its_cool_down_and_no_other(lab):
    lab.run("out", recipe={**EVEN, "save_every_minutes": 1e-9})
    assert [path.name for path in sorted((lab.folder / "out" / "checkpoints").glob("step-*"))] == ["step-00000009"]
    assert open_checkpoint(lab.folder / "out").name == "step-00000009"
    lab.run("cosine", recipe={"schedule": "cosine"})
    with pytest.raises(RecipeError, match="no state from before a cool-down"):
        open_checkpoint(lab.folder / "cosine")
    assert not list((lab.folder / "cosine" / "checkpoints").glob("step-*"))


def test_an_extension_without_that_checkpoint_is_refused(lab):
    lab.run("out", recipe=EVEN)
    drop_after(lab.folder / "out" / "checkpoints", 0)
    with pytest.raises(RecipeError, match=r"checkpoint of step 9, from before the cool-down, is gone.*--fresh"):
        lab.run("out", recipe={**EVEN, "passes": 2})
    assert lab.run("out", recipe=EVEN).loop.steps == 12


def test_settings_name_what_the_stage_was_made_by(lab):
    lab.run("out", recipe=EVEN)
    settings = json.loads((lab.folder / "out" / "settings.json").read_text())
    assert settings["schedule"]["num_steps"] == 12 and settings["passes"] == [[0, 12 * lab.BATCH]]


BUDGETS = st.lists(st.integers(1, 50), min_size=1, max_size=4).map(
    lambda steps: [1000 * sum(steps[: i + 1]) for i in range(len(steps))]
)


@given(BUDGETS, st.integers(0, 3), st.integers(0, 5))
def test_raised_at_once_or_in_steps_before_any_is_reached_the_passes_are_the_same(budgets, pass_index, row):
    position, first = Position(pass_index, row), ((0, 1000),)
    in_steps = first
    for budget in budgets:
        in_steps = passes_with(in_steps, position, budget)
    assert in_steps == passes_with(first, position, budgets[-1])


@given(st.integers(1, 50), st.integers(1, 50), st.integers(0, 3), st.integers(0, 5))
def test_what_was_begun_stays_and_every_new_token_is_gone_through(first, more, pass_index, row):
    passes = passes_with(((0, first),), Position(pass_index, row), first + more)
    begun = pass_index + (row > 0)
    assert passes[:begun] == ((0, first),) * begun
    assert passes[begun] == (first if begun else 0, first + more)
    assert passes[-1] == (0, first + more)


def test_extended_again_after_a_kill_in_the_middle_of_being_extended(lab, monkeypatch):
    lab.run("whole", recipe={**EVEN, "passes": 4})
    with pytest.raises(Stopped):
        lab.run("out", recipe=EVEN, stop=lab.StopAt(13))  # in the cool-down
    honest, calls = going_on.drop_after, []

    def killed(*given, **named):
        calls.append(1)
        raise KeyboardInterrupt

    monkeypatch.setattr(going_on, "drop_after", killed)
    with pytest.raises(KeyboardInterrupt):
        lab.run("out", recipe={**EVEN, "passes": 2})
    monkeypatch.setattr(going_on, "drop_after", honest)
    assert calls
    lab.run("out", recipe={**EVEN, "passes": 4})
    lab.assert_equal("out", "whole", ["train"])


def test_a_damaged_checkpoint_of_an_extended_stage_is_passed_over_and_told(lab):
    lab.run("whole", recipe={**EVEN, "passes": 2})
    lab.run("out", recipe=EVEN)
    with pytest.raises(Stopped):
        lab.run("out", recipe={**EVEN, "passes": 2}, stop=lab.StopAt(6))
    newest = max((lab.folder / "out" / "checkpoints").glob("step-*"))
    (newest / "state.json").write_text("")
    lab.run("out", recipe={**EVEN, "passes": 2})
    assert any(kind == "damaged" and newest.name in message for kind, message in lab.events)
    lab.assert_equal("out", "whole", ["train"])


@pytest.mark.parametrize("cooldown", [0.0, 0.25])
def test_without_checkpoint_and_start_nothing_is_trained_from_the_wrong_weights(cooldown, lab):
    recipe = {**EVEN, "cooldown_fraction": cooldown}
    start = lab.start(name="gone")
    lab.run("out", recipe=recipe, start=start)
    shutil.rmtree(start)
    if cooldown:
        with pytest.raises(Stopped):
            lab.run("out", recipe={**recipe, "passes": 2}, start=start, stop=lab.StopAt(3))
    shutil.rmtree(lab.folder / "out" / "checkpoints")
    with pytest.raises((RecipeError, SurgeryError), match=r"is gone|there is no folder"):
        lab.run("out", recipe={**recipe, "passes": 2}, start=start)


@pytest.mark.parametrize("killed_before_training", [True, False])
def test_a_stage_that_goes_on_from_another_sees_the_added_text(killed_before_training, lab, text_file, monkeypatch):
    def shards(budget):
        tokenizer = Shards.open(lab.shards).tokenizer
        return prepare(
            [str(text_file)],
            lab.folder / "data",
            tokenizer=tokenizer,
            token_budget=budget,
            min_documents=60,
            may_grow=True,
        )

    recipe = {**EVEN, "passes": 4}
    lab.run("before", shards=shards(3000), tokens=3000, recipe=recipe)
    trunk = open_checkpoint(lab.folder / "before")
    position = json.loads((trunk / "state.json").read_text())["position"]
    if killed_before_training:

        def killed(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(learner.Learner, "step", killed)
            with pytest.raises(KeyboardInterrupt):
                lab.run(
                    "after", shards=Shards.open(lab.folder / "data"), tokens=3000, recipe=recipe, moments_from=trunk
                )
    lab.run("after", shards=shards(4000), tokens=4000, recipe=recipe, moments_from=trunk)
    passes = json.loads((lab.folder / "after" / "settings.json").read_text())["passes"]
    assert passes == [*[[0, 3000]] * (position["pass_index"] + 1), [3000, 4000], [0, 4000]]


def test_a_micro_batch_counts_from_where_training_goes_on_and_not_for_what_is_finished(lab, monkeypatch):
    def size():
        return json.loads((lab.folder / "out" / "probe.json").read_text())["micro_batch"]

    def killed(*_):
        raise KeyboardInterrupt

    with pytest.raises(Stopped):
        lab.run("out", recipe={"micro_batch": 8}, stop=lab.StopAt(6))
    with monkeypatch.context() as patch:
        patch.setattr(stage, "load_model", killed)
        with pytest.raises(KeyboardInterrupt):
            lab.run("out", recipe={"micro_batch": 3})
    lab.run("out", recipe={"micro_batch": 8})
    assert size() == 8
    lab.run("out", recipe={"micro_batch": 3})
    assert size() == 8


@pytest.mark.reliability("R21")
def test_fewer_passes_are_refused_though_the_tokens_are_as_many(lab):
    lab.run("out", tokens=6 * lab.BATCH, recipe={**EVEN, "passes": 2})
    with pytest.raises(RecipeError, match="passes: 2 -> 1"):
        lab.run("out", tokens=12 * lab.BATCH, recipe=EVEN)


def test_a_look_that_is_not_taken_again_keeps_its_line(lab):
    with pytest.raises(Stopped):
        lab.run("out", recipe={"validations": 2}, stop=lab.StopAt(9))
    steps = [line["step"] for line in lab.losses("out") if line["kind"] == "validation"]
    lab.run("out", recipe={"validations": 3})
    after = [line["step"] for line in lab.losses("out") if line["kind"] == "validation"]
    assert after == sorted({*steps, 0, 4, 8, 12}) or after == sorted({*steps, 8, 12})


def test_a_damaged_state_to_go_on_from_is_refused(lab):
    lab.run("before", recipe=EVEN)
    trunk = open_checkpoint(lab.folder / "before")
    content = bytearray((trunk / "optimizer.safetensors").read_bytes())
    content[-3] ^= 0x40
    (trunk / "optimizer.safetensors").write_bytes(bytes(content))
    with pytest.raises(TrainingError, match="from which training was to go on, is damaged or gone"):
        lab.run("after", recipe=EVEN, moments_from=trunk)


@pytest.mark.reliability("R13")
@pytest.mark.parametrize("keep", [1, 2, 4])
def test_as_many_checkpoints_are_kept_as_were_asked_for(keep, lab):
    recipe = {**EVEN, "save_every_minutes": 1e-9, "keep_checkpoints": keep}
    with pytest.raises(Stopped):
        lab.run("out", recipe=recipe, stop=lab.StopAt(9))
    kept = sorted(path.name for path in (lab.folder / "out" / "checkpoints").glob("step-*"))
    newest = int(kept[-1].removeprefix("step-"))
    assert kept == [f"step-{step:08d}" for step in range(newest - keep + 1, newest + 1)]
    assert (lab.folder / "out" / "checkpoints" / "latest").read_text() == kept[-1] + "\n"
