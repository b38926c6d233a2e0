"""R18: a loss that is not finite, a gradient that overflows, a loss that leaps: skip, stop or rewind."""

import math

import pytest
import torch

from inheritune.errors import Stopped, TrainingError
from inheritune.training import learner
from inheritune.training.gradient import Losses
from inheritune.training.health import MOST_SETBACKS
from inheritune.training.learner import Learner

pytestmark = pytest.mark.reliability("R18")


class Trouble:
    """Makes the step with certain rows bad, however often it is tried; notes weights and moments around it."""

    def __init__(self, monkeypatch, bad_steps, kind="nan"):
        self.honest, self.kind, self.bad = Learner.gradient, kind, set(bad_steps)
        self.rows = {}  # what each step of an undisturbed run sees
        self.snapshots = []
        self.after = []
        self.watch_next = False
        monkeypatch.setattr(Learner, "gradient", lambda learner, rows: self(learner, rows))

    def learn(self, run):
        """Note the rows of every step of an undisturbed run; those of the bad steps are bad from then on."""
        bad, self.bad = self.bad, set()
        seen = []
        self.note = seen.append
        run()
        self.note = None
        self.bad = {self.key(seen[step]) for step in bad}

    note = None

    @staticmethod
    def key(rows):
        return tuple(rows.flatten().tolist())

    @staticmethod
    def snapshot(optimiser):
        state = []
        for group in optimiser.param_groups:
            for parameter in group["params"]:
                moments = optimiser.state.get(parameter, {})
                state += [parameter.detach().clone(), *(moments[name].clone() for name in sorted(moments))]
        return state

    def __call__(self, learner, rows):
        if self.note:
            self.note(rows.clone())
        if self.watch_next:
            self.after.append(self.snapshot(learner.optimiser))
            self.watch_next = False
        losses = self.honest(learner, rows)
        if self.key(rows) in self.bad:
            self.snapshots.append(self.snapshot(learner.optimiser))
            self.watch_next = True
            if self.kind == "gradient":
                learner.optimiser.param_groups[0]["params"][0].grad.view(-1)[0] = torch.inf
                return losses
            return Losses(math.nan if self.kind == "nan" else 50 * losses.token_nats, None)
        return losses


def unchanged(trouble):
    return all(
        len(before) == len(after) and all(map(torch.equal, before, after))
        for before, after in zip(trouble.snapshots, trouble.after, strict=True)
    )


@pytest.mark.parametrize("kind", ["nan", "gradient"])
def test_a_skipped_step_leaves_weights_and_moments_as_they_were(kind, lab, monkeypatch):
    trouble = Trouble(monkeypatch, {5}, kind)
    trouble.learn(lambda: lab.run("learn"))
    result = lab.run("out")
    assert len(trouble.snapshots) == 1 and unchanged(trouble)
    assert (result.loop.steps, result.loop.skipped) == (12, 1)
    assert next(event for kind_, event in lab.events if kind_ == "bad step").endswith("its update is left out")
    skipped = [line for line in lab.losses("out") if line.get("skipped")]
    assert [line["step"] for line in skipped] == [6]
    assert skipped[0]["loss_nats"] is None or kind == "gradient"


def test_a_leap_of_fifty_times_is_skipped_too(lab, monkeypatch):
    trouble = Trouble(monkeypatch, {70}, "leap")
    recipe = {"batch_tokens": 2 * lab.LENGTH}
    tokens = 75 * 2 * lab.LENGTH
    trouble.learn(lambda: lab.run("learn", tokens=tokens, recipe=recipe))
    assert lab.run("out", tokens=tokens, recipe=recipe).loop.skipped == 1
    assert unchanged(trouble)
    assert any("leapt to" in message for _, message in lab.events)


@pytest.mark.parametrize("policy", ["skip", "rewind"])
def test_stopped_around_a_bad_step_equals_the_run_that_was_not(policy, lab, monkeypatch):
    trouble = Trouble(monkeypatch, {5, 8})
    recipe = {"on_bad_step": policy, "validations": 3}
    trouble.learn(lambda: lab.run("learn", recipe=recipe))
    lab.run("whole", recipe=recipe)
    for count in (5, 4, 3, 2):
        with pytest.raises(Stopped):
            lab.run("parts", recipe=recipe, stop=lab.StopAt(count))
    lab.run("parts", recipe=recipe)
    lab.assert_equal("parts", "whole")


def test_rewinding_goes_back_to_the_last_validation_and_on_with_the_text_after_the_bad_rows(lab, monkeypatch):
    trouble = Trouble(monkeypatch, {6})
    recipe = {"on_bad_step": "rewind", "validations": 3}  # looks after 0, 4, 8 and 12 steps
    seen = []
    trouble.learn(lambda: lab.run("learn", recipe=recipe))
    trouble.note = lambda rows: seen.append(trouble.key(rows))
    result = lab.run("out", recipe=recipe)
    assert next(event for kind, event in lab.events if kind == "bad step").endswith(
        "back to step 4, on with the text after it"
    )
    assert result.loop.steps == 12 and result.loop.skipped == 0
    bad = seen.index(next(iter(trouble.bad)))
    assert bad == 6 and len(seen) == 7 + 8  # four steps, three in vain, then the eight that were left
    assert len(set(seen)) == len(seen)  # no row is seen again
    steps = [line["step"] for line in lab.losses("out") if line["kind"] == "train"]
    assert steps == list(range(1, 13))


