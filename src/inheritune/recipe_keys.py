"""The keys of a recipe: which there are, what is wrong with what was given for them, and their comments.

Works on the model's fields, so that a key is named in one place alone: where ``recipe.py`` declares it.
"""

import json
import textwrap
from collections.abc import Iterator, Mapping
from copy import deepcopy
from difflib import get_close_matches
from types import NoneType
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from inheritune.errors import RecipeError
from inheritune.recipe_text import KeyPath, RecipeText, dotted, read_value, write_value

Section = TypeVar("Section", bound=BaseModel)

COMMENT_WIDTH = 110
VALUE_WIDTH = 60
"""Characters of a wrong value that are shown."""

WANTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "string_type": "text (put it in quotes if it looks like a number)",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
}
"""What each kind of pydantic error means to a user; the other kinds say it themselves."""


def checked(model: type[Section], read: RecipeText, *, name: str, overrides: Mapping[str, Any]) -> Section:
    """The recipe (or a section of it) made of a file's values and the overrides.

    Args:
        model: what to make.
        read: values and lines of the file.
        name: of the file, for messages.
        overrides: dotted keys, kebab or snake, to values or to text as a recipe writes it.

    Raises:
        RecipeError: everything that is wrong, a line for each problem.
    """
    problems = [(line, f"{name}:{line}: {what}") for line, what in read.problems]
    if read.problems and not read.values:
        raise _refused(problems)
    values = deepcopy(read.values)
    origins: dict[KeyPath, str] = {}
    for key, value in overrides.items():
        path = tuple(key.replace("-", "_").split("."))
        field = _field_at(model, path)
        if field is None:
            problems.append((0, f"{_flag(key)}: unknown key; {_nearest_flag(model, path)}"))
            continue
        origins[path] = _flag(key)
        _set(values, path, _given(field, value))
    made: Section | None = None
    try:
        made = model.model_validate(values)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            if detail["type"] == "too_short" and detail["input"]:
                continue  # the items that are there are wrong themselves, and are named
            path = _path_of(model, detail)
            line = _line_of(path, read.lines)
            flag = _longest(path, origins)
            where = f"{name}:{line}" if flag is None else flag
            problems.append((0 if flag else line, f"{where}: {dotted(path) or 'recipe'}: {_what(model, path, detail)}"))
    if problems or made is None:
        raise _refused(problems)
    return made


def section_comments(model: type[BaseModel], *, commented_out: tuple[str, ...] = ()) -> list[str]:
    """Lines of YAML: every key with its comment and its default (or its example, where it has none).

    Args:
        model: the recipe, or a section of it.
        commented_out: keys that are shown, but left to their defaults.
    """
    lines: list[str] = []
    after_section = False
    for key, field in model.model_fields.items():
        section = _section_of(field.annotation)
        prefix = "# " if key in commented_out or (section is not None and field.default is None) else ""
        if section is not None:
            body = [f"{key}:", *(f"  {line}" if line else "" for line in section_comments(section))]
            about = textwrap.dedent(section.__doc__ or "")
        else:
            value = field.examples[0] if field.examples else field.default
            body = [f"{key}: {write_value(json.loads(json.dumps(value)))}"]
            about = field.description or ""
        stands_apart = section is not None and not prefix
        lines += [""] if lines and (stands_apart or after_section) else []
        lines += [*_comment(about), *(f"{prefix}{line}".rstrip() for line in body)]
        after_section = stands_apart
    return lines


