"""The parts of a recipe: frozen, checked field by field, each documented where it stands. No torch in here."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from inheritune.selection_words import WORDS, parse_selection_words
from inheritune.units import parse_fraction, parse_quantity

Count = Annotated[int, BeforeValidator(lambda value: parse_quantity(value)), Field(gt=0)]
"""A positive whole number; ``131k`` and ``1B`` are understood."""

Whole = Annotated[int, BeforeValidator(lambda value: parse_quantity(value)), Field(ge=0)]
"""A whole number from 0."""

Fraction = Annotated[float, BeforeValidator(lambda value: parse_fraction(value))]
"""A part of a whole; ``5%`` is understood."""

PositiveFloat = Annotated[float, BeforeValidator(lambda value: _no_switch(value)), Field(gt=0, allow_inf_nan=False)]

NonNegativeFloat = Annotated[float, BeforeValidator(lambda value: _no_switch(value)), Field(ge=0, allow_inf_nan=False)]


def _no_switch(value: Any) -> Any:
    """True and false are no numbers."""
    if isinstance(value, bool):
        raise ValueError("should be a number, not true or false")
    return value


def _target(value: Any) -> Any:
    """The reference's loss, or a number above 0."""
    if value == "reference":
        return value
    try:
        number = float(_no_switch(value))
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError("should be 'reference' or a number above 0")
    return number


def _layers(value: Any) -> Any:
    """Layers to inherit; whether the reference has them is known later."""
    if isinstance(value, str):
        words = parse_selection_words(value)
        if words.kind != "first":
            return value.strip()
        value = words.number
    if type(value) is int and value > 0:
        return value
    if isinstance(value, list | tuple) and value and all(type(index) is int and index >= 0 for index in value):
        if list(value) == sorted(set(value)):
            return list(value)
        raise ValueError(f"the layers are not in increasing order; write each once: {sorted(set(value))}")
    raise ValueError(f"should be a number of layers above 0, increasing indices from 0, or one of {WORDS}")


def _listed(value: Any) -> Any:
    """One source stands for a list of one."""
    return [value] if isinstance(value, str | dict) else value


def section(value: Any) -> Any:
    """A section whose keys are all left out is the section with its defaults."""
    return {} if value is None else value


