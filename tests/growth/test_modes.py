"""Growing a trained child: what it has learned stays, the optimiser goes on, and no-ops change nothing."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from inheritune.errors import Stopped, SurgeryError
from inheritune.growth import stages
from inheritune.job import grow
from inheritune.surgery.folder import load_model
from inheritune.training.gradient import Losses
from inheritune.training.learner import Learner
from inheritune.training.sinks import Silent

THREE = ("llama", "gpt2", "qwen3")
GROWING = {"growth__target": 0.1, "growth__start_depth": 1, "growth__step": 1, "growth__max_depth": 3}


class Spy:
    """Notes what each stage starts from, while it is there."""

    def __init__(self, monkeypatch):
        self.starts, self.open, self.given = {}, {}, {}
        self.honest = stages.train
        monkeypatch.setattr(stages, "train", self)

    def __call__(self, model, shards, out, **settings):
        if model.exists():
            self.starts[settings["name"]] = dict(load_model(model).named_parameters())
        self.given[settings["name"]] = settings
        result = self.honest(model, shards, out, **settings)
        opened = stages.open_checkpoint(out)
        self.open[settings["name"]] = {
            file: load_file(opened / file) for file in ("model.safetensors", "optimizer.safetensors")
        }
        return result


@pytest.mark.reliability("R23")
@pytest.mark.parametrize("family", THREE)
def test_the_trained_child_keeps_its_weights_and_gets_the_next_layers_on_top(family, recipe, tmp_path, monkeypatch):
    spy = Spy(monkeypatch)
    summary = grow(recipe(family, growth__mode="continue", **GROWING), progress=Silent()).summary
    assert [each["depth"] for each in summary["rounds"]] == [1, 2, 3]
    reference = dict(
        load_model(tmp_path / ("reference" if family == "llama" else f"reference-{family}")).named_parameters()
    )
    for before, after in (("round-1", "round-2"), ("round-2", "round-3")):
        kept, start = spy.open[before]["model.safetensors"], spy.starts[after]
        assert all(torch.equal(start[name], kept[name]) for name in kept if name in start)
        added = set(start) - set(kept)
        assert added and all(torch.equal(start[name], reference[name]) for name in added)


@pytest.mark.parametrize("family", THREE)
def test_the_optimiser_keeps_its_moments_for_kept_tensors_alone(family, recipe, monkeypatch):
    seen = {}

    def spy(learner, norm):
        if learner.plan.stage not in seen:  # before the first step of the stage
            seen[learner.plan.stage] = [
                {name: value.clone() for name, value in learner.optimiser.state.get(parameter, {}).items()}
                for group in learner.optimiser.param_groups
                for parameter in group["params"]
            ]
        step(learner, norm)

    step = Learner.step
    monkeypatch.setattr(Learner, "step", spy)
    modes = Spy(monkeypatch)
    grow(recipe(family, growth__mode="continue", **GROWING), progress=Silent())
    assert not any(seen["round-1"])
    kept = [each for each in seen["round-2"] if each]
    saved = modes.open["round-1"]["optimizer.safetensors"]
    names = [name.removeprefix("exp_avg/") for name in saved if name.startswith("exp_avg/")]
    assert len(kept) == len(names) < len(seen["round-2"])
    expected = sorted(float(saved[f"exp_avg/{name}"].double().sum()) for name in names)
    assert sorted(float(each["exp_avg"].cpu().double().sum()) for each in kept) == expected
    steps = {float(each["step"]) for each in kept}
    assert steps == {float(saved[f"step/{names[0]}"])}


def test_training_goes_on_from_before_the_cool_down_with_a_short_rise_and_the_next_rows(recipe, tmp_path, read):
    grow(recipe(growth__mode="continue", growth__rewarm_fraction=0.3, **GROWING), progress=Silent())
    lines = [line for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines() if '"train"' in line]
    rates = {}
    for line in map(json.loads, lines):
        rates.setdefault(line["stage"], []).append(line["lr"])
    assert rates["round-1"][0] == 1e-3  # 2 % of seven steps are none
    assert rates["round-2"][:3] == pytest.approx([1e-3 / 2, 1e-3, 1e-3])
    assert rates["round-2"][-1] < 1e-3
    state = read(tmp_path / "run" / "stages" / "round-3" / "checkpoints" / "step-00000006" / "state.json")
    assert state["position"] == {"pass_index": 2, "row": (3 * 6 * 8) - 2 * 62}  # three times six steps of eight rows


@pytest.mark.reliability("R23")
@pytest.mark.parametrize("family", THREE)
def test_no_ops_leave_the_loss_where_it_was(family, recipe, tmp_path):
    summary = grow(recipe(family, growth__mode="identity", **GROWING), progress=Silent()).summary
    first, second, third = summary["rounds"]
    assert second["start_watch_loss_nats"] == first["open_watch_loss_nats"]
    assert third["start_watch_loss_nats"] == second["open_watch_loss_nats"]
    assert first["bump_nats"] is None
    assert second["bump_nats"] == third["bump_nats"] == 0.0
    assert third["loss_nats"] != third["start_watch_loss_nats"]


def test_the_bump_of_the_other_modes_is_what_the_growth_did_to_the_loss(recipe, tmp_path):
    for mode in ("restart", "continue"):
        run_dir = str(tmp_path / mode)
        summary = grow(recipe(growth__mode=mode, run_dir=run_dir, **GROWING), progress=Silent()).summary
        first, second, _ = summary["rounds"]
        before = first["watch_loss_nats"] if mode == "restart" else first["open_watch_loss_nats"]
        assert second["bump_nats"] == pytest.approx(second["start_watch_loss_nats"] - before)
        assert second["bump_nats"] != 0
        assert [each["spent_tokens"] for each in summary["rounds"]] == [7 * 256] * 3
        page = (tmp_path / mode / "report.html").read_text()
        assert "bump" in page


@pytest.mark.reliability("R2")
@pytest.mark.parametrize("mode", ["restart", "continue", "identity"])
def test_a_search_stopped_between_and_inside_rounds_equals_the_undisturbed_one(
    mode, recipe, tmp_path, monkeypatch, stop_after
):
    asked = recipe(growth__mode=mode, **GROWING)
    whole = grow(asked, progress=Silent()).summary
    shutil.move(tmp_path / "run", tmp_path / "whole")
    honest = stages.train
    for stop_in, after in (
        ("round-1", 3),
        ("round-1", 2),
        ("round-2", 0),
        ("round-2", 5),
        ("round-3", 1),
        ("scratch", 9),
    ):

        def stopping(model, shards, out, *, name, stop, stop_in=stop_in, after=after, **settings):
            if name == stop_in and not (out / "result.json").exists():
                settings["progress"] = stop_after(after, stop)
            return honest(model, shards, out, name=name, stop=stop, **settings)

        monkeypatch.setattr(stages, "train", stopping)
        with pytest.raises(Stopped):
            grow(asked, progress=Silent())
    monkeypatch.setattr(stages, "train", honest)
    again = grow(asked, progress=Silent()).summary
    for name in ("model", "stages/scratch/model"):
        left, right = (tmp_path / each / name / "model.safetensors" for each in ("whole", "run"))
        assert left.read_bytes() == right.read_bytes(), name
    timed = ("elapsed_s", "peak_memory_bytes")
    for left, right in zip(whole["rounds"], again["rounds"], strict=True):
        assert {k: v for k, v in left.items() if k not in timed} == {k: v for k, v in right.items() if k not in timed}
    scores = sorted(
        path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").glob("stages/*/validation/*.npy")
    )
    assert len(scores) > 10
    assert all(np.array_equal(np.load(tmp_path / "whole" / each), np.load(tmp_path / "run" / each)) for each in scores)


def test_a_round_that_is_finished_keeps_no_checkpoint_once_the_next_one_is(recipe, tmp_path):
    grow(recipe(growth__mode="continue", **GROWING), progress=Silent())
    kept = {path.parents[1].name for path in (tmp_path / "run").glob("stages/*/checkpoints/step-*")}
    assert kept == {"round-3", "scratch"}


def test_a_family_that_cannot_hold_no_ops_is_refused(recipe, save_reference, tmp_path):
    save_reference("opt", tmp_path / "reference-opt", do_layer_norm_before=False)
    with pytest.raises(SurgeryError, match="cannot begin as a no-op"):
        grow(recipe("opt", growth__mode="identity", **GROWING), progress=Silent())


@pytest.mark.parametrize("mode", ["continue", "identity"])
def test_a_cosine_schedule_cannot_be_grown_from(mode, recipe):
    with pytest.raises(ValueError, match=f"growth.mode {mode} goes on from before a cool-down"):
        recipe(growth__mode=mode, train__schedule="cosine")


def test_the_reference_teaches_rounds_and_baseline_where_asked(recipe, tmp_path, monkeypatch):
    spy = Spy(monkeypatch)
    grow(recipe(train__distill_weight=0.5, growth__max_depth=2), progress=Silent())
    assert {name: given["teacher"] for name, given in spy.given.items()} == {
        "round-1": tmp_path / "reference",
        "scratch": tmp_path / "reference",
    }


def test_layers_added_in_a_round_are_the_fresh_ones(recipe, monkeypatch):
    spy = Spy(monkeypatch)
    settings = {"train__inherited_lr_scale": 0.5, "train__freeze": ["model.embed_tokens.*"], **GROWING}
    grow(recipe(growth__mode="continue", **settings), progress=Silent())
    fresh = {name: given["fresh_layers"] for name, given in spy.given.items()}
    assert {name: value if value == "all" else list(value) for name, value in fresh.items()} == {
        "round-1": [],
        "round-2": [1],
        "round-3": [2],
        "scratch": "all",
    }
    assert spy.given["scratch"]["recipe"].freeze == []


def test_the_report_shows_the_average_and_what_was_left_out(recipe, tmp_path, monkeypatch):
    honest, calls = Learner.gradient, []

    def once(*given):
        calls.append(1)
        losses = honest(*given)
        return Losses(float("nan"), None) if len(calls) == 3 else losses

    monkeypatch.setattr(Learner, "gradient", once)
    settings = {"growth__max_depth": 2, "baselines": [], "train__average_half_life": 500}
    summary = grow(recipe(**settings), progress=Silent()).summary
    (each,) = summary["rounds"]
    assert each["skipped_steps"] == 1
    page = (tmp_path / "run" / "report.html").read_text()
    assert "1 bad step left out" in page
    assert "the moving average of the weights has" in page
    assert (tmp_path / "run" / "stages" / "round-1" / "average" / "model.safetensors").exists()
