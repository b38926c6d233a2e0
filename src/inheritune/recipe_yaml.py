"""Recipes as YAML: read with the line of every key, written so that they read back equal. No torch in here."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from inheritune.errors import RecipeError

NUMBER = re.compile(r"(?:[+-]?(?:\d+\.?\d*|\.\d+)[eE][+-]?\d+|[+-]?(?:\d+\.\d*|\.\d+)|[+-]?\.inf|\.nan)$")
"""Numbers of YAML 1.2 that YAML 1.1 takes for words; the whole word, so that 0.5M and 0.1% stay quantities."""


class Loader(yaml.SafeLoader):
    """Safe YAML that reads 2e-4 as a number and refuses a key given twice."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    NUMBER,
    list("+-0123456789."),
)


class Dumper(yaml.SafeDumper):
    """Safe YAML that quotes every word which ``Loader`` would take for a number."""

    def ignore_aliases(self, data: Any) -> bool:
        """A recipe is written out in full."""
        return True


Dumper.add_implicit_resolver("tag:yaml.org,2002:float", NUMBER, list("+-0123456789."))


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The recipe's values, and the line of each dotted key."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read the recipe {path}: {error}. `inheritune init {path}` writes one.") from error
    try:
        for event in yaml.parse(text, Loader=Loader):
            if isinstance(event, yaml.AliasEvent):
                line = event.start_mark.line + 1 if event.start_mark else 1
                raise RecipeError(f"{path}:{line}: the alias *{event.anchor} is not for recipes. Write the value out.")
        node = yaml.compose(text, Loader=Loader)
        if node is None:
            raise RecipeError(f"the recipe {path} is empty. `inheritune init` writes a commented one.")
        if not isinstance(node, yaml.MappingNode):
            raise RecipeError(f"{path}:1: a recipe is a mapping of keys. `inheritune init` writes a commented one.")
        lines = {".".join(key): line for key, line in _lines(node)}
        twice = [f"{path}:{line}: {key}: given twice" for key, line in _duplicates(node)]
        if twice:
            raise RecipeError("\n".join(twice))
        values = yaml.load(text, Loader=Loader)
    except ValueError as error:  # a date such as 2024-13-45
        raise RecipeError(f"{path}: a value cannot be read: {error}. Put it in quotes.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise RecipeError(f"{where}: not YAML: {getattr(error, 'problem', error)}. Mend that line.") from error
    return values, lines


def _lines(node: yaml.Node, key: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], int]]:
    """Every dotted key below a node, with its line, counted from 1."""
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            yield (*key, str(name.value)), name.start_mark.line + 1
            yield from _lines(value, (*key, str(name.value)))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*key, str(index)), value.start_mark.line + 1
            yield from _lines(value, (*key, str(index)))


def _duplicates(node: yaml.MappingNode, key: str = "") -> Iterator[tuple[str, int]]:
    """Keys that stand twice in one mapping."""
    seen: set[str] = set()
    for name, value in node.value:
        if str(name.value) in seen:
            yield f"{key}{name.value}", name.start_mark.line + 1
        seen.add(str(name.value))
        if isinstance(value, yaml.MappingNode):
            yield from _duplicates(value, f"{key}{name.value}.")


def plain_value(value: Any) -> Any:
    """A command line's text as YAML would read it."""
    if not isinstance(value, str):
        return value
    try:
        return yaml.load(value, Loader=Loader)
    except (yaml.YAMLError, ValueError):
        return value
