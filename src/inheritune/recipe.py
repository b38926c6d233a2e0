"""What a user asks for: a frozen recipe, checked where it is built. No torch in here.

Each field's docstring is written once and serves as its line in the commented recipe, in ``--help`` and in the JSON
schema.
"""

import difflib
import re
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticUndefined

from inheritune.errors import RecipeError
from inheritune.units import parse_fraction, parse_quantity

Count = Annotated[int, BeforeValidator(lambda value: parse_quantity(value)), Field(gt=0)]
"""A positive whole number; ``131k`` and ``1B`` are understood."""

Whole = Annotated[int, BeforeValidator(lambda value: parse_quantity(value)), Field(ge=0)]
"""A whole number from 0."""

Fraction = Annotated[float, BeforeValidator(lambda value: parse_fraction(value))]
"""A part of a whole; ``5%`` is understood."""

PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]

NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Part(BaseModel):
    """A part of a recipe: frozen, no unknown keys, documented by its docstrings."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ReferenceTraining(_Part):
    """How to make the reference first, on the same data."""

    config: dict[str, Any]
    """Hugging Face config as a mapping: model_type and its fields."""

    passes: Count = 10
    """How often the reference goes over the token budget."""

    tokenizer: str | None = None
    """Folder of a tokenizer; null trains a byte-level one of config.vocab_size on the training side of the data."""


class ReferenceRecipe(_Part):
    """The big model: one that exists, or one to be made first."""

    model: str | None = None
    """Folder or hub id of the reference."""

    revision: str | None = None
    """Revision of a hub id; null takes its main branch."""

    train: ReferenceTraining | None = None
    """Instead of model: make the reference first, from a config, on the same data."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.model is None) == (self.train is None):
            raise ValueError("give exactly one of reference.model and reference.train")
        return self


class SourceRecipe(_Part):
    """One source of text, where a plain path does not say enough."""

    path: str | None = None
    """File, folder or glob."""

    hub: str | None = None
    """Hub dataset instead of a path."""

    name: str | None = None
    """Its name in the manifest."""

    split: str | None = None
    """Split of a hub dataset; null is train."""

    revision: str | None = None
    """Revision of a hub dataset."""

    config: str | None = None
    """Configuration of a hub dataset."""

    text_field: str | None = None
    """Field with the text; null is data.text_field."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.path is None) == (self.hub is None):
            raise ValueError("a source has exactly one of path and hub")
        return self


class ValidationRecipe(_Part):
    """The one validation set, split off by a hash of each text."""

    fraction: Fraction = 0.05
    """Part of the documents."""

    min_documents: Count = 200
    """The fewest documents, both halves together; the fraction is raised where need be."""

    max_documents: Count = 4000
    """The most documents that are scored."""

    document_bytes: Count = 32768
    """Bytes of a validation document that are scored; the rest of it is left out."""


class DataRecipe(_Part):
    """Text to train and validate on."""

    sources: list[str | SourceRecipe] = Field(min_length=1)
    """Files, folders, globs (.txt, .jsonl, .parquet, also .zst), or mappings such as {hub: NAME}."""

    text_field: str = "text"
    """Field with the text in JSON lines and tables."""

    token_budget: Count | None = None
    """Training tokens drawn at random, once; null takes all."""

    sequence_length: Count = 1024
    """Tokens per row; also the window that validation is scored in."""

    validation: ValidationRecipe = ValidationRecipe()
    """The validation set."""


class InheritRecipe(_Part):
    """What the first child keeps."""

    layers: int | str | list[int] = "half"
    """A number of layers, or half."""


class GrowthRecipe(_Part):
    """When the child is deepened, and when the search ends."""

    mode: Literal["restart"] = "restart"
    """restart: each round inherits a deeper prefix from the reference and starts anew, as published."""

    start_depth: Count | None = None
    """Layers of the first child; null takes inherit.layers."""

    step: Count = 2
    """Layers added per round."""

    max_depth: Count | None = None
    """Layers of the deepest child; null is the reference's depth minus 1."""

    margin: NonNegativeFloat = 0.01
    """Nats per token that the interval's upper end may lie above the target and still count as parity."""

    target: Literal["reference"] | float = "reference"
    """The loss to match: the reference's, or a number in nats per token."""

    total_tokens: Count | None = None
    """End the search before a round that would spend more than this in all; null has no end but max_depth."""


