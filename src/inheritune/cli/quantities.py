"""Quantities on the command line, refused with the option's name."""

from inheritune.errors import RecipeError
from inheritune.units import parse_bytes, parse_fraction, parse_quantity


def quantity(value: str, option: str) -> int:
    """A positive whole number such as 1B.

    Raises:
        RecipeError: it is none.
    """
    try:
        number = parse_quantity(value)
    except ValueError as error:
        raise RecipeError(f"{option}: {error}.") from error
    if number <= 0:
        raise RecipeError(f"{option}: {value} is not positive. Give a number such as 131k or 1B.")
    return number


def size(value: str, option: str) -> int:
    """A positive number of bytes such as 2GB.

    Raises:
        RecipeError: it is none.
    """
    try:
        number = parse_bytes(value)
    except ValueError as error:
        raise RecipeError(f"{option}: {error}.") from error
    if number <= 0:
        raise RecipeError(f"{option}: {value} is not positive. Give a size such as 500MB or 2GB.")
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
