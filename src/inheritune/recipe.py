"""What a user asks for: a frozen recipe, checked where it is built. No torch in here.

Each field's docstring is written once and serves as its line in the commented recipe, in ``--help`` and in the JSON
schema.
"""

import difflib
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticUndefined

from inheritune.errors import RecipeError
from inheritune.recipe_parts import (
    DataRecipe,
    GrowthRecipe,
    InheritRecipe,
    RecipePart,
    ReferenceRecipe,
    ReferenceTraining,
    SourceRecipe,
    TasksRecipe,
    TrainRecipe,
    Whole,
    section,
)
from inheritune.recipe_yaml import Dumper, plain_value, read_yaml

__all__ = [
    "Recipe",
    "SourceRecipe",
    "TrainRecipe",
    "commented_recipe",
    "known_keys",
    "may_change",
    "recipe_differences",
    "train_recipe",
]


class Recipe(RecipePart):
    """One run: reference, data, growth, training, tasks, baselines."""

    reference: ReferenceRecipe
    """The big model."""

    data: DataRecipe
    """Text to train and validate on."""

    inherit: Annotated[InheritRecipe, BeforeValidator(section)] = InheritRecipe()
    """What the first child keeps."""

    growth: Annotated[GrowthRecipe, BeforeValidator(section)] = GrowthRecipe()
    """When the child is deepened, and when the search ends."""

    train: Annotated[TrainRecipe, BeforeValidator(section)] = TrainRecipe()
    """How every stage is trained."""

    tasks: Annotated[TasksRecipe, BeforeValidator(section)] = TasksRecipe()
    """What is asked of the models beside their loss."""

    baselines: list[Literal["scratch"]] = Field(default=["scratch"])
    """Models trained beside the child. scratch: same size, its own initialiser, as many tokens as all rounds."""

    run_dir: str = "runs/run"
    """Folder that the run leaves behind; runs/NAME by default, NAME being the recipe's file name."""

    seed: Annotated[Whole, Field(lt=2**63)] = 0
    """Of the choice and order of documents, the initialisers and the bootstrap."""

    @model_validator(mode="after")
    def _can_branch(self) -> Self:
        if self.growth.mode != "restart" and self.train.schedule != "wsd":
            raise ValueError(
                f"growth.mode {self.growth.mode} goes on from before a cool-down, and train.schedule "
                f"{self.train.schedule} has no such place; set it to wsd"
            )
        if self.growth.mode != "restart" and self.growth.rewarm_fraction + self.train.cooldown_fraction > 1:
            raise ValueError(
                "growth.rewarm_fraction and train.cooldown_fraction are together more than the whole round; lower one"
            )
        return self

    @classmethod
    def load(cls, path: str | Path, overrides: Mapping[str, Any] = {}) -> "Recipe":
        """Read a YAML recipe.

        Args:
            path: of the recipe.
            overrides: dotted keys to values, as from the command line: {"train.peak-lr": "2e-4"}.

        Raises:
            RecipeError: no such file, no YAML, or any number of wrong keys and values, all named at once.
        """
        path = Path(path)
        values, lines = read_yaml(path)
        if values.get("run_dir") is None:
            values["run_dir"] = f"runs/{path.stem}"
        problems = []
        for key, value in overrides.items():
            problem = _override(values, key.replace("-", "_"), value)
            problems += [problem] if problem else []
        problems += _left_open(values, path, lines)
        try:
            recipe = cls.model_validate(values)
        except ValidationError as error:
            problems += _problems(error, path, lines, set(overrides))
            recipe = None
        if problems or recipe is None:
            raise RecipeError("\n".join(dict.fromkeys(problems)))
        return recipe

    def dump(self) -> str:
        """The resolved recipe as YAML; loads back equal."""
        return yaml.dump(self.model_dump(mode="json"), Dumper=Dumper, sort_keys=False, allow_unicode=True)


