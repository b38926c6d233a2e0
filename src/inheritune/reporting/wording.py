"""Numbers as a reader wants them: every one with its unit, and a plain word where a value was not recorded."""

import math
from typing import Any

UNKNOWN = "not recorded"


def known(value: Any) -> bool:
    """Whether ``value`` is a finite number (a bool is none)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def count(value: Any) -> str:
    """A count with at most three digits and a letter: 999, 1.23k, 2.10M, 1.50B, 2.00T."""
    if not known(value):
        return UNKNOWN
    size = abs(value)
    for bound, divisor, letter in ((999.5, 1, ""), (999.5e3, 1e3, "k"), (999.5e6, 1e6, "M"), (999.5e9, 1e9, "B")):
        if size < bound:
            return f"{value:.0f}" if not letter else f"{_three_digits(value / divisor)}{letter}"
    return f"{_three_digits(value / 1e12)}T"


def _three_digits(value: float) -> str:
    decimals = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{decimals}f}"


def exact(value: Any) -> str:
    """A count in full with thousands separated by a comma."""
    return f"{value:,.0f}" if known(value) else UNKNOWN


def nats(value: Any) -> str:
    """A loss in nats per token, three decimals."""
    return f"{value:.3f}" if known(value) else UNKNOWN


def difference(value: Any) -> str:
    """A signed difference of losses in nats per token, four decimals."""
    if not known(value):
        return UNKNOWN
    text = f"{value:+.4f}"
    return "0.0000" if text in ("+0.0000", "-0.0000") else text


def share(value: Any) -> str:
    """A part of one as a percentage."""
    return f"{100 * value:.0f} %" if known(value) else UNKNOWN


def scaled(value: Any, unit: float) -> str:
    """A quantity in a larger unit, three digits: 1.23, 45.6, 789."""
    return _three_digits(value / unit) if known(value) else UNKNOWN


def perplexity(loss_nats: Any) -> str:
    """Perplexity per token, exp(loss)."""
    return f"{math.exp(loss_nats):,.2f}" if known(loss_nats) and loss_nats < 50 else UNKNOWN


def duration(seconds: Any) -> str:
    """A time span in its two largest units: 12 s, 3 min 05 s, 2 h 24 min, 1 d 03 h."""
    if not known(seconds):
        return UNKNOWN
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def seeds(value: Any) -> str:
    """How many seeds stand behind an interval."""
    if not known(value):
        return "seeds not recorded"
    return "1 seed" if value == 1 else f"{value:.0f} seeds"


def interval(value: Any) -> str:
    """The interval ``{low, high}`` of a mapping, in nats per token."""
    if not isinstance(value, dict) or not (known(value.get("low")) and known(value.get("high"))):
        return UNKNOWN
    return f"{difference(value['low'])} to {difference(value['high'])}"


def layer_ranges(layers: Any) -> str:
    """Layer numbers (from 0) with neighbours joined: ``0-3, 7``."""
    if not isinstance(layers, list) or not layers or not all(isinstance(layer, int) for layer in layers):
        return UNKNOWN
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def facts(value: Any, path: str = "") -> list[tuple[str, str]]:
    """A nested JSON value as (dotted key, text) rows, in the order they stand."""
    if isinstance(value, dict) and value:
        return [row for key, part in value.items() for row in facts(part, f"{path}.{key}" if path else str(key))]
    if isinstance(value, list) and any(isinstance(part, dict | list) for part in value):
        return [row for number, part in enumerate(value) for row in facts(part, f"{path}[{number}]")]
    if isinstance(value, list | dict):
        return [(path, ", ".join(map(str, value)) or "none")]
    if isinstance(value, bool):
        return [(path, "yes" if value else "no")]
    if isinstance(value, int):
        return [(path, f"{value:,}" if abs(value) >= 10_000 else str(value))]
    return [(path, UNKNOWN if value is None else str(value))]
