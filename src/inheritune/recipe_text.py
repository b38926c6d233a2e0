"""A recipe as text: YAML in, with the line of every key; YAML out, plain or with a comment for every key.

Numbers are those of YAML 1.2, so that ``2e-4`` is one (YAML 1.1, the default of the parser, takes it for a word).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

KeyPath = tuple[str | int, ...]

NUMBER = re.compile(r"[-+]?(?:\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$")
"""Numbers with an exponent that YAML 1.1 does not know."""

FLOAT_TAG = "tag:yaml.org,2002:float"


class _Loader(yaml.SafeLoader):
    """The safe loader with YAML 1.2 numbers."""


class _Dumper(yaml.SafeDumper):
    """The safe dumper that quotes every word which ``_Loader`` would take for a number."""

    def ignore_aliases(self, data: Any) -> bool:
        """A recipe is written out in full."""
        return True


for _part in (_Loader, _Dumper):
    _part.add_implicit_resolver(FLOAT_TAG, NUMBER, list("-+.0123456789"))


@dataclass
class RecipeText:
    """What was read: the values, the line of every key (counted from 1), and what is wrong with the text itself."""

    values: dict[str, Any] = field(default_factory=dict)
    lines: dict[KeyPath, int] = field(default_factory=dict)
    problems: list[tuple[int, str]] = field(default_factory=list)
    """(line, what is wrong)."""


def read_recipe_text(text: str) -> RecipeText:
    """Values and lines of a recipe's YAML; every fault of the text is in ``problems``, none is raised."""
    read = RecipeText()
    try:
        for event in yaml.parse(text, Loader=_Loader):
            if isinstance(event, yaml.AliasEvent):
                problem = f"the alias *{event.anchor} is not for recipes; write the value out"
                read.problems.append((event.start_mark.line + 1, problem))
        if read.problems:
            return read
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                read.problems.append((1, "the recipe is empty; `inheritune init` writes one to start from"))
            elif not isinstance(node, yaml.MappingNode):
                read.problems.append((node.start_mark.line + 1, "a recipe is made of lines such as `seed: 0`"))
            else:
                read.values = _value(loader, node, (), read)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = ", ".join(part for part in (error.context, error.problem) if part)
        read.problems.append((mark.line + 1 if mark else 1, f"this is not YAML: {what}"))
    except yaml.YAMLError as error:
        read.problems.append((1, f"this is not YAML: {' '.join(str(error).split())}"))
    except RecursionError:
        read.problems.append((1, "this is not a recipe: it is nested too deep"))
    return read


def _value(loader: _Loader, node: yaml.Node, path: KeyPath, read: RecipeText) -> Any:
    """The plain value of a node; keys stay the words they were written as."""
    if isinstance(node, yaml.MappingNode):
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                read.problems.append((line, "a key must be one word"))
                continue
            key = str(key_node.value)
            if key in values:
                first = read.lines[(*path, key)]
                read.problems.append((line, f"{dotted((*path, key))}: given twice (first in line {first}); keep one"))
                continue
            read.lines[(*path, key)] = line
            values[key] = _value(loader, value_node, (*path, key), read)
        return values
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            read.lines[(*path, index)] = item.start_mark.line + 1
        return [_value(loader, item, (*path, index), read) for index, item in enumerate(node.value)]
    try:
        return loader.construct_object(node)  # type: ignore[no-untyped-call]
    except ValueError as error:  # a date such as 2024-13-45
        read.problems.append((node.start_mark.line + 1, f"{dotted(path)}: {node.value!r} cannot be read ({error})"))
        return None


def read_value(text: str) -> Any:
    """One value as a recipe writes it: ``2e-4`` is a number, ``[a, b]`` a list; what is no YAML is the text itself."""
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError):
        return text


def dotted(path: KeyPath) -> str:
    """``train.peak_lr``, ``data.sources[0].path``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def write_recipe_text(values: Mapping[str, Any]) -> str:
    """YAML of plain values, keys in their order; ``read_recipe_text`` gives the same values back."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def write_value(value: Any) -> str:
    """One value as it stands behind its key, on one line."""
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10_000)
    return text.removesuffix("\n").removesuffix("\n...")
