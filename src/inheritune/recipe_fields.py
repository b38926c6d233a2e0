"""Kinds of values that the fields of a recipe take, each with its own check and one message."""

from collections.abc import Callable
from os import PathLike, fspath
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from inheritune.errors import RecipeError
from inheritune.units import parse_fraction, parse_quantity


def _collected(parse: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A parser whose RecipeError becomes the ValueError that pydantic collects."""

    def parse_or_value_error(value: Any) -> Any:
        try:
            return parse(value)
        except RecipeError as error:
            raise ValueError(str(error)) from error

    return parse_or_value_error


def _number(value: Any) -> Any:
    """True and false are no numbers."""
    if isinstance(value, bool):
        raise ValueError("should be a number, not true or false")
    return value


def _text(value: Any) -> Any:
    """A path becomes text."""
    return fspath(value) if isinstance(value, PathLike) else value


def word_or_number(word: str, *, whole: bool) -> Callable[[Any], Any]:
    """A check for a field that takes either the word or a (whole) number above 0."""

    def check(value: Any) -> Any:
        problem = f"should be {word!r} or a {'whole number' if whole else 'number'} above 0"
        if value == word:
            return value
        try:
            number = int(str(value)) if whole else float(value)
        except (TypeError, ValueError) as error:
            raise ValueError(problem) from error
        if isinstance(value, bool) or not 0 < number < float("inf"):
            raise ValueError(problem)
        return number

    return check


def check_switch(value: Any) -> Any:
    """On, off, or left to the machine."""
    if value == "auto" or isinstance(value, bool):
        return value
    raise ValueError("should be 'auto', true or false")


def check_layers(value: Any) -> Any:
    """Layers to inherit; whether the reference has them is known later."""
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    if value == "half" or (type(value) is int and value > 0):
        return value
    if isinstance(value, list | tuple) and value and all(type(index) is int and index >= 0 for index in value):
        if list(value) == sorted(set(value)):
            return tuple(value)
        raise ValueError(f"the layers are not in increasing order; write each once: {sorted(set(value))}")
    raise ValueError("should be 'half', a number of layers above 0, or a list of layer indices from 0")


def empty_section(value: Any) -> Any:
    """A section whose keys are all left out is the section with its defaults."""
    return {} if value is None else value


Integer = Annotated[int, BeforeValidator(_number)]
PositiveInteger = Annotated[Integer, Field(gt=0)]
Number = Annotated[float, BeforeValidator(_number)]
Fraction = Annotated[float, BeforeValidator(_collected(parse_fraction))]
Quantity = Annotated[int, Field(gt=0), BeforeValidator(_collected(parse_quantity))]
Text = Annotated[str, Field(min_length=1), BeforeValidator(_text)]
