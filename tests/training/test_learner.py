"""A learner leaves the process as it was, and puts back what it saved; how it computes is recorded."""

import json

import pytest
import torch

from inheritune.data.batches import Position
from inheritune.errors import TrainingError
from inheritune.recipe import train_recipe
from inheritune.training.checkpoint import State
from inheritune.training.learner import learning
from inheritune.training.plan import LoopPlan
from inheritune.training.schedule import plan_schedule

LENGTH = 16


@pytest.fixture
def learn(build_model, tmp_path):
    """``learn(**recipe)`` -> a learner of a tiny Llama, to be used with ``with``."""

    def begin(probe=tmp_path / "probe.json", **settings):
        recipe = train_recipe({"compile": False, "precision": "float32", "micro_batch": 4, **settings})
        plan = LoopPlan("round-1", "round 1", plan_schedule(recipe, 10), 4, LENGTH, target_nats=None, seed=7)
        return learning(
            build_model("llama"), plan=plan, recipe=recipe, probe=probe, record_event=lambda kind, message: None
        )

    return begin


def some_rows(seed):
    return torch.randint(0, 256, (4, LENGTH + 1), generator=torch.Generator().manual_seed(seed))


def take_step(learner, seed):
    losses = learner.gradient(some_rows(seed).to(learner.model.device))
    norm = learner.gradient_norm()
    learner.step(norm)
    return losses.token_nats, float(norm)


def test_threads_determinism_and_random_numbers_are_put_back(learn, tmp_path):
    with learn() as learner:
        recorded = learner.choices.to_json()
    threads = torch.get_num_threads() + 1
    (tmp_path / "probe.json").write_text(json.dumps({**recorded, "threads": threads}))
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.get_rng_state()
    with learn(dropout=0.2) as learner:
        assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == (threads, True)
        take_step(learner, 0)
    after = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.get_rng_state()
    assert after[:2] == before[:2]
    assert torch.equal(after[2], before[2])


def test_what_was_saved_is_put_back_and_goes_on_the_same(learn, tmp_path):
    state = State(step=1, tokens=4 * LENGTH, position=Position(0, 4), elapsed_s=1.0)
    with learn(average_half_life=100, dropout=0.2) as learner:
        take_step(learner, 0)
        learner.save(tmp_path, state, held=())
        expected = take_step(learner, 1)
        weights = [each.detach().clone() for each in learner.model.parameters()]
        average = {name: each.clone() for name, each in learner.average.tensors().items()}
        assert learner.load(tmp_path / "step-00000001") == state
        assert take_step(learner, 1) == expected
        assert all(map(torch.equal, learner.model.parameters(), weights))
        assert all(torch.equal(each, average[name]) for name, each in learner.average.tensors().items())
        files = (tmp_path / "step-00000001").glob("*.safetensors")
        assert sum(path.stat().st_size for path in files) == pytest.approx(learner.checkpoint_bytes, rel=0.1)


def test_leaner_choices_are_recorded_until_none_is_left(learn, tmp_path):
    with learn(activation_checkpointing="auto") as learner:
        said = []
        with pytest.raises(TrainingError, match="round 1: not enough memory for one sequence of 16 tokens"):
            for _ in range(4):
                said.append(learner.change_to(learner.leaner_choices()))
                recorded = json.loads((tmp_path / "probe.json").read_text())
                assert recorded == json.loads(json.dumps(learner.choices.to_json()))
    assert [message.split()[0] for message in said] == ["micro-batch", "micro-batch", "from"]
    with learn(activation_checkpointing="auto") as again:
        assert (again.choices.micro_batch, again.choices.activation_checkpointing) == (1, True)
