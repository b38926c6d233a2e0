"""Quantities on the command line, refused with the option's name."""

from collections.abc import Callable

from inheritune.errors import RecipeError
from inheritune.units import parse_bytes, parse_fraction, parse_quantity


def quantity(value: str, option: str) -> int:
    """A positive whole number such as 1B.

    Raises:
        RecipeError: it is none.
    """
    return _positive(value, option, parse_quantity, "a number such as 131k or 1B")


def size(value: str, option: str) -> int:
    """A positive number of bytes such as 2GB.

    Raises:
        RecipeError: it is none.
    """
    return _positive(value, option, parse_bytes, "a size such as 500MB or 2GB")


def _positive(value: str, option: str, parse: Callable[[str], int], such_as: str) -> int:
    """What the value means, which must be above 0."""
    try:
        number = parse(value)
    except ValueError as error:
        raise RecipeError(f"{option}: {error}.") from error
    if number <= 0:
        raise RecipeError(f"{option}: {value} is not positive. Give {such_as}.")
    return number


def fraction(value: str, option: str) -> float:
    """A part of a whole such as 5%.

    Raises:
        RecipeError: it is none.
    """
    try:
        return parse_fraction(value)
    except ValueError as error:
        raise RecipeError(f"{option}: {error}.") from error