class TrainRecipe(_Part):
    """How every stage is trained."""

    passes: Count = 1
    """How often a round goes through the token budget; up to 4 are about as good as fresh text (arXiv:2305.16264)."""

    batch_tokens: Count = 131_072
    """Tokens per optimiser step, rounded down to whole rows."""

    micro_batch: Literal["auto"] | Count = "auto"
    """Sequences per forward and backward pass; halved where memory runs out."""

    peak_lr: PositiveFloat = 3e-4
    """Learning rate at the end of warm-up (AdamW)."""

    schedule: Literal["wsd", "cosine"] = "wsd"
    """wsd: warm up, hold, cool down by 1 - sqrt; cosine: fall to a tenth of the peak."""

    warmup_fraction: Fraction = 0.02
    """Part of the round spent rising to peak_lr."""

    cooldown_fraction: Fraction = 0.2
    """Part of the round spent cooling down (wsd)."""

    weight_decay: NonNegativeFloat = 0.1
    """On matrices only."""

    beta2: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Decay of AdamW's second moment, per step."""

    grad_clip: PositiveFloat = 1.0
    """Largest gradient norm."""

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto takes bfloat16 where a short probe finds it faster; weights and moments stay float32."""

    compile: Literal["auto"] | bool = "auto"
    """auto compiles where a compiler is there and the round is long enough to pay for it."""

    deterministic: bool = True
    """Bitwise the same result on the same kind of machine; exact resume needs it."""

    validations: Count = 20
    """Looks at the watch half per round, beside the one before the first step."""

    save_every_minutes: PositiveFloat = 10.0
    """Time between checkpoints."""

    keep_checkpoints: Count = 2
    """Checkpoints kept while a stage runs; a finished stage keeps none."""


class Recipe(_Part):
    """One run: reference, data, growth, training, baselines."""

    reference: ReferenceRecipe
    """The big model."""

    data: DataRecipe
    """Text to train and validate on."""

    inherit: InheritRecipe = InheritRecipe()
    """What the first child keeps."""

    growth: GrowthRecipe = GrowthRecipe()
    """When the child is deepened, and when the search ends."""

    train: TrainRecipe = TrainRecipe()
    """How every stage is trained."""

    baselines: list[Literal["scratch"]] = ["scratch"]
    """Models trained beside the child. scratch: same size, its own initialiser, as many tokens as all rounds."""

    run_dir: str = "runs/run"
    """Folder that the run leaves behind; runs/NAME by default, NAME being the recipe's file name."""

    seed: Whole = 0
    """Of the choice and order of documents, the initialisers and the bootstrap."""

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
        values, lines = _read_yaml(path)
        if "run_dir" not in values:
            values["run_dir"] = f"runs/{path.stem}"
        problems = []
        for key, value in overrides.items():
            problem = _override(values, key.replace("-", "_"), _plain(value))
            problems += [problem] if problem else []
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
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads 2e-4 as a number and refuses a key given twice."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)|[+-]?(?:\d+\.\d*|\.\d+)|[+-]?\.inf|\.nan"),
    list("+-0123456789."),
)


def _read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The recipe's values, and the line of each dotted key."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read the recipe {path}: {error}. `inheritune init {path}` writes one.") from error
    try:
        node = yaml.compose(text, Loader=_Loader)
        if node is None:
            raise RecipeError(f"the recipe {path} is empty. `inheritune init` writes a commented one.")
        if not isinstance(node, yaml.MappingNode):
            raise RecipeError(f"{path}:1: a recipe is a mapping of keys. `inheritune init` writes a commented one.")
        lines = {".".join(key): line for key, line in _lines(node)}
        twice = [f"{path}:{line}: {key}: given twice" for key, line in _duplicates(node)]
        if twice:
            raise RecipeError("\n".join(twice))
        values = yaml.load(text, Loader=_Loader)
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
        if name.value in seen:
            yield f"{key}{name.value}", name.start_mark.line + 1
        seen.add(name.value)
        if isinstance(value, yaml.MappingNode):
            yield from _duplicates(value, f"{key}{name.value}.")


def _plain(value: Any) -> Any:
    """A command line's text as YAML would read it."""
    if not isinstance(value, str):
        return value
    try:
        return yaml.load(value, Loader=_Loader)
    except yaml.YAMLError:
        return value


def _override(values: dict[str, Any], key: str, value: Any) -> str | None:
    """Set a dotted key; gives the problem where there is no such key."""
    known = known_keys()
    if key not in known and not any(key.startswith(f"{free}.") for free in FREE_KEYS):
        near = difflib.get_close_matches(key, known, n=1)
        hint = f" Nearest is --{near[0].replace('_', '-')}." if near else ""
        return f"--{key.replace('_', '-')}: there is no such key.{hint}"
    *parents, last = key.split(".")
    part = values
    for parent in parents:
        if not isinstance(part.get(parent), dict):
            part[parent] = {}
        part = part[parent]
    part[last] = value
    return None


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


def train_recipe(values: Mapping[str, str]) -> TrainRecipe:
    """The train part alone, from the command line's words.

    Raises:
        RecipeError: a key that the part does not have.
        ValidationError: a value that its key does not take.
    """
    keys = {key.replace("-", "_"): _plain(value) for key, value in values.items()}
    for key in keys:
        if key not in TrainRecipe.model_fields:
            near = difflib.get_close_matches(key, TrainRecipe.model_fields, n=1)
            hint = f" Nearest is --{near[0].replace('_', '-')}." if near else ""
            raise RecipeError(f"--{key.replace('_', '-')}: there is no such key.{hint}")
    return TrainRecipe(**keys)


def recipe_differences(old: Recipe, new: Recipe) -> list[str]:
    """What differs, as ``train.peak_lr: 0.0003 -> 0.0002``."""
    before, after = _flat(old.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
    return [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key)
    ]


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
        lines.append(f"{indent}# {field.description}")
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
