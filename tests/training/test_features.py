"""The options of training, each through a whole stage: it does what it says, and resumes exactly."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from inheritune.data.shards import Shards
from inheritune.errors import RecipeError, Stopped
from inheritune.evaluation.statistics import token_mean
from inheritune.evaluation.token_loss import score_documents
from inheritune.surgery.folder import load_model
from inheritune.training import learner

OPTIONS = {
    "average": {"average_half_life": 1000},
    "half-life": {"beta2_half_life": 5000},
    "frozen": {"freeze": ["model.embed_tokens.*", "*.layers.0.*"]},
    "layer-wise": {"inherited_lr_scale": 0.1},
    "dropout": {"dropout": 0.1},
    "taught": {"distill_weight": 0.5, "distill_temperature": 2.0},
}


def settings_for(lab, option):
    return {"teacher": lab.start("llama", "teacher", num_hidden_layers=6)} if option == "taught" else {}


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_changes_the_run_and_resumes_exactly(option, lab):
    settings = settings_for(lab, option)
    lab.run("plain")
    lab.run("whole", recipe=OPTIONS[option], **settings)
    if option == "average":  # beside the raw weights, which it leaves alone
        assert lab.same(lab.weights("plain"), lab.weights("whole"))
    else:
        assert not lab.same(lab.weights("plain"), lab.weights("whole"))
    for count in (3, 5):
        with pytest.raises(Stopped):
            lab.run("parts", recipe=OPTIONS[option], stop=lab.StopAt(count), **settings)
    lab.run("parts", recipe=OPTIONS[option], **settings)
    lab.assert_equal("parts", "whole")


def test_the_average_is_scored_beside_the_raw_weights_and_saved_as_a_model(lab):
    result = lab.run("out", recipe=OPTIONS["average"])
    watch = Shards.open(lab.shards).sequence("watch")
    documents = [watch.document(index) for index in range(watch.num_documents)]
    for folder, loss in ((result.model, result.loop.watch_nats), (result.average, result.loop.average_watch_nats)):
        sums = score_documents(load_model(folder), documents, sequence_length=lab.LENGTH)
        assert token_mean(sums) == pytest.approx(loss, abs=1e-6)
    assert result.loop.average_watch_nats != result.loop.watch_nats
    looks = [line for line in lab.losses("out") if line["kind"] == "validation"]
    assert all("average_loss_nats" in line for line in looks)
    assert looks[0]["average_loss_nats"] == looks[0]["loss_nats"]  # before the first step they are the same
    kept = np.load(lab.folder / "out" / "validation" / f"average-{result.loop.tokens}.npy")
    assert token_mean(kept) == result.loop.average_watch_nats


def test_the_average_follows_its_closed_form(lab):
    result = lab.run(
        "out", recipe={**OPTIONS["average"], "save_every_minutes": 1e-9, "keep_checkpoints": 99}, stop=None
    )
    assert result.average is not None
    with pytest.raises(Stopped):
        lab.run(
            "steps",
            recipe={**OPTIONS["average"], "save_every_minutes": 1e-9, "keep_checkpoints": 99},
            stop=lab.StopAt(6),
        )
    name, share = "model.norm.weight", 0.5 ** (lab.BATCH / 1000)
    saved = lab.folder / "steps" / "checkpoints"
    assert (saved / "step-00000003" / "average.safetensors").exists()
    before = lab.checkpoint("steps", 2, "average.safetensors")[name].double()
    weight = lab.checkpoint("steps", 3)[name].double()
    after = lab.checkpoint("steps", 3, "average.safetensors")[name].double()
    assert torch.allclose(after, share * before + (1 - share) * weight, atol=1e-7)


def test_frozen_tensors_stay_bit_for_bit_and_have_no_moments(lab):
    from safetensors.torch import load_file

    lab.run("out", recipe=OPTIONS["frozen"])
    start, end = load_file(lab.start() / "model.safetensors"), lab.weights("out")
    frozen = {name for name in start if name.startswith(("model.embed_tokens.", "model.layers.0."))}
    assert frozen and all(torch.equal(start[name], end[name]) for name in frozen)
    assert all(not torch.equal(start[name], end[name]) for name in set(start) - frozen)
    moments = lab.checkpoint("out", 10, "optimizer.safetensors")
    assert not any(name.startswith(("exp_avg/model.embed_tokens.", "exp_avg/model.layers.0.")) for name in moments)
    assert any("tensors are not trained" in message for _, message in lab.events)
    with pytest.raises(RecipeError, match=r"matches no parameter\. Nearest is"):
        lab.run("typo", recipe={"freeze": ["model.embed_token.*"]})


def test_inherited_layers_move_less_and_grown_ones_at_full_rate(lab, monkeypatch):
    rates = []
    honest = learner.Learner.step

    def spy(self, norm):
        rates.append({group["lr_scale"]: group["lr"] for group in self.optimiser.param_groups})
        honest(self, norm)

    monkeypatch.setattr(learner.Learner, "step", spy)
    lab.run("out", recipe=OPTIONS["layer-wise"], fresh_layers=[3])
    assert all(set(each) == {0.1, 1.0} for each in rates)
    assert all(each[0.1] == pytest.approx(0.1 * each[1.0]) for each in rates)
    rates.clear()
    lab.run("fresh", recipe=OPTIONS["layer-wise"], fresh_layers="all")
    assert all(set(each) == {1.0} for each in rates)


def test_beta2_comes_from_its_half_life(lab, monkeypatch):
    betas, honest = set(), learner.build_optimiser

    def spy(model, **settings):
        betas.add(settings["beta2"])
        return honest(model, **settings)

    monkeypatch.setattr(learner, "build_optimiser", spy)
    lab.run("out", recipe=OPTIONS["half-life"])
    assert betas == {0.5 ** (lab.BATCH / 5000)}


def test_a_taught_child_comes_nearer_to_its_teacher(lab):
    teacher = lab.start("llama", "teacher", num_hidden_layers=6)
    recipe = {"peak_lr": 3e-3, "passes": 3}
    lab.run("taught", recipe={**recipe, "distill_weight": 1.0}, teacher=teacher)
    divergence = [line["distill_nats"] for line in lab.losses("taught") if line["kind"] == "train"]
    assert np.mean(divergence[-5:]) < np.mean(divergence[:5])
    assert all(line["loss_nats"] > 0 for line in lab.losses("taught"))
    with pytest.raises(RecipeError, match="there is no teacher"):
        lab.run("untaught", recipe={"distill_weight": 0.5})


def test_dropout_is_of_training_alone(lab):
    result = lab.run("out", recipe=OPTIONS["dropout"])
    model = load_model(result.model)
    assert model.config.attention_dropout == 0.0  # the saved config is the start's
    watch = Shards.open(lab.shards).sequence("watch")
    documents = [watch.document(index) for index in range(watch.num_documents)]
    assert token_mean(score_documents(model, documents, sequence_length=lab.LENGTH)) == pytest.approx(
        result.loop.watch_nats, abs=1e-6
    )


def test_more_than_four_passes_are_warned_about_with_what_is_known(lab):
    lab.run("four", tokens=lab.BATCH, recipe={"passes": 4})
    assert not any(kind == "warning" for kind, _ in lab.events)
    lab.run("five", tokens=lab.BATCH, recipe={"passes": 5})
    (said,) = [message for kind, message in lab.events if kind == "warning"]
    assert "2305.16264" in said


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_teacher_in_main_memory_teaches_as_one_on_the_device(precision, lab, monkeypatch):
    teacher = lab.start("llama", "teacher", num_hidden_layers=6)
    recipe = {"distill_weight": 0.5, "precision": precision}
    lab.run("resident", recipe=recipe, teacher=teacher)
    honest = learner.choose
    monkeypatch.setattr(learner, "choose", lambda **given: replace(honest(**given), teacher="offloaded"))
    lab.run("offloaded", recipe=recipe, teacher=teacher)
    probes = {name: json.loads((lab.folder / name / "probe.json").read_text()) for name in ("resident", "offloaded")}
    assert [probes[name]["teacher"] for name in ("resident", "offloaded")] == ["device", "offloaded"]
    lab.assert_equal("resident", "offloaded")