class RecipePart(BaseModel):
    """A part of a recipe: frozen, no unknown keys, documented by its docstrings."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ReferenceTraining(RecipePart):
    """How to make the reference first, on the same data."""

    config: dict[str, Any]
    """Hugging Face config as a mapping: model_type and its fields."""

    passes: Count = 10
    """How often the reference goes over the token budget."""

    tokenizer: str | None = None
    """Folder of a tokenizer; null trains a byte-level one of config.vocab_size on the training side of the data."""


class ReferenceRecipe(RecipePart):
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


class SourceRecipe(RecipePart):
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


class ValidationRecipe(RecipePart):
    """The one validation set, split off by a hash of each text."""

    fraction: Annotated[Fraction, Field(gt=0, lt=1)] = 0.05
    """Part of the documents."""

    min_documents: Count = 200
    """The fewest documents, both halves together; the fraction is raised where need be."""

    max_documents: Count = 4000
    """The most documents that are scored."""

    document_bytes: Count = 32768
    """Bytes of a validation document that are scored; the rest of it is left out."""


class DataRecipe(RecipePart):
    """Text to train and validate on."""

    sources: Annotated[list[str | SourceRecipe], Field(min_length=1), BeforeValidator(_listed)]
    """Files, folders, globs (.txt, .jsonl, .parquet, also .zst), or mappings such as {hub: NAME}."""

    text_field: str = "text"
    """Field with the text in JSON lines and tables."""

    token_budget: Count | None = None
    """Training tokens drawn at random, once; null takes all."""

    sequence_length: Count = 1024
    """Tokens per row; also the window that validation is scored in."""

    validation: Annotated[ValidationRecipe, BeforeValidator(section)] = ValidationRecipe()
    """The validation set."""


class InheritRecipe(RecipePart):
    """What the first child keeps."""

    layers: Annotated[int | str | list[int], BeforeValidator(_layers)] = "half"
    """A number of first layers, half, or the same in other words, as 0-11 or 'drop 20-27'; growth needs a prefix."""


class GrowthRecipe(RecipePart):
    """When the child is deepened, and when the search ends."""

    mode: Literal["restart", "continue", "identity"] = "restart"
    """restart: each round inherits a deeper prefix and starts anew, as published; continue: the trained child keeps its
    weights and gets the reference's next layers on top; identity: the same, and the added layers begin as no-ops."""

    start_depth: Count | None = None
    """Layers of the first child; null takes inherit.layers."""

    step: Count = 2
    """Layers added per round."""

    rewarm_fraction: Annotated[Fraction, Field(ge=0, lt=1)] = 0.02
    """Part of a later round spent rising to train.peak_lr again (continue, identity)."""

    max_depth: Count | None = None
    """Layers of the deepest child; null is the reference's depth minus 1."""

    margin: NonNegativeFloat = 0.01
    """Nats per token that the interval's upper end may lie above the target and still count as parity."""

    target: Annotated[Literal["reference"] | float, BeforeValidator(_target)] = "reference"
    """The loss to match: the reference's, or a number in nats per token."""

    total_tokens: Count | None = None
    """End the search before a round that would spend more than this in all; null has no end but max_depth."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.start_depth is not None and self.max_depth is not None and self.start_depth > self.max_depth:
            raise ValueError(f"start_depth {self.start_depth} is above max_depth {self.max_depth}")
        return self


class TrainRecipe(RecipePart):
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

    on_bad_step: Literal["skip", "stop", "rewind"] = "skip"
    """What a loss or gradient that is not finite, or a loss 6 sigma above its last 128, does: its step is left out; the
    run stops; or it goes back to the last validation and on with the text that follows."""

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto takes bfloat16 where a short probe finds it faster; weights and moments stay float32."""

    moments: Literal["float32", "bfloat16", "8bit"] = "float32"
    """How AdamW's two moments are kept: 8, 4 or about 2 bytes per parameter (docs/memory.md)."""

    activation_checkpointing: Literal["auto"] | bool = "auto"
    """Compute each layer again in the backward pass instead of keeping its activations; auto does where memory runs out
    at a micro-batch of one sequence."""

    compile: Literal["auto"] | bool = "auto"
    """auto compiles where a compiler is there and the round is long enough to pay for it."""

    deterministic: bool = True
    """Bitwise the same result on the same kind of machine; exact resume needs it."""

    validations: Count = 20
    """Looks at the watch half per round, beside the one before the first step."""

    save_every_minutes: PositiveFloat = 10.0
    """Time between checkpoints."""

    keep_checkpoints: Count = 2
    """Checkpoints kept while a stage runs, beside the one from before its cool-down, which a finished stage keeps."""

    tensorboard: bool = False
    """Write what metrics.jsonl gets for TensorBoard, too (pip install 'inheritune[tensorboard]')."""

    beta2_half_life: Count | None = None
    """Instead of beta2: tokens after which a squared gradient counts half, at any batch size (arXiv:2507.07101)."""

    average_half_life: Count | None = None
    """Tokens after which a step's weights count half in the moving average; null keeps no average."""

    inherited_lr_scale: PositiveFloat = 1.0
    """Factor on the learning rate of all that was there before the round; layers added in it have the full rate."""

    freeze: list[str] = Field(default=[])
    """Parameters to leave as inherited: name patterns, in quotes, as ["model.embed_tokens.*", "*.layers.0.*"]."""

    distill_weight: Fraction = 0.0
    """Part of the loss that is the divergence from the reference's next-token probabilities; 1 is all of it."""

    distill_temperature: PositiveFloat = 1.0
    """Both models' logits are divided by it before they are compared; above 1 makes unlikely tokens count more."""

    dropout: Annotated[Fraction, Field(lt=1)] = 0.0
    """Share of activations and attention weights set to zero while training; for many passes."""

    @model_validator(mode="after")
    def _fits_in_a_round(self) -> Self:
        if self.schedule == "wsd" and self.warmup_fraction + self.cooldown_fraction > 1:
            raise ValueError("warmup_fraction and cooldown_fraction are together more than the whole round; lower one")
        return self


class TasksRecipe(RecipePart):
    """Downstream tasks that reference, rounds and baselines are scored on."""

    data: str | None = None
    """Folder with the tasks' rows (docs/evaluation.md), or hub to read them there; null scores no tasks."""

    suite: Literal["signal", "fineweb", "paper"] | list[str] = "signal"
    """Tasks: signal moves early in training; fineweb, paper, or a list of names."""

    limit: Annotated[int, BeforeValidator(lambda value: parse_quantity(value)), Field(ge=2)] | None = None
    """The first so many items of each; null takes all."""