def _override(values: dict[str, Any], key: str, value: Any) -> str | None:
    """Set a dotted key; gives the problem where there is no such key."""
    known = known_keys()
    if key not in known and not any(key.startswith(f"{free}.") for free in FREE_KEYS):
        near = difflib.get_close_matches(key, known, n=1)
        hint = f" Nearest is --{near[0].replace('_', '-')}." if near else ""
        return f"--{key.replace('_', '-')}: there is no such key.{hint}"
    if key not in TEXT_KEYS:
        value = plain_value(value)
    *parents, last = key.split(".")
    part = values
    for parent in parents:
        if not isinstance(part.get(parent), dict):
            part[parent] = {}
        part = part[parent]
    part[last] = value
    return None


def _left_open(values: Mapping[str, Any], path: Path, lines: dict[str, int]) -> list[str]:
    """One line per place of a new recipe that nobody has filled in."""
    open_places = []
    for key in ("reference.model", "data.sources"):
        part, _, name = key.partition(".")
        given = values.get(part)
        if isinstance(given, dict) and given.get(name) == COMMENTED_VALUES[key]:
            open_places.append(
                f"{path}:{lines.get(key, 1)}: {key} is still to be filled in; the line above it says how"
            )
    return open_places


TEXT_KEYS = (
    "reference.model",
    "reference.revision",
    "reference.train.tokenizer",
    "data.text_field",
    "tasks.data",
    "run_dir",
)
"""Keys whose value on the command line is a word as it stands: a revision 12e4 is no number."""

FREE_KEYS = ("reference.train.config",)
"""Mappings whose keys are not ours."""


def known_keys(model: type[BaseModel] = Recipe, prefix: str = "") -> list[str]:
    """Every dotted key of a recipe, parts included, in order."""
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        for part in _models_in(field.annotation):
            if part is not SourceRecipe:
                keys += known_keys(part, f"{prefix}{name}.")
    return keys


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The recipe parts that a field may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif typing.get_origin(annotation) in (typing.Union, types.UnionType, list):
        for part in typing.get_args(annotation):
            yield from _models_in(part)


def _problems(error: ValidationError, path: Path, lines: dict[str, int], overrides: set[str]) -> list[str]:
    """One line per problem: file and line, key, what is wrong, and the nearest known key."""
    known = known_keys()
    by_key: dict[str, list[ErrorDetails]] = {}
    for each in error.errors(include_url=False):
        by_key.setdefault(_key_of(each["loc"], lines), []).append(each)
    problems = []
    for key, details in by_key.items():
        line = next((lines[part] for part in _and_parents(key) if part in lines), 1)
        given = key.replace("_", "-") in {name.replace("_", "-") for name in overrides}
        where = f"--{key.replace('_', '-')}" if given else f"{path}:{line}: {key or 'recipe'}"
        first = details[0]
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
            problems.append(f"{where}: there is no such key." + (f" Nearest is {near[0]}." if near else ""))
        elif first["type"] == "missing":
            problems.append(f"{where}: this key is needed and missing")
        else:
            said = "; or ".join(dict.fromkeys(each["msg"].removeprefix("Value error, ") for each in details))
            value = f" (got {first['input']!r})" if not isinstance(first["input"], dict) else ""
            problems.append(f"{where}: {said}{value}")
    return problems


def _key_of(location: tuple[int | str, ...], lines: dict[str, int]) -> str:
    """The dotted key of a pydantic location, without the names of union members in it."""
    key: list[str] = []
    for part in map(str, location):
        if (
            ".".join([*key, part]) in lines
            or ".".join([*key, part]) in known_keys()
            or (part in SourceRecipe.model_fields and key[:2] == ["data", "sources"])
            or not key
            or (location[-1] == part and _is_unknown(part))
        ):
            key.append(part)
    return ".".join(key)


def _is_unknown(part: str) -> bool:
    """Whether a location's part is a user's word, and not the name of a type that pydantic tried."""
    return part.isidentifier() and part not in {"str", "int", "float", "bool", "SourceRecipe"}