def leaf_keys(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Every key that takes a value, dotted, with its field; the keys of a list's items are not among them."""
    return {dotted(path): field for path, field in _leaves(model, ())}


def _leaves(model: type[BaseModel], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    for key, field in model.model_fields.items():
        section = _section_of(field.annotation)
        if section is None:
            yield (*path, key), field
        else:
            yield from _leaves(section, (*path, key))


def _section_of(annotation: Any, *, in_lists: bool = False) -> type[BaseModel] | None:
    """The section that a field holds (itself, or none), looking into lists where asked to."""
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return annotation if issubclass(annotation, BaseModel) else None
    if get_origin(annotation) in (tuple, list) and not in_lists:
        return None
    found = (_section_of(part, in_lists=in_lists) for part in get_args(annotation) if part is not Ellipsis)
    return next((section for section in found if section is not None), None)


def _field_at(model: type[BaseModel], path: tuple[str, ...]) -> FieldInfo | None:
    """The field that a dotted key names; keys below a free mapping (a model's config) belong to the mapping."""
    section: type[BaseModel] | None = model
    field = None
    for part in path:
        if section is None:
            return field if field is not None and get_origin(field.annotation) is dict and part else None
        field = section.model_fields.get(part)
        if field is None:
            return None
        section = _section_of(field.annotation)
    return field


def _given(field: FieldInfo, value: Any) -> Any:
    """An override's value: text is read as a recipe would, but a field for text takes it as it is."""
    if not isinstance(value, str):
        return value
    kinds = {_bare(kind) for kind in get_args(field.annotation) or (field.annotation,)}
    if kinds <= {str, NoneType}:
        return None if value == "null" and NoneType in kinds else value
    return read_value(value)


def _bare(kind: Any) -> Any:
    """``str`` of ``Annotated[str, ...]``."""
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _set(values: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    """Put a value at a key; what stands in the way of a section and is none is replaced."""
    *sections, last = path
    for part in sections:
        inner = values.get(part)
        if not isinstance(inner, dict):
            values[part] = inner = {}
        values = inner
    values[last] = value


def _path_of(model: type[BaseModel], detail: ErrorDetails) -> KeyPath:
    """The key that an error is about: its place without the names of the alternatives that were tried."""
    path: list[str | int] = []
    section: type[BaseModel] | None = model
    place = detail["loc"]
    for index, part in enumerate(place):
        if isinstance(part, int):
            path.append(part)
        elif section is not None and part in section.model_fields:
            path.append(part)
            section = _section_of(section.model_fields[part].annotation, in_lists=True)
        elif detail["type"] == "extra_forbidden" and index == len(place) - 1:
            path.append(part)
    return tuple(path)


def _line_of(path: KeyPath, lines: Mapping[KeyPath, int]) -> int:
    """The line of a key, or of the nearest section around it that is written down."""
    return next((lines[path[:size]] for size in range(len(path), 0, -1) if path[:size] in lines), 1)


def _longest(path: KeyPath, origins: Mapping[KeyPath, str]) -> str | None:
    """The override that gave this key, or gave the section around it."""
    around = (origins[path[:size]] for size in range(len(path), 0, -1) if path[:size] in origins)
    return next(around, None)


def _what(model: type[BaseModel], path: KeyPath, detail: ErrorDetails) -> str:
    """What is wrong, in the words of a recipe, with the value."""
    kind, given = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        return f"unknown key (got {_short(given)}); {_nearest_key(model, path)}"
    if kind == "missing":
        field = _field_at(model, tuple(part for part in path if isinstance(part, str)))
        about = (field.description or (_section_of(field.annotation) or model).__doc__ or "") if field else ""
        return "is missing" + (f"; {' '.join(about.split())}" if about else "")
    shown = f" (got {_short(given)})"
    if kind == "value_error":
        what = detail["msg"].removeprefix("Value error, ")
        return what if isinstance(given, Mapping) or what.startswith(repr(given)) else what + shown
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"should be a section of keys, not one value{shown}"
    if kind in ("tuple_type", "list_type"):
        return f"should be a list, such as [{given}]" if isinstance(given, str) else f"should be a list{shown}"
    if kind in ("too_short", "string_too_short"):
        return f"should not be empty{shown}"
    return f"should be {WANTED.get(kind, detail['msg'].removeprefix('Input should be '))}{shown}"


def _nearest_key(model: type[BaseModel], path: KeyPath) -> str:
    """The known key most like an unknown one: beside it, else anywhere in the recipe, else all that are beside it."""
    last = str(path[-1])
    section: type[BaseModel] | None = model
    for part in path[:-1]:
        if isinstance(part, str) and section is not None:
            section = _section_of(section.model_fields[part].annotation, in_lists=True)
    beside = list(section.model_fields) if section is not None else []
    near = get_close_matches(last.replace("-", "_"), beside, n=1)
    if near:
        return f"nearest known key is {dotted((*path[:-1], near[0]))}"
    elsewhere = {key.rpartition(".")[2]: key for key in leaf_keys(model)}
    near = get_close_matches(last.replace("-", "_"), elsewhere, n=1, cutoff=0.8)
    if near:
        return f"nearest known key is {elsewhere[near[0]]}"
    return f"known keys here are {', '.join(beside)}"


def _nearest_flag(model: type[BaseModel], path: tuple[str, ...]) -> str:
    """The known key most like an unknown override, as it is typed."""
    known = list(leaf_keys(model))
    near = get_close_matches(".".join(path), known, n=1)
    if not near:
        by_last = {key.rpartition(".")[2]: key for key in known}
        near = [by_last[name] for name in get_close_matches(path[-1], by_last, n=1)]
    if near:
        return f"nearest known key is {_flag(near[0])}"
    return "`inheritune init` writes a recipe with every key"


def _flag(key: str) -> str:
    """A key as it is typed on the command line."""
    return "--" + key.replace("_", "-")


def _short(value: Any) -> str:
    """A value for a message; null and numbers as the recipe writes them."""
    text = write_value(value) if value is None or isinstance(value, bool | int | float) else repr(value)
    return text if len(text) <= VALUE_WIDTH else text[: VALUE_WIDTH - 3] + "..."


def _refused(problems: list[tuple[int, str]]) -> RecipeError:
    """All problems in the order of their lines."""
    lines = [text for _, text in sorted(problems, key=lambda problem: problem[0])]
    head = [] if len(lines) == 1 else [f"{len(lines)} things are wrong in the recipe:"]
    return RecipeError("\n".join([*head, *lines]))


def _comment(text: str) -> list[str]:
    """A text as comment lines."""
    return [f"# {line}" for line in textwrap.wrap(" ".join(text.split()), COMMENT_WIDTH)]
