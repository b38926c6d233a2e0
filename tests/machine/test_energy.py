import sys
from types import SimpleNamespace

import pytest
import torch

from inheritune.machine.energy import EnergyMeter, gpu_counters


@pytest.fixture
def package(tmp_path):
    """``package(index, microjoules)`` makes or moves the counter of one processor package; its span is 1,000 J."""

    def package(index, microjoules, name="package"):
        folder = tmp_path / f"intel-rapl:{index}"
        folder.mkdir(exist_ok=True)
        (folder / "name").write_text(f"{name}-{index}\n")
        (folder / "max_energy_range_uj").write_text("1000000000\n")
        (folder / "energy_uj").write_text(f"{microjoules}\n")

    return package


def test_packages_are_added_and_their_parts_are_not(package, tmp_path):
    package("0", 5_000_000)
    package("1", 1_000_000)
    package("0:0", 0, "core")
    package("2", 0, "psys")
    meter = EnergyMeter("cpu", tmp_path)
    package("0", 7_000_000)
    package("1", 1_500_000)
    package("0:0", 9_000_000, "core")
    package("2", 9_000_000, "psys")
    assert meter.joules() == pytest.approx(2.5)
    assert meter.joules() == 0


def test_a_counter_that_starts_anew_is_followed(package, tmp_path):
    package("0", 999_000_000)
    meter = EnergyMeter("cpu", tmp_path)
    package("0", 3_000_000)
    assert meter.joules() == pytest.approx(4)


def test_without_a_counter_the_energy_is_unknown_and_not_nothing(tmp_path):
    assert EnergyMeter("cpu", tmp_path).joules() is None


def test_a_counter_that_may_not_be_read_is_unknown(package, tmp_path):
    package("0", 1)
    meter = EnergyMeter("cpu", tmp_path)
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    assert meter.joules() is None


class FakeNvml:
    class NVMLError(Exception):
        pass

    def __init__(self, readings):
        self.readings = iter(readings)

    def nvmlInit(self):  # noqa: N802
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid):  # noqa: N802
        assert uuid == "GPU-abc"
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):  # noqa: N802
        reading = next(self.readings)
        if reading is None:
            raise self.NVMLError
        return reading


@pytest.fixture
def nvml(monkeypatch):
    def nvml(*readings):
        monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(readings))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: SimpleNamespace(uuid="abc"))

    return nvml


def test_a_gpu_counts_millijoules(nvml):
    nvml(1000, 1000, 3500)
    assert EnergyMeter("cuda").joules() == pytest.approx(2.5)


def test_a_gpu_without_a_counter_is_unknown(nvml):
    nvml(None)
    assert gpu_counters() == []
    nvml(1000, 1000, None)
    assert EnergyMeter("cuda").joules() is None


def test_a_gpu_that_torch_knows_no_name_of_is_unknown(nvml, monkeypatch):
    nvml(1000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: SimpleNamespace())
    assert gpu_counters() == []


def test_without_the_package_a_gpu_is_unknown(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert EnergyMeter("cuda").joules() is None
