import json

import pytest

from inheritune.machine.flops import training_flops
from inheritune.machine.probe import Choices
from inheritune.training import metering
from inheritune.training.metering import Meter

CHOICES = Choices("cpu", "float32", False, 1, threads=1, deterministic=True, peak_gflops=100.0)


class Counter:
    def __init__(self, device):
        self.readings = iter([1.5, 2.5])

    def joules(self):
        return next(self.readings)


def test_the_measures_of_a_step(build_model, monkeypatch):
    monkeypatch.setattr(metering, "EnergyMeter", Counter)
    model = build_model("llama")
    meter = Meter(training_flops(model, 64), CHOICES)
    meter.skip()
    measures = meter.read(tokens=1000, seconds=0.5)
    assert measures["tokens_per_s"] == 2000
    assert measures["flops_per_s"] == pytest.approx(2000 * training_flops(model, 64).per_token)
    assert measures["utilisation"] == pytest.approx(measures["flops_per_s"] / 100e9)
    assert measures["memory_bytes"] > 10**7
    assert measures["energy_j"] == 2.5


def test_the_pace_is_the_median_of_the_steps_after_the_first(build_model):
    meter = Meter(training_flops(build_model("llama"), 64), CHOICES)
    meter.read(tokens=100, seconds=50.0)
    assert meter.pace is None  # the first step compiles
    paces = []
    for seconds in (1.0, 3.0, 4.0):
        meter.read(tokens=100, seconds=seconds)
        paces.append(meter.pace)
    assert paces == pytest.approx([100.0, 50.0, 100 / 3])


def test_without_a_peak_the_utilisation_is_unknown(build_model):
    chosen = Choices("cpu", "float32", False, 1, threads=1, deterministic=True)
    meter = Meter(training_flops(build_model("llama"), 64), chosen)
    assert meter.utilisation(1000.0) is None


def test_every_step_of_a_run_tells_what_it_cost_and_where_in_the_data_it_was(lab):
    lab.run("out")
    lines = [json.loads(line) for line in (lab.folder / "out" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "train"]
    places = [(line["pass"], line["row"]) for line in steps]
    assert places[:2] == [(0, 8), (0, 16)]
    assert places == sorted(set(places))
    for line in steps:
        assert line["tokens_per_s"] > 0
        assert 0 < line["utilisation"] < 1
        assert line["memory_bytes"] > 10**7
        assert line["energy_j"] is None or line["energy_j"] >= 0
    assert json.loads((lab.folder / "out" / "probe.json").read_text())["peak_gflops"] > 0