def _and_parents(key: str) -> Iterator[str]:
    """A dotted key, then each part above it."""
    while key:
        yield key
        key = key.rpartition(".")[0]


def train_recipe(values: Mapping[str, Any]) -> TrainRecipe:
    """The train part alone, from plain values or the command line's words.

    Raises:
        RecipeError: a key that the part does not have, or a value that its key does not take.
    """
    keys = {key.replace("-", "_"): plain_value(value) for key, value in values.items()}
    for key in keys:
        if key not in TrainRecipe.model_fields:
            near = difflib.get_close_matches(key, TrainRecipe.model_fields, n=1)
            hint = f" Nearest is {near[0].replace('_', '-')}." if near else ""
            raise RecipeError(f"{key.replace('_', '-')}: there is no such key of train.{hint}")
    try:
        return TrainRecipe(**keys)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, each['loc'][:1]))}: {each['msg']}" for each in error.errors()]
        raise RecipeError("; ".join(dict.fromkeys(problems)).replace("_", "-")) from error


KEEPING_KEYS = frozenset(
    f"train.{key}"
    for key in ("validations", "save_every_minutes", "keep_checkpoints", "micro_batch", "on_bad_step", "tensorboard")
)
"""Keys that may change under a run: they say how it is watched, kept and fitted into memory."""

RISING_KEYS = frozenset({"data.token_budget", "train.passes", "growth.total_tokens", "growth.max_depth"})
"""Keys that may change under a run, which then goes on, as long as no more is taken back than was not done yet."""


def recipe_differences(old: Recipe, new: Recipe) -> dict[str, tuple[Any, Any]]:
    """What differs: dotted key -> (old, new)."""
    before, after = _flat(old.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
    return {
        key: (before.get(key), after.get(key))
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key)
    }


def may_change(key: str) -> bool:
    """Whether a run that was begun with one value of a key may go on with another.

    Of what may rise this is half of the answer: whether it asks for less than what has been done is known where that
    was done (shards, depths, the settings of a stage).
    """
    return key in KEEPING_KEYS or key in RISING_KEYS


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    """Dotted keys to plain values."""
    if not isinstance(value, dict):
        return {key: value}
    return {
        inner: v for name, each in value.items() for inner, v in _flat(each, f"{key}.{name}" if key else name).items()
    }


COMMENTED_VALUES = {
    "reference.model": "PATH_OR_HUB_ID",
    "data.sources": ["PATH_TO_TEXT"],
    "data.token_budget": "1B",
}
"""What a new recipe shows where a default would not help."""


def commented_recipe() -> str:
    """A recipe with every key and its meaning; what must be filled in stands in capitals."""
    lines = ["# A recipe of inheritune. Run it with: inheritune run THIS_FILE", ""]
    _comment(Recipe, lines, prefix="", indent="")
    return "\n".join(lines) + "\n"


def _comment(model: type[BaseModel], lines: list[str], *, prefix: str, indent: str) -> None:
    """Append a part's keys: its docstring as a comment, then the key with its default."""
    for name, field in model.model_fields.items():
        key = prefix + name
        part = next((each for each in _models_in(field.annotation) if each is not SourceRecipe), None)
        lines += textwrap.wrap(
            field.description or "", 118, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "
        )
        if part is ReferenceTraining:
            lines.append(f"{indent}{name}: null  # {{config: {{model_type: llama, hidden_size: 256}}, passes: 10}}")
        elif key == "run_dir":
            lines.append(f"{indent}# {name}: runs/NAME")
        elif part is not None:
            lines.append(f"{indent}{name}:")
            _comment(part, lines, prefix=f"{key}.", indent=f"{indent}  ")
        else:
            default = COMMENTED_VALUES.get(key, None if field.default is PydanticUndefined else field.default)
            shown = yaml.safe_dump(default, default_flow_style=True).removesuffix("\n").removesuffix("\n...")
            lines.append(f"{indent}{name}: {shown}")
        if not indent:
            lines.append("")
