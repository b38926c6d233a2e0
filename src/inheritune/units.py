"""Quantities with units: read from a recipe, shown on a terminal. No torch in here."""

import math
import re
from decimal import Decimal

SCALES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}

QUANTITY = re.compile(r"\s*([+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*([kmbt]?)\s*", re.IGNORECASE)

SIZES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}

SIZE = re.compile(r"\s*([0-9]{1,30}(?:\.[0-9]{1,30})?)\s*([kmgt]?)b?\s*", re.IGNORECASE)


def parse_quantity(value: str | int | float) -> int:
    """A whole number, written as ``12``, ``131k``, ``0.5M``, ``1B`` or ``1e9``; k, M, B and T are powers of 1,000.

    Raises:
        ValueError: it is not such a number, or not whole.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{value!r} is not a quantity; write a number such as 12, 131k or 1B")
    if isinstance(value, str):
        match = QUANTITY.fullmatch(value)
        if not match:
            raise ValueError(f"{value!r} is not a quantity; write a number such as 12, 131k or 1B")
        number = float(match[1]) * SCALES[match[2].lower()]
        whole = int(match[1].replace("_", "")) * SCALES[match[2].lower()] if match[1].strip("+-").isdecimal() else None
    else:
        number, whole = float(value), value if isinstance(value, int) else None
    if whole is not None:
        return whole
    if not math.isfinite(number) or abs(number - round(number)) > 1e-6 * max(1.0, abs(number)):
        raise ValueError(f"{value!r} is not a whole number; write one such as 12, 131k or 1B")
    return round(number)


def parse_bytes(value: str) -> int:
    """A size, written as ``2GB``, ``500 MB``, ``1.5 GB`` or a plain number of bytes; powers of 1,000.

    Raises:
        ValueError: it is not such a size, or not a whole number of bytes.
    """
    match = SIZE.fullmatch(value)
    number = Decimal(match[1]) * SIZES[match[2].lower()] if match else Decimal("nan")
    if not number.is_finite() or number != int(number):
        raise ValueError(f"{value!r} is not a size; write one such as 2GB, 500MB or a number of bytes")
    return int(number)


def parse_fraction(value: str | float) -> float:
    """A part of a whole, written as ``0.05``, ``5%`` or ``0.1%``.

    Raises:
        ValueError: it is no number, or not from 0 to 1.
    """
    if isinstance(value, bool):
        raise ValueError(f"{value!r} is not a fraction; write 0.05 or 5%")
    text = str(value).strip()
    try:
        number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise ValueError(f"{value!r} is not a fraction; write 0.05 or 5%") from None
    if not 0 <= number <= 1:
        raise ValueError(f"{value!r} is not from 0 to 1; write 0.05 or 5%")
    return number


def format_count(count: int) -> str:
    """A count in two to four digits: ``987``, ``4.1k``, ``200M``, ``1.82B``."""
    for suffix, scale, digits in (("B", 10**9, 2), ("M", 10**6, 1), ("k", 10**3, 1)):
        if abs(count) >= scale * (1 - 0.5 * 10**-digits / 1000):
            return f"{count / scale:.{digits}f}".rstrip("0").rstrip(".") + suffix
    return str(count)


def format_bytes(count: int) -> str:
    """Bytes in powers of 1,000: ``512 B``, ``4.2 MB``, ``21.8 GB``."""
    for unit, scale in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= 0.99995 * scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"


def format_duration(seconds: float) -> str:
    """A time in its two largest units: ``42 s``, ``3 min 20 s``, ``2 h 24 min``, ``3 d 4 h``."""
    whole = max(0, round(seconds))
    for large, small, scale, sub in (("d", "h", 86400, 3600), ("h", "min", 3600, 60), ("min", "s", 60, 1)):
        if whole >= scale:
            return f"{whole // scale} {large} {whole % scale // sub} {small}"
    return f"{whole} s"