def test_the_stop_policy_ends_before_the_update_and_names_where_it_comes_from(lab, monkeypatch):
    trouble = Trouble(monkeypatch, {5}, "gradient")
    trouble.learn(lambda: lab.run("learn"))
    with pytest.raises(
        TrainingError, match=r"gradient norm is inf at step 5\. Where it comes from: gradient of .*: 1 of"
    ):
        lab.run("out", recipe={"on_bad_step": "stop"})
    assert trouble.after == []
    assert lab.run("out").loop.skipped == 1  # the policy may change under a run


@pytest.mark.parametrize("policy", ["skip", "rewind"])
def test_a_run_that_is_bad_again_and_again_stops_with_layer_and_tensor(policy, lab, monkeypatch):
    honest, calls = Learner.gradient, []

    def poisoned(learner, rows):
        calls.append(rows)
        if len(calls) == 4:
            weight = learner.model.model.layers[1].mlp.up_proj.weight
            with torch.no_grad():
                weight[0, 0] = torch.nan
        return honest(learner, rows) if policy == "skip" else Losses(math.nan, None)

    monkeypatch.setattr(Learner, "gradient", poisoned)
    where = r"weight model\.layers\.1\.mlp\.up_proj\.weight: 1 of 2048" if policy == "skip" else "Where it comes from"
    with pytest.raises(TrainingError, match=rf"{MOST_SETBACKS} setbacks in a row.*{where}"):
        lab.run("out", recipe={"on_bad_step": policy, "validations": 1})
    assert len(calls) == (3 if policy == "skip" else 0) + MOST_SETBACKS


def test_weights_that_went_bad_are_named_at_a_validation_too(lab, monkeypatch):
    honest = Learner.step

    def poisoned(learner, norm):
        honest(learner, norm)
        with torch.no_grad():
            learner.optimiser.param_groups[0]["params"][0].view(-1)[0] = torch.inf

    monkeypatch.setattr(Learner, "step", poisoned)
    with pytest.raises(
        TrainingError, match=r"after step 1: the loss on document .* weight model\.embed_tokens\.weight: 1 of"
    ):
        lab.run("out", recipe={"validations": 12})


EVEN = {"warmup_fraction": 0.0, "cooldown_fraction": 0.25}


@pytest.mark.parametrize("case", ["policy", "validations", "extension"])
def test_rewinding_that_begins_under_way_goes_back_to_where_it_was_taken_up(case, lab, monkeypatch):
    trouble = Trouble(monkeypatch, {13 if case == "extension" else 7})
    longer = {**EVEN, "passes": 2, "on_bad_step": "rewind", "validations": 1}
    if case == "extension":
        trouble.learn(lambda: lab.run("learn", recipe={**EVEN, "passes": 2}))
        lab.run("out", recipe={**EVEN, "on_bad_step": "rewind", "validations": 1})
        changed = longer
    else:
        trouble.learn(lambda: lab.run("learn"))
        before = {"on_bad_step": "stop"} if case == "policy" else {"on_bad_step": "rewind", "validations": 1}
        with pytest.raises(Stopped):
            lab.run("out", recipe=before, stop=lab.StopAt(6))
        changed = {"on_bad_step": "rewind", "validations": 3 if case == "validations" else 1}
    result = lab.run("out", recipe=changed)
    assert result.loop.steps == (24 if case == "extension" else 12)
    assert sum(kind == "bad step" for kind, _ in lab.events) == 1
    assert lab.losses("out")[0]["loss_nats"] == lab.losses("learn")[0]["loss_nats"]  # and not from trained weights


@pytest.mark.parametrize("minutes", [1000.0, 1e-9])
def test_setbacks_are_counted_by_steps_and_not_by_the_clock(minutes, lab, monkeypatch):
    trouble = Trouble(monkeypatch, set(range(2, 22, 2)))
    trouble.learn(lambda: lab.run("learn", recipe={"validations": 1}, tokens=24 * lab.BATCH))
    recipe = {"on_bad_step": "rewind", "validations": 24, "save_every_minutes": minutes}
    result = lab.run("out", recipe=recipe, tokens=24 * lab.BATCH)
    assert sum(kind == "bad step" for kind, _ in lab.events) == 10
    assert result.loop.spent_tokens == result.loop.tokens + 10 * lab.BATCH  # what was undone was paid for


def test_memory_that_runs_out_draws_no_dropout_twice(lab, monkeypatch):
    honest = learner.accumulate_gradient

    def out_of_memory(functions, rows, choices):
        losses = honest(functions, rows, choices)
        if choices.micro_batch > 4:
            raise torch.OutOfMemoryError("out of memory")
        return losses

    monkeypatch.setattr(learner, "accumulate_gradient", out_of_memory)
    start, recipe = lab.start("gpt2"), {"on_bad_step": "rewind", "dropout": 0.2, "micro_batch": 8}
    lab.run("whole", recipe=recipe, start=start)
    take_step, calls = Learner.step, []

    def killed(*given):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        take_step(*given)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", killed)
        with pytest.raises(KeyboardInterrupt):
            lab.run("parts", recipe=recipe, start=start)
    lab.run("parts", recipe=recipe, start=start)
    lab.assert_equal("parts", "whole")
