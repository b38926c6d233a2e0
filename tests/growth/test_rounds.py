"""A whole search on tiny models: the main job, its records, and what it refuses."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from inheritune import job
from inheritune.errors import DataError, RecipeError, Stopped, SurgeryError
from inheritune.evaluation.compare import evaluate_loss
from inheritune.growth import stages
from inheritune.job import grow
from inheritune.surgery.folder import load_model
from inheritune.training.sinks import Silent

LENGTH = 32


def test_a_search_leaves_a_model_a_verdict_and_a_report(recipe, tmp_path, lines, read):
    result = grow(recipe(growth__margin=10.0), progress=lines)  # a margin that any child meets
    summary, run = result.summary, tmp_path / "run"
    assert (summary["verdict"], summary["parity"], result.exit_code) in {("parity", True, 0), ("better", True, 0)}
    assert [each["depth"] for each in summary["rounds"]] == [2]
    assert summary["child"]["depth"] == 2
    assert summary["reference"]["depth"] == 4
    child = AutoModelForCausalLM.from_pretrained(run / "model", dtype=torch.float32)
    assert child.config.num_hidden_layers == 2
    assert summary["child"]["parameters"] == sum(parameter.numel() for parameter in child.parameters())
    assert read(run / "model" / "certificate.json")["max_abs_difference"] == 0.0
    for name in ("recipe.yaml", "provenance.json", "metrics.jsonl", "events.jsonl", "report.html", "model/README.md"):
        assert (run / name).stat().st_size > 0, name
    assert (run / "model" / "tokenizer.json").read_bytes() == (tmp_path / "reference" / "tokenizer.json").read_bytes()
    assert any("round 1 | depth 2" in line and "nats" in line for line in lines.said)


def test_every_number_of_the_summary_can_be_looked_up_in_the_run_folder(recipe, tmp_path, read):
    summary = grow(recipe(growth__max_depth=3), progress=Silent()).summary
    run = tmp_path / "run"

    def loss(stage, name):
        sums = np.load(run / "stages" / stage / "validation" / name)
        return sums[:, 0].sum() / sums[:, 1].sum()

    assert summary["reference"]["loss_nats"] == pytest.approx(loss("reference", "decide-0.npy"), abs=1e-12)
    last = summary["rounds"][-1]
    assert last["loss_nats"] == pytest.approx(loss(last["stage"], f"decide-{last['tokens']}.npy"), abs=1e-12)
    assert summary["child"]["loss_nats"] == last["loss_nats"]
    difference = summary["child"]["loss_nats"] - summary["reference"]["loss_nats"]
    assert summary["against"]["reference"]["mean"] == pytest.approx(difference, abs=1e-12)
    assert summary["rounds"][-1]["tokens_total"] == summary["child"]["tokens"]
    manifest = read(run / "data" / "manifest.json")
    assert summary["validation"]["documents"] == manifest["splits"]["decide"]["documents"]
    seen = evaluate_loss(str(run / "model"), data=str(run / "data"), sequence_length=LENGTH)
    assert seen.scores[0].loss_nats == pytest.approx(summary["child"]["loss_nats"], abs=1e-6)
    assert seen.scores[0].bits_per_byte == pytest.approx(summary["validation"]["bits_per_byte"]["child"], abs=1e-6)


def test_without_parity_the_search_grows_to_the_deepest_and_says_what_to_try_next(recipe, tmp_path):
    result = grow(recipe(growth__target=0.1), progress=Silent())  # below what any model can reach
    summary = result.summary
    assert [each["depth"] for each in summary["rounds"]] == [2, 3]
    assert (summary["verdict"], result.exit_code) == ("not shown", 5)
    assert "more tokens per round" in summary["advice"]
    assert summary["against"]["target"]["mean"] == pytest.approx(summary["child"]["loss_nats"] - 0.1)
    assert summary["baselines"]["scratch"]["tokens"] == summary["child"]["tokens"]
    assert summary["baselines"]["scratch"]["depth"] == 3


def test_each_round_starts_anew_from_the_reference(recipe, tmp_path, monkeypatch):
    starts = {}
    honest = stages.train

    def spy(model, shards, out, **settings):
        if str(model).endswith("start"):
            starts[settings["name"]] = load_model(model).state_dict()
        return honest(model, shards, out, **settings)

    monkeypatch.setattr(stages, "train", spy)
    grow(recipe(growth__target=0.1), progress=Silent())
    reference = load_model(tmp_path / "reference").state_dict()
    for name, depth in {"round-1": 2, "round-2": 3}.items():
        start = starts[name]
        assert sum(key.endswith("q_proj.weight") for key in start) == depth
        assert all(torch.equal(tensor, reference[key]) for key, tensor in start.items())
    scratch = starts["scratch"]
    assert not torch.equal(scratch["model.embed_tokens.weight"], reference["model.embed_tokens.weight"])


def test_the_token_budget_of_the_search_ends_it_before_a_round(recipe):
    summary = grow(recipe(growth__target=0.1, growth__total_tokens=3000), progress=Silent()).summary
    assert [each["depth"] for each in summary["rounds"]] == [2]
    assert "total_tokens" in summary["stopped_because"]


def test_done_once_is_done_and_the_report_is_rebuilt_from_the_folder(recipe, tmp_path, monkeypatch, lines):
    first = grow(recipe(), progress=Silent())
    (tmp_path / "run" / "report.html").unlink()
    monkeypatch.setattr(job, "search", lambda run: pytest.fail("searched again"))
    second = grow(recipe(), progress=lines)
    assert second == first
    assert first.report.exists()
    assert any("done already" in line for line in lines.said)


def test_fresh_starts_over(recipe, tmp_path):
    grow(recipe(), progress=Silent())
    stamp = (tmp_path / "run" / "summary.json").stat().st_mtime_ns
    grow(recipe(seed=1), fresh=True, progress=Silent())
    assert (tmp_path / "run" / "summary.json").stat().st_mtime_ns > stamp


def test_stopped_between_and_inside_stages_equals_an_undisturbed_search(recipe, tmp_path, monkeypatch, stop_after):
    whole = grow(recipe(growth__target=0.1), progress=Silent())
    shutil.move(tmp_path / "run", tmp_path / "whole")
    weights = (tmp_path / "whole" / "model" / "model.safetensors").read_bytes()
    honest = stages.train
    for stop_in, after in (("round-1", 3), ("round-2", 0), ("round-2", 5), ("scratch", 2)):

        def stopping(model, shards, out, *, name, stop, stop_in=stop_in, after=after, **settings):
            if name == stop_in and not (out / "result.json").exists():
                settings["progress"] = stop_after(after, stop)
            return honest(model, shards, out, name=name, stop=stop, **settings)

        monkeypatch.setattr(stages, "train", stopping)
        with pytest.raises(Stopped):
            grow(recipe(growth__target=0.1), progress=Silent())
    monkeypatch.setattr(stages, "train", honest)
    again = grow(recipe(growth__target=0.1), progress=Silent())
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() == weights
    untimed = {key: value for key, value in again.summary.items() if key in ("against", "verdict", "validation")}
    assert untimed == {key: whole.summary[key] for key in untimed}


def test_the_reference_can_be_made_first_from_a_config(recipe, tmp_path, read):
    config = {
        "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
        "num_attention_heads": 4, "vocab_size": 300, "max_position_embeddings": 64,
    }  # fmt: skip
    asked = recipe(reference={"train": {"config": config, "passes": 2}}, growth__max_depth=2)
    summary = grow(asked, progress=Silent()).summary
    assert summary["reference"]["depth"] == 4
    stage = tmp_path / "run" / "stages" / "reference"
    result = read(stage / "result.json")
    assert summary["reference"]["training_tokens"] == result["tokens"] > 3000
    assert summary["reference"]["watch_loss_nats"] == result["watch_nats"] < result["start_watch_nats"]
    stages = {json.loads(line)["stage"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()}
    assert stages == {"reference", "round-1", "scratch"}


def test_a_config_that_cannot_be_built_is_refused(recipe):
    with pytest.raises(RecipeError, match="cannot be built as 'lama'"):
        grow(recipe(reference={"train": {"config": {"model_type": "lama"}}}), progress=Silent())


def test_another_recipe_in_the_same_folder_is_refused_with_the_difference(recipe):
    grow(recipe(), progress=Silent())
    with pytest.raises(RecipeError, match=r"train\.peak_lr: 0\.001 -> 0\.002"):
        grow(recipe(train__peak_lr=2e-3), progress=Silent())


def test_a_folder_with_something_else_in_it_is_left_alone(recipe, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    for fresh in (False, True):
        with pytest.raises(RecipeError, match="Choose another run_dir"):
            grow(recipe(), fresh=fresh, progress=Silent())
    assert (tmp_path / "run" / "thesis.tex").read_text() == "years of work"


def test_two_processes_in_one_run_folder_are_refused(recipe, tmp_path):
    (tmp_path / "run").mkdir()
    code = "import sys; from inheritune import runs; from pathlib import Path\n" \
           "with runs.locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"  # fmt: skip
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(RecipeError, match="another process"):
        grow(recipe(), progress=Silent())
    holder.kill()  # as kill -9: the lock goes with the process
    holder.communicate()
    assert grow(recipe(), progress=Silent()).summary["state"] == "done"


def test_a_budget_above_the_data_is_refused_and_says_what_to_set(recipe, tmp_path):
    with pytest.raises(DataError, match=r"data\.token_budget.*train\.passes"):
        grow(recipe(data__token_budget=10**9), progress=Silent())
    assert not (tmp_path / "run" / "data").exists()


@pytest.mark.parametrize(("layers", "said"), [([0, 2], "0,2"), ("drop 1", "0,2-3"), ("last-2", "2-3"), ("0,-1", "0,3")])
def test_a_selection_that_is_no_prefix_is_refused_for_growth(recipe, layers, said):
    with pytest.raises(RecipeError, match=f"prefix.*the layers {said} of 4"):
        grow(recipe(inherit__layers=layers), progress=Silent())


def test_a_reference_without_weights_is_refused(recipe, tmp_path):
    asked = recipe()
    (tmp_path / "reference" / "model.safetensors").unlink()
    with pytest.raises(SurgeryError, match=r"model\.safetensors"):
        grow(asked, progress=Silent())
    assert not (tmp_path / "run" / "data").exists()


def test_under_thirty_documents_there_is_no_verdict(recipe):
    asked = recipe(data__validation={"min_documents": 20}, growth__margin=100.0, growth__max_depth=2)
    summary = grow(asked, progress=Silent()).summary
    assert summary["verdict"] == "not shown"
    assert summary["validation"]["warnings"]
    assert "too few for a verdict" in summary["stopped_because"]
    assert "more validation documents" in summary["advice"]


def test_rows_longer_than_a_table_of_positions_are_refused_before_anything_is_prepared(
    recipe, save_reference, tmp_path
):
    learned = save_reference("gpt2", tmp_path / "learned")
    with pytest.raises(RecipeError, match="a table of 128"):
        grow(recipe(reference={"model": str(learned)}, data__sequence_length=129), progress=Silent())
    assert not (tmp_path / "run" / "data").exists()


def test_rows_longer_than_computed_positions_are_warned_about(recipe, tmp_path):
    grow(recipe(data__sequence_length=129, growth__max_depth=2, baselines=[]), progress=Silent())
    assert "was made for 128 positions" in (tmp_path / "run" / "events.jsonl").read_text()


def test_a_recipe_that_was_refused_can_be_mended_and_run_in_the_same_folder(recipe):
    with pytest.raises(DataError):
        grow(recipe(data__token_budget=10**9), progress=Silent())
    assert grow(recipe(), progress=Silent()).summary["state"] == "done"


def test_a_total_below_one_round_is_refused_before_anything_is_prepared_and_can_be_mended(recipe, tmp_path):
    with pytest.raises(RecipeError, match="one round takes 2000"):
        grow(recipe(growth__total_tokens=1999), progress=Silent())
    assert not (tmp_path / "run" / "data").exists()
    assert grow(recipe(growth__total_tokens=2000), progress=Silent()).summary["state"] == "done"


def test_a_depth_that_the_reference_will_not_have_is_refused_before_it_is_trained(recipe, tmp_path):
    config = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    with pytest.raises(RecipeError, match="max_depth is 9"):
        grow(recipe(reference={"train": {"config": config}}, growth__max_depth=9), progress=Silent())
    assert not (tmp_path / "run" / "stages").exists()


def test_a_reference_inside_the_run_folder_is_left_alone(recipe, tmp_path, save_reference):
    inside = save_reference("llama", tmp_path / "run" / "reference")
    for fresh in (False, True):
        with pytest.raises(RecipeError, match="lies in the run folder"):
            grow(recipe(reference={"model": str(inside)}), fresh=fresh, progress=Silent())
    assert (inside / "model.safetensors").exists()


def test_a_run_folder_inside_a_source_is_refused(recipe, tmp_path):
    (tmp_path / "texts").mkdir()
    inside = str(tmp_path / "texts" / "runs" / "one")
    with pytest.raises(RecipeError, match="would then be taken for text"):
        grow(recipe(data__sources=[str(tmp_path / "texts")], run_dir=inside), progress=Silent())


def test_a_kill_while_a_start_is_deleted_does_not_stop_the_next_start(recipe, tmp_path, monkeypatch):
    honest = stages.runs.shutil.rmtree

    def killed(path, **settings):
        if "start" in path.name and path.exists():
            next(path.glob("*.json")).unlink()  # half of it is gone when the kill comes
            raise KeyboardInterrupt
        honest(path, **settings)

    monkeypatch.setattr(stages.runs.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        grow(recipe(), progress=Silent())
    monkeypatch.setattr(stages.runs.shutil, "rmtree", honest)
    assert grow(recipe(), progress=Silent()).summary["state"] == "done"


def test_the_provenance_is_that_of_the_recipe_that_ran(recipe, tmp_path, read):
    with pytest.raises(DataError):
        grow(recipe(data__token_budget=10**9), progress=Silent())
    grow(recipe(seed=7), progress=Silent())
    assert read(tmp_path / "run" / "provenance.json")["seeds"]["data"] == 7


def test_with_a_number_as_target_each_round_has_its_difference_to_the_reference_too(recipe):
    summary = grow(recipe(growth__target=0.1), progress=Silent()).summary
    for part in summary["rounds"]:
        expected = part["loss_nats"] - summary["reference"]["loss_nats"]
        assert part["minus_reference"]["mean"] == pytest.approx(expected, abs=1e-9)
        assert part["interval"]["mean"] == pytest.approx(part["loss_nats"] - 0.1, abs=1e-9)


def test_a_head_that_cannot_be_split_off_is_scored_otherwise_and_recorded(recipe, tmp_path, monkeypatch):
    split = grow(recipe(), progress=Silent()).summary
    for module in ("inheritune.growth.scoring", "inheritune.evaluation.token_loss"):
        monkeypatch.setattr(f"{module}.split_head", lambda model: None)
    whole = grow(recipe(run_dir=str(tmp_path / "whole")), progress=Silent()).summary
    assert whole["reference"]["loss_nats"] == pytest.approx(split["reference"]["loss_nats"], abs=1e-6)
    assert "scored by the model's own forward" in (tmp_path / "whole" / "events.jsonl").read_text()
    assert "own forward" not in (tmp_path / "run" / "events.jsonl").read_text()


def test_a_card_lost_to_a_kill_is_written_when_the_run_is_started_again(recipe, tmp_path):
    grow(recipe(), progress=Silent())
    (tmp_path / "run" / "model" / "README.md").unlink()
    grow(recipe(), progress=Silent())
    assert (tmp_path / "run" / "model" / "README.md").exists()


def test_a_reference_that_changed_under_a_run_is_refused_until_it_is_put_back(
    recipe, tmp_path, monkeypatch, stop_after, read
):
    honest = stages.train

    def stopping(model, shards, out, *, stop, **settings):
        settings["progress"] = stop_after(3, stop)
        return honest(model, shards, out, stop=stop, **settings)

    asked, weights = recipe(), tmp_path / "reference" / "model.safetensors"
    monkeypatch.setattr(stages, "train", stopping)
    with pytest.raises(Stopped):
        grow(asked, progress=Silent())
    monkeypatch.setattr(stages, "train", honest)
    before = weights.read_bytes()
    weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    with pytest.raises(SurgeryError, match=r"reference changed.*model\.safetensors has other bytes.*--fresh"):
        grow(asked, progress=Silent())
    weights.write_bytes(before)
    summary = grow(asked, progress=Silent()).summary
    assert summary["state"] == "done"
    assert set(read(tmp_path / "run" / "provenance.json")["reference"]["sha256"]) == {
        "config.json",
        "model.safetensors",
    }


def test_a_run_folder_that_was_moved_in_the_middle_goes_on(recipe, tmp_path, monkeypatch, stop_after):
    honest = stages.train

    def stopping(model, shards, out, *, stop, **settings):
        settings["progress"] = stop_after(3, stop)
        return honest(model, shards, out, stop=stop, **settings)

    monkeypatch.setattr(stages, "train", stopping)
    with pytest.raises(Stopped):
        grow(recipe(), progress=Silent())
    monkeypatch.setattr(stages, "train", honest)
    shutil.move(tmp_path / "run", tmp_path / "elsewhere")
    assert grow(recipe(run_dir=str(tmp_path / "elsewhere")), progress=Silent()).summary["state"] == "done"
