"""Energy since the last look, where it can be read: NVIDIA's counter of a GPU, or Linux's of the processors.

Both count what the whole device uses, whoever uses it.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")
"""Source: the Linux kernel's documentation of power capping; ``energy_uj`` counts microjoules and starts anew at
``max_energy_range_uj``."""


class EnergyMeter:
    """Joules between two looks; None where they cannot be read, which is not 0."""

    def __init__(self, device: str, powercap: Path = POWERCAP) -> None:
        """
        Args:
            device: "cuda" reads the current GPU (needs the extra ``gpu``), "cpu" the processor packages.
            powercap: the kernel's folder.
        """
        self._counters = gpu_counters() if device == "cuda" else package_counters(powercap)
        self._last = [read() for read, _ in self._counters]

    def joules(self) -> float | None:
        """Joules since the last call, or since the meter was made."""
        now = [read() for read, _ in self._counters]
        before, self._last = self._last, now
        total = 0.0
        for (_, span), old, new in zip(self._counters, before, now, strict=True):
            if old is None or new is None:
                return None
            total += new - old if new >= old else new - old + span
        return total if now else None


Counter = tuple[Callable[[], float | None], float]
"""Joules so far, and after how many the counter starts anew."""


def package_counters(powercap: Path) -> list[Counter]:
    """One counter for each processor package that may be read (often root alone may)."""
    found: list[Counter] = []
    for folder in sorted(powercap.glob("intel-rapl:*")):
        if _name(folder).startswith("package"):  # its parts (core, dram) and the whole machine (psys) would count twice
            span = _microjoules(folder / "max_energy_range_uj")
            if span is not None and _microjoules(folder / "energy_uj") is not None:
                found.append((lambda path=folder / "energy_uj": _microjoules(path), span))  # type: ignore[misc]
    return found


def _name(folder: Path) -> str:
    try:
        return (folder / "name").read_text().strip()
    except OSError:
        return ""


def _microjoules(path: Path) -> float | None:
    """Joules in a file of microjoules; None where it cannot be read."""
    try:
        return int(path.read_text()) / 1e6
    except (OSError, ValueError):
        return None


def gpu_counters() -> list[Counter]:
    """The current GPU's counter, where NVIDIA's library and package are there and the GPU has one (Volta and later)."""
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return []
    import torch

    try:
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties().uuid}")
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:  # whatever it is, energy is unknown, and no reason to end a run
        return []

    def read() -> float | None:
        try:
            return float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3
        except Exception:  # as above
            return None

    return [(read, float("inf"))]
