"""Parts of the benchmarks that figures rest on."""

import json
import sys
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from inheritune.machine.flops import training_flops

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def speed(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield
    for name in [name for name in sys.modules if name.split(".")[0] in ("speed", "commit")]:
        del sys.modules[name]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_flops_of_a_shape_are_those_counted_of_its_model(family):
    from speed.shapes import Shape

    shape = Shape(family, 48, 3, 4, 96, 300, 64, 2)
    config = shape.config()
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config.pop("model_type"), **config))
    assert shape.step_flops() == pytest.approx(training_flops(model, 64).per_token * shape.step_tokens, rel=1e-3)


def test_the_papers_child_has_its_real_size():
    from speed.shapes import SHAPES

    shape = SHAPES["llama-1.8b"]
    weights = sum(inputs * outputs * count for inputs, outputs, count in shape.linears().values())
    assert weights + shape.hidden_size * shape.vocabulary == pytest.approx(1.816e9, rel=1e-3)


def test_what_runs_by_name_alone_is_there_by_that_name():
    from speed.contenders import BY_NAME_ALONE, CONTENDERS

    assert set(CONTENDERS) > BY_NAME_ALONE


def contender(speed, **more):
    figures = {"flops_per_s": 2e11, "share_of_own_time": 0.7, "peak_memory_bytes": 1e9, "precision": "bfloat16"}
    return {"tokens_per_s": speed, "compile_s": 40.0, **figures, **more}


def own_products(*dtypes):
    return {dtype: {"seconds": {"head": 0.5}, "sum_s": 0.5, "peak_gflops": 400.0} for dtype in dtypes}


def test_a_shape_that_ours_did_not_train_in_one_precision_has_its_table_too():
    from speed.render import own_time, side_by_side

    told = contender(1000.0, choices={"peak_gflops": 800.0, "device_name": "A GPU"})
    rounds = [{"matrices": own_products("bfloat16"), "contenders": {"ours, for 24 GB": told}}]
    shape = {"commit": "1234567890 with changes", "rounds": rounds, "not_installed": {}}
    table = side_by_side("llama", shape)
    assert "| ours, for 24 GB | 1,000 |  | 200 | 70% | 25% |" in table  # of the probe's 800, more than the 400 beside
    assert "1 round at commit 1234567 with changes." in table
    assert "| products | bfloat16, ms |\n|---|---|\n| head | 500 |\n| all of them | 500 |" in own_time(shape)


def test_a_page_is_made_from_a_result_file_alone(tmp_path):
    from speed.render import render

    rounds = [
        {
            "matrices": own_products("bfloat16", "float32"),
            "contenders": {
                "ours": contender(3000.0 + turn),
                "Trainer, defaults": contender(1000.0),
                "Trainer, freed memory kept": contender(1500.0),
                "litgpt": {"failed": "no reason"},
            },
        }
        for turn in range(3)
    ]
    kinds = {"fast": False, "milliseconds": {"matrix products": 80.0, "loss": 20.0}, "share": {"matrix products": 0.8}}
    point = {"value": 3, "tokens_per_s": 1.0, "flops_per_s": 1e9, "peak_memory_bytes": 1e9}
    result = {
        "commit": "abcdef0123", "date": "2026-01-01", "machine": {"processor": "P", "cores": 2},
        "versions": {"torch": "1", "transformers": "2"},
        "shapes": {"llama": {"commit": "1234567", "rounds": rounds, "not_installed": {"plain": "torch"}}},
        "sweeps": {"llama": {"depth": [point, {**point, "value": 6}]}},
        "profiles": {"llama": [kinds, {**kinds, "fast": True}]},
        "growth": {"llama": [{"first_step_more_s": {"3": 50.0, "6": 4.0}}, {"first_step_more_s": {"8": 9.0}}]},
    }  # fmt: skip
    marks = ("side-by-side", "own-time", "profile", "compile", "growth")
    page = tmp_path / "performance.md"
    page.write_text("".join(f"<!-- {mark}:begin -->\nold\n<!-- {mark}:end -->\n" for mark in marks))
    source = tmp_path / "result.json"
    source.write_text(json.dumps(result))
    render(source, tmp_path)
    text = page.read_text()
    assert "old" not in text
    assert "| ours | 3,001 | 1.00 |" in text
    assert "| Trainer, defaults | 1,000 | 3.00 |" in text
    assert "3 rounds at commit 1234567; ours from 3,000 to 3,002 tokens/s" in text
    assert (
        "; over the best peer of each round 3.00, 3.00, 3.00; over the best one with our allocator setting of" in text
    )
    assert "of each round 2.00, 2.00, 2.00." in text
    assert "| litgpt | failed: no reason |" in text
    assert "| matrix products | 80 | 80 | 80% | 80% |" in text
    assert "| llama | 6 | first process, nothing cached | 4.0 |" in text
    assert "<svg" in (tmp_path / "throughput.svg").read_text()
    before = text, (tmp_path / "throughput.svg").read_bytes()
    render(source, tmp_path)
    assert (page.read_text(), (tmp_path / "throughput.svg").read_bytes()) == before
    page.write_text("<!-- other-side-by-side:begin --><!-- other-side-by-side:end -->\n" + text)
    (tmp_path / "throughput.svg").unlink()
    source.write_text(json.dumps({key: result[key] for key in result if key not in ("profiles", "growth")}))
    with pytest.raises(ValueError, match="other-own-time"):
        render(source, tmp_path, "other")
    others = "".join(
        f"<!-- other-{mark}:begin -->older<!-- other-{mark}:end -->\n"
        for mark in ("side-by-side", "own-time", "growth")
    )
    page.write_text(others + text)
    render(source, tmp_path, "other")
    assert page.read_text().endswith(text)
    assert page.read_text().count("| ours | 3,001 | 1.00 |") == 2
    assert "older" not in page.read_text()
    assert not (tmp_path / "throughput.svg").exists()
    before = page.read_text()
    source.write_text(json.dumps({**result, "date": "2026-02-02", "shapes": {}, "profiles": {}, "growth": {}}))
    for place in ("other", None):
        render(source, tmp_path, place)
        assert page.read_text() == before  # of a sweep alone: the tables of contenders stay, with their date
        assert not (tmp_path / "throughput.svg").exists()
    page.write_text("no marks")
    with pytest.raises(ValueError, match="growth"):
        render(source, tmp_path)
