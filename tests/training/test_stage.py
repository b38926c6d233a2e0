"""The laws of a stage: what is saved is what was trained, and a stop anywhere changes nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from inheritune.data.shards import Shards
from inheritune.data.tokenizer import train_tokenizer
from inheritune.errors import DataError, RecipeError, Stopped, TrainingError
from inheritune.surgery.folder import load_model
from inheritune.training import learner, stage
from inheritune.training.checkpoint import find_checkpoint
from inheritune.training.plan import plan_steps
from inheritune.training.stage import train

LENGTH = 32
PLAIN = {"batch_tokens": 8 * LENGTH, "peak_lr": 1e-3, "validations": 2, "compile": False, "precision": "float32"}


def run(start, shards, out, *, tokens=12 * 8 * LENGTH, recipe=PLAIN, **settings):
    return train(start, shards, out, recipe=recipe, sequence_length=LENGTH, token_budget=tokens, **settings)


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def losses(path):
    entries = [json.loads(line) for line in Path(path).read_text().splitlines()]
    return [(entry["kind"], entry["step"], entry["loss_nats"], entry.get("grad_norm")) for entry in entries]


def test_three_steps_then_save_reload_and_resume_are_exact(family, save_reference, tiny_shards, tmp_path, lab):
    start = save_reference(family, tmp_path / "start")
    tokens = 3 * 8 * LENGTH
    whole = run(start, tiny_shards, tmp_path / "whole", tokens=tokens)
    assert whole.loop.steps == 3
    trained, begun = weights(whole.model), weights(start)
    assert not same(trained, begun)
    model, info = AutoModelForCausalLM.from_pretrained(whole.model, dtype=torch.float32, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = torch.arange(LENGTH)[None]
    with torch.no_grad():
        assert torch.equal(model.eval()(ids).logits, load_model(whole.model)(ids).logits)

    with pytest.raises(Stopped):
        run(start, tiny_shards, tmp_path / "parts", tokens=tokens, stop=lab.StopAt(3))
    assert find_checkpoint(tmp_path / "parts" / "checkpoints").name == "step-00000002"
    parts = run(start, tiny_shards, tmp_path / "parts", tokens=tokens)
    assert same(weights(parts.model), trained)
    assert losses(tmp_path / "parts" / "metrics.jsonl") == losses(tmp_path / "whole" / "metrics.jsonl")


@pytest.mark.parametrize("compile", [False, True])
def test_stopped_again_and_again_equals_one_uninterrupted_run(compile, save_reference, tiny_shards, tmp_path, lab):
    start = save_reference("llama", tmp_path / "start", head_dim=16)  # a GPU attends by blocks from this size on
    recipe = {**PLAIN, "compile": compile, "precision": "bfloat16", "passes": 2, "micro_batch": 2}
    whole = run(start, tiny_shards, tmp_path / "whole", recipe=recipe)
    assert json.loads((tmp_path / "whole" / "probe.json").read_text())["attention"] == (
        "blocks" if compile else "model"
    )
    for count in (0, 2, 5, 4, 7):  # before the first step, inside a pass, in the cool-down
        with pytest.raises(Stopped):
            run(start, tiny_shards, tmp_path / "parts", recipe=recipe, stop=lab.StopAt(count))
    parts = run(start, tiny_shards, tmp_path / "parts", recipe=recipe)
    assert same(weights(parts.model), weights(whole.model))
    assert losses(tmp_path / "parts" / "metrics.jsonl") == losses(tmp_path / "whole" / "metrics.jsonl")
    for name in ("0.npy", f"{whole.loop.tokens}.npy"):
        left, right = (np.load(tmp_path / each / "validation" / name) for each in ("whole", "parts"))
        assert np.array_equal(left, right)


def test_the_loss_falls(save_reference, tiny_shards, tmp_path):
    start = save_reference("llama", tmp_path / "start")
    result = run(start, tiny_shards, tmp_path / "out", recipe={**PLAIN, "peak_lr": 3e-3, "passes": 4})
    assert result.loop.watch_nats < result.loop.start_watch_nats - 0.5


def test_compiled_and_plain_training_agree(save_reference, tiny_shards, tmp_path):
    start = save_reference("qwen3", tmp_path / "start")
    plain = run(start, tiny_shards, tmp_path / "plain")
    compiled = run(start, tiny_shards, tmp_path / "compiled", recipe={**PLAIN, "compile": True})
    assert compiled.loop.watch_nats == pytest.approx(plain.loop.watch_nats, abs=1e-4)


def test_a_finished_stage_is_not_trained_again(save_reference, tiny_shards, tmp_path, monkeypatch):
    start = save_reference("llama", tmp_path / "start")
    first = run(start, tiny_shards, tmp_path / "out")
    monkeypatch.setattr(stage, "run_loop", lambda *args, **kwargs: pytest.fail("trained again"))
    assert run(start, tiny_shards, tmp_path / "out") == first


def test_other_settings_are_refused_with_what_changed(save_reference, tiny_shards, tmp_path):
    start = save_reference("llama", tmp_path / "start")
    run(start, tiny_shards, tmp_path / "out")
    with pytest.raises(RecipeError, match=r"seed: 0 -> 1"):
        run(start, tiny_shards, tmp_path / "out", seed=1)


def test_out_of_memory_halves_the_micro_batch_and_loses_nothing(save_reference, tiny_shards, tmp_path, monkeypatch):
    start = save_reference("llama", tmp_path / "start")
    plain = run(start, tiny_shards, tmp_path / "plain")
    honest = learner.accumulate_gradient

    def too_big(functions, rows, choices):
        if choices.micro_batch > 2:
            honest(functions, rows[:1], choices)  # part of a gradient is there when memory runs out
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return honest(functions, rows, choices)

    monkeypatch.setattr(learner, "accumulate_gradient", too_big)
    events = []
    smaller = run(
        start, tiny_shards, tmp_path / "smaller", record_event=lambda kind, message: events.append((kind, message))
    )
    assert [message for kind, message in events if kind == "out of memory"] == [
        "micro-batch halved to 4 sequences",
        "micro-batch halved to 2 sequences",
    ]
    assert json.loads((tmp_path / "smaller" / "probe.json").read_text())["micro_batch"] == 2
    assert smaller.loop.watch_nats == pytest.approx(plain.loop.watch_nats, abs=1e-5)


def test_a_stage_that_was_begun_before_a_key_existed_goes_on(save_reference, tiny_shards, tmp_path, lab):
    start = save_reference("llama", tmp_path / "start")
    with pytest.raises(Stopped):
        run(start, tiny_shards, tmp_path / "out", stop=lab.StopAt(3))
    path = tmp_path / "out" / "settings.json"
    settings = json.loads(path.read_text())
    for key in ("moments", "tensorboard", "activation_checkpointing"):
        del settings["recipe"][key]
    path.write_text(json.dumps(settings))
    run(start, tiny_shards, tmp_path / "out")
    with pytest.raises(RecipeError, match=r"moments: \"float32\" -> \"8bit\""):
        run(start, tiny_shards, tmp_path / "out", recipe={**PLAIN, "moments": "8bit"})


@pytest.mark.parametrize("asked", ["auto", False])
def test_at_one_sequence_activations_are_computed_again_where_that_is_allowed(
    asked, save_reference, tiny_shards, tmp_path, monkeypatch
):
    start = save_reference("llama", tmp_path / "start")
    honest, events = learner.accumulate_gradient, []

    def too_big(functions, rows, choices):
        if not choices.activation_checkpointing:
            raise torch.OutOfMemoryError("out of memory")
        return honest(functions, rows, choices)

    def attempt():
        return run(
            start,
            tiny_shards,
            tmp_path / "lean",
            recipe={**PLAIN, "activation_checkpointing": asked},
            record_event=lambda *event: events.append(event),
        )

    plain = run(start, tiny_shards, tmp_path / "plain", recipe={**PLAIN, "micro_batch": 1})
    monkeypatch.setattr(learner, "accumulate_gradient", too_big)
    if not asked:
        with pytest.raises(TrainingError, match="not enough memory for one sequence"):
            attempt()
        return
    lean = attempt()
    said = [message for kind, message in events if kind == "out of memory"]
    assert said[-1] == "from here on activations are computed again, not kept"
    probe = json.loads((tmp_path / "lean" / "probe.json").read_text())
    assert (probe["micro_batch"], probe["activation_checkpointing"]) == (1, True)
    assert lean.loop.watch_nats == plain.loop.watch_nats


def test_no_memory_for_one_sequence_says_what_to_lower(save_reference, tiny_shards, tmp_path, monkeypatch):
    def never(functions, rows, choices):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(learner, "accumulate_gradient", never)
    with pytest.raises(TrainingError, match=r"not enough memory for one sequence of 32 tokens.*sequence_length"):
        run(save_reference("llama", tmp_path / "start"), tiny_shards, tmp_path / "out")


def test_an_error_that_is_not_about_memory_is_not_swallowed(save_reference, tiny_shards, tmp_path, monkeypatch):
    def broken(functions, rows, choices):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(learner, "accumulate_gradient", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        run(save_reference("llama", tmp_path / "start"), tiny_shards, tmp_path / "out")


def test_a_loss_that_is_not_finite_ends_the_run_before_the_update(save_reference, tiny_shards, tmp_path):
    start = save_reference("llama", tmp_path / "start")
    with pytest.raises(TrainingError, match=r"at step \d+.*Lower train.peak_lr"):
        run(start, tiny_shards, tmp_path / "out", recipe={**PLAIN, "peak_lr": 1e30, "grad_clip": 1e30})


def test_token_ids_beyond_the_vocabulary_are_refused(save_reference, tiny_shards, tmp_path):
    start = save_reference("llama", tmp_path / "start", vocab_size=100, bos_token_id=1, eos_token_id=1)
    with pytest.raises(DataError, match=r"token id \d+.*100 rows"):
        run(start, tiny_shards, tmp_path / "out")


def test_rows_longer_than_the_positions_are_refused(save_reference, tiny_shards, tmp_path):
    start = save_reference("gpt2", tmp_path / "start")
    with pytest.raises(RecipeError, match="a table of 128"):
        train(start, tiny_shards, tmp_path / "out", recipe=PLAIN, sequence_length=129)


def test_a_budget_below_one_row_is_refused(save_reference, tiny_shards, tmp_path):
    with pytest.raises(DataError, match="do not fill one row"):
        run(save_reference("llama", tmp_path / "start"), tiny_shards, tmp_path / "out", tokens=LENGTH - 1)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(save_reference, tiny_shards, tmp_path, lab):
    start = save_reference("llama", tmp_path / "start")
    recipe = {**PLAIN, "save_every_minutes": 1e-9}
    whole = run(start, tiny_shards, tmp_path / "whole", recipe=recipe)
    with pytest.raises(Stopped):
        run(start, tiny_shards, tmp_path / "parts", recipe=recipe, stop=lab.StopAt(6))
    newest, before = sorted((tmp_path / "parts" / "checkpoints").glob("step-*"), reverse=True)
    content = bytearray((newest / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (newest / "model.safetensors").write_bytes(content)
    assert find_checkpoint(tmp_path / "parts" / "checkpoints") == before
    assert same(weights(run(start, tiny_shards, tmp_path / "parts", recipe=recipe).model), weights(whole.model))


def test_checkpoints_of_which_none_is_intact_are_an_error_and_not_a_fresh_start(
    save_reference, tiny_shards, tmp_path, lab
):
    start = save_reference("llama", tmp_path / "start")
    with pytest.raises(Stopped):
        run(start, tiny_shards, tmp_path / "out", stop=lab.StopAt(3))
    for checkpoint in (tmp_path / "out" / "checkpoints").glob("step-*"):
        (checkpoint / "manifest.json").write_text("{")
    with pytest.raises(TrainingError, match="intact"):
        run(start, tiny_shards, tmp_path / "out")


CHILD_PROCESS = """
import sys
from inheritune.training.stage import train
start, shards, out = sys.argv[1:]
recipe = {"batch_tokens": 64, "validations": 20, "compile": False, "save_every_minutes": 1e-9, "passes": 2}
train(start, shards, out, recipe=recipe, sequence_length=32, token_budget=6400)
"""


def in_a_process(log, *arguments):
    """The stage in a process of its own; what it says on stderr is added to ``log``."""
    with log.open("ab") as stderr:
        return subprocess.Popen(
            [sys.executable, "-c", CHILD_PROCESS, *map(str, arguments)],
            stderr=stderr,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        )


def test_killed_three_times_equals_the_undisturbed_run(save_reference, tiny_shards, tmp_path):
    start, log = save_reference("llama", tmp_path / "start"), tmp_path / "log"
    assert in_a_process(log, start, tiny_shards, tmp_path / "whole").wait(timeout=120) == 0, log.read_text()
    generator = np.random.default_rng(0)
    metrics = tmp_path / "parts" / "metrics.jsonl"
    for _ in range(3):
        process = in_a_process(log, start, tiny_shards, tmp_path / "parts")
        seen = metrics.stat().st_size if metrics.exists() else 0
        while process.poll() is None and (metrics.stat().st_size if metrics.exists() else 0) < seen + 200:
            time.sleep(0.005)
        time.sleep(generator.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, log.read_text()
    assert in_a_process(log, start, tiny_shards, tmp_path / "parts").wait(timeout=120) == 0, log.read_text()
    assert same(weights(tmp_path / "parts" / "model"), weights(tmp_path / "whole" / "model"))
    assert losses(tmp_path / "parts" / "metrics.jsonl") == losses(tmp_path / "whole" / "metrics.jsonl")


@pytest.mark.parametrize("resume", [True, False])
def test_the_model_and_the_shards_that_go_in_are_never_touched(resume, save_reference, tiny_shards, tmp_path):
    work = tmp_path / "work"
    start = save_reference("llama", work / "model")
    before = (start / "model.safetensors").read_bytes()
    for out in (work, start, start / "out"):
        with pytest.raises(RecipeError, match="lie in each other"):
            run(start, tiny_shards, out, resume=resume)
    with pytest.raises(RecipeError, match=r"the shards .* lie in each other"):
        run(start, tiny_shards, tiny_shards, resume=resume)
    other = save_reference("llama", tmp_path / "other" / "model")
    with pytest.raises(RecipeError, match="holds 'model', and no training has left it there"):
        run(start, tiny_shards, other.parent, resume=resume)
    assert (start / "model.safetensors").read_bytes() == before
    assert (other / "model.safetensors").read_bytes() == before


def test_what_is_refused_leaves_no_mark_on_the_folder(save_reference, tiny_shards, tmp_path):
    wrong = save_reference("llama", tmp_path / "wrong", vocab_size=100, bos_token_id=1, eos_token_id=1)
    with pytest.raises(DataError):
        run(wrong, tiny_shards, tmp_path / "out")
    assert not (tmp_path / "out" / "settings.json").exists()
    assert run(save_reference("llama", tmp_path / "right"), tiny_shards, tmp_path / "out").loop.steps == 12


@pytest.mark.parametrize(
    ("refused", "said"),
    [
        ({"freeze": ["model.embed_token.*"]}, "Nearest is"),
        ({"moments": "8bit", "beta2": 0.999}, "cannot follow a beta2"),
        ({"dropout": 0.1}, "dropout"),
    ],
)
def test_a_recipe_that_the_loop_refuses_can_be_mended_in_place(refused, said, save_reference, tiny_shards, tmp_path):
    start = save_reference("mamba" if "dropout" in refused else "llama", tmp_path / "start")
    with pytest.raises(RecipeError, match=said):
        run(start, tiny_shards, tmp_path / "out", recipe={**PLAIN, **refused})
    assert not (tmp_path / "out" / "settings.json").exists()
    assert run(start, tiny_shards, tmp_path / "out").loop.steps == 12


def test_a_child_that_does_not_fit_is_told_with_its_size(save_reference, tiny_shards, tmp_path, monkeypatch):
    def full(self, *_given, **_named):
        raise torch.OutOfMemoryError("no room")

    start = save_reference("llama", tmp_path / "start")
    monkeypatch.setattr(torch.nn.Module, "to", full)
    with pytest.raises(TrainingError, match=r"the child \(.*B\) does not fit into memory"):
        run(start, tiny_shards, tmp_path / "out")


def test_shards_of_another_tokenizer_are_refused_though_every_id_fits(save_reference, tiny_shards, tmp_path):
    start = save_reference("llama", tmp_path / "start", vocab_size=400)
    train_tokenizer(["some other text, and more of it"] * 20, 270, start)
    with pytest.raises(DataError, match=r"a tokenizer of 257 entries that is not the one of .* \(\d+ entries\)"):
        run(start, tiny_shards, tmp_path / "out")


def test_several_passes_over_a_smaller_budget_see_its_tokens_again_and_no_others(
    save_reference, tiny_shards, tmp_path, monkeypatch
):
    seen = []
    honest = learner.accumulate_gradient

    def spy(functions, rows, choices):
        seen.append(rows.clone())
        return honest(functions, rows, choices)

    monkeypatch.setattr(learner, "accumulate_gradient", spy)
    start = save_reference("llama", tmp_path / "start")
    run(start, tiny_shards, tmp_path / "out", tokens=1025, recipe={**PLAIN, "passes": 3})
    budget = Shards.open(tiny_shards).sequence("train").first(1025)
    allowed = {tuple(budget.document(index)[:6].tolist()) for index in range(budget.num_documents)}
    openings = {tuple(row[at : at + 6].tolist()) for rows in seen for row in rows for at in range(20) if row[at] == 256}
    assert sum(len(rows) for rows in seen) == 96
    assert len(openings) > 5
    assert {opening for opening in openings if 256 not in opening[1:]} <= allowed


def test_as_many_steps_as_so_many_rounds(save_reference, tiny_shards, tmp_path):
    start = save_reference("llama", tmp_path / "start")
    tokens = 5 * 8 * LENGTH + 7 * LENGTH  # seven rows of every round are left over
    one = run(start, tiny_shards, tmp_path / "one", tokens=tokens)
    three = run(start, tiny_shards, tmp_path / "three", tokens=tokens, total_tokens=3 * one.loop.tokens)
    assert three.loop.tokens == 3 * one.loop.tokens


@pytest.mark.parametrize("content", ["", "{", "[1]", "7"])
def test_damaged_settings_are_named_and_nothing_is_trained(content, save_reference, tiny_shards, tmp_path):
    start = save_reference("llama", tmp_path / "start")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "settings.json").write_text(content)
    with pytest.raises(RecipeError, match=r"settings\.json is damaged.*--fresh"):
        run(start, tiny_shards, tmp_path / "out")


def test_a_stage_begun_on_a_gpu_is_not_gone_on_with_elsewhere(save_reference, tiny_shards, tmp_path, monkeypatch, lab):
    start = save_reference("llama", tmp_path / "start")
    with pytest.raises(Stopped):
        run(start, tiny_shards, tmp_path / "out", stop=lab.StopAt(3))
    probe = tmp_path / "out" / "probe.json"
    probe.write_text(json.dumps({**json.loads(probe.read_text()), "device": "cuda"}))
    monkeypatch.setattr(learner, "best_device", lambda: "cpu")
    with pytest.raises(TrainingError, match="begun on a GPU"):
        run(start, tiny_shards, tmp_path / "out")


def test_no_memory_for_the_moments_is_one_clear_error(save_reference, tiny_shards, tmp_path, monkeypatch):
    def step(*_, **__):
        raise torch.OutOfMemoryError("out of memory")

    start = save_reference("llama", tmp_path / "start")
    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(TrainingError, match="8 bytes per parameter"):
        run(start, tiny_shards, tmp_path / "out")


@given(num_tokens=st.integers(1, 3_000_000), batch_tokens=st.integers(1, 300_000), length=st.integers(1, 2048))
def test_steps_spend_at_most_the_budget_in_batches_no_larger_than_asked(num_tokens, batch_tokens, length):
    if num_tokens < length:
        with pytest.raises(DataError, match="do not fill one row"):
            plan_steps(num_tokens, batch_tokens=batch_tokens, sequence_length=length)
        return
    steps, batch = plan_steps(num_tokens, batch_tokens=batch_tokens, sequence_length=length)
    rows, asked = num_tokens // length, max(1, batch_tokens // length)
    assert 1 <= batch <= max(1, asked)
    assert steps * batch <= rows
    assert steps * batch >= rows - rows % asked  # never less than whole batches of the size asked for
    assert 3 * steps * batch >= 2 * rows  # and never a third of the budget unspent


def test_a_budget_just_below_two_batches_is_two_smaller_ones():
    assert plan_steps(250_000, batch_tokens=131_072, sequence_length=1024) == (2, 122)
    assert plan_steps(200_000, batch_tokens=2048, sequence_length=256) == (97, 8)
