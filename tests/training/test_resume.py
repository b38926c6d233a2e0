"""R2: stopped anywhere, a stage goes on from the very tensors, and ends where the undisturbed one does."""

from dataclasses import replace

import pytest
import torch

from inheritune.errors import Stopped
from inheritune.machine.stop import StopRequest
from inheritune.training import learner
from inheritune.training.learner import Learner

pytestmark = pytest.mark.reliability("R2")

PASSES, STEPS_A_PASS = 3, 4
PLACES = {
    "before the first step": 0,
    "inside a pass": 2,
    "at the last step of a pass": STEPS_A_PASS - 1,
    "at the first step of the next pass": STEPS_A_PASS,
    "in the cool-down": 11,
}


class Recorder:
    """What the optimiser holds, weights and moments, before each step; may ask for a stop at one of them."""

    def __init__(self, monkeypatch, stop=None, stop_at=None):
        self.states = []
        self.honest = Learner.gradient
        self.stop, self.stop_at = stop, stop_at
        monkeypatch.setattr(Learner, "gradient", lambda learner, rows: self(learner, rows))

    def __call__(self, learner, rows):
        state = []
        for group in learner.optimiser.param_groups:
            for parameter in group["params"]:
                moments = learner.optimiser.state.get(parameter, {})
                state += [parameter.detach().clone(), *(moments[name].clone() for name in sorted(moments))]
        self.states.append(state)
        losses = self.honest(learner, rows)
        if self.stop and len(self.states) == self.stop_at:
            self.stop.requested = True
        return losses


def equal(left, right):
    return len(left) == len(right) and all(map(torch.equal, left, right))


@pytest.mark.parametrize("place", [*PLACES, "asked for between two micro-batches"])
def test_it_goes_on_from_the_very_tensors_and_ends_the_same(place, lab, monkeypatch):
    settings = {"tokens": STEPS_A_PASS * lab.BATCH + 1, "recipe": {"passes": PASSES, "micro_batch": 3}}
    honest = Learner.gradient
    whole = Recorder(monkeypatch)
    lab.run("whole", **settings)
    assert len(whole.states) == PASSES * STEPS_A_PASS
    stop, steps = StopRequest(), PLACES.get(place, 5)
    monkeypatch.setattr(Learner, "gradient", honest)
    if place == "before the first step":
        stop.requested = True
    elif place in PLACES:
        Recorder(monkeypatch, stop, steps)
    else:
        accumulate, calls = learner.accumulate_gradient, []

        def interrupted(functions, rows, choices):
            calls.append(1)
            body = functions.body

            def asked(ids):
                stop.requested = stop.requested or len(calls) == steps  # the first of three micro-batches
                return body(ids)

            return accumulate(replace(functions, body=asked), rows, choices)

        monkeypatch.setattr(learner, "accumulate_gradient", interrupted)
    with pytest.raises(Stopped):
        lab.run("parts", stop=stop, **settings)
    monkeypatch.undo()
    resumed = Recorder(monkeypatch)
    lab.run("parts", **settings)
    assert len(resumed.states) == len(whole.states) - steps
    assert all(map(equal, resumed.states, whole.states[steps:]))  # the first of them before any update
    lab.assert_equal("parts", "whole")
