"""The cut, decided in full before a byte is written: the child's config, its tensors and where each comes from.

Whether it is exact is read off what transformers makes of both configs: every field that it derives must be the edited
one, and both models, built on device meta, must have the same tensors of the same shapes.
"""

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers.modeling_utils import PreTrainedModel

from inheritune.errors import SurgeryError
from inheritune.surgery.anatomy import Anatomy, find_layers
from inheritune.surgery.certificate import Operation
from inheritune.surgery.config_edit import edit_config, edit_text_config
from inheritune.surgery.exceptions import (
    LEAST_DEPTHS,
    OBSTACLES,
    PERIOD_FIELDS,
    PREDICTION_LAYERS,
    is_of_dropped_hybrid,
    packed_over_depth,
)
from inheritune.surgery.folder import (
    Weights,
    build_config,
    build_on_meta,
    limits,
    module_names,
    read_config,
    shown,
    unread_patterns,
)
from inheritune.surgery.layer_maths import changed_settings
from inheritune.surgery.layer_stream import NotByLayer, check_tensors
from inheritune.surgery.scores import scores_for
from inheritune.surgery.selection import is_prefix, parse_selection
from inheritune.surgery.tensor_file import FLOATS, Piece, TensorEntry
from inheritune.surgery.tensor_names import LayerNames, check_shapes, find_names, map_names

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Cut:
    """Everything decided before a byte is written.

    Attributes:
        config: the child's config dict.
        pieces: the child's tensors.
        origins: child tensor name -> reference tensor name.
        notes: for the certificate.
        initial: names of the child's tensors that are not inherited but begin at the model's own initialiser.
    """

    anatomy: Anatomy
    layers: tuple[int, ...]
    config: Mapping[str, Any]
    pieces: tuple[Piece, ...]
    origins: Mapping[str, str]
    notes: tuple[str, ...]
    initial: frozenset[str] = frozenset()

    def operation(self, piece: Piece) -> Operation:
        """How the tensor comes into the child."""
        if piece.source is None:
            return "constant"
        return "init" if piece.name in self.initial else "slice" if piece.leading else "copy"

    def source_of(self, piece: Piece) -> str:
        """What a certificate names as the tensor's source; ``"0"`` is the constant."""
        return "0" if piece.source is None else self.origins[piece.name]


def plan_cut(weights: Weights, layers: int | str | Sequence[int], dtype: str | torch.dtype | None = None) -> Cut:
    """Decide the whole cut from config and headers; reads no weights and writes nothing.

    Raises:
        SurgeryError: the selection, the dtype or the model does not allow an exact cut; says which depth does.
    """
    config = read_config(weights.folder)
    parent_config = build_config(config)
    parent = build_on_meta(parent_config)
    anatomy = find_layers(parent, parent_config)
    selection = parse_selection(layers, anatomy.depth, scores_for(layers))
    full = parent_config.to_dict()
    try:
        sketch = _sketch(config, full, parent, anatomy, selection)
    except SurgeryError as error:
        raise SurgeryError(f"{error} {_advice(config, full, parent, anatomy, selection)}") from error
    child_config, notes = sketch.config, list(sketch.notes)
    layer_names = find_names(weights.tensors, anatomy)
    origins, dropped = map_names(weights.tensors, layer_names, anatomy, selection)
    ignored = unread_patterns(parent)
    unused = _unused(origins, _shapes(parent), layer_names.module_name, ignored)
    if dropped:
        declared = any(anatomy.text_config(full).get(name) for name in PREDICTION_LAYERS)
        if not declared and not all(_matches(layer_names.module_name(name), ignored) for name in dropped):
            raise SurgeryError(
                f"the config of {weights.folder} states {anatomy.depth} layers and no prediction layers, and its files "
                f"hold {dropped[0]!r} behind them. Mend {anatomy.depth_field} in config.json."
            )
        notes.append(f"{len(dropped)} tensors of multi-token prediction layers are dropped (first: {dropped[0]})")
    if is_text_only(parent, parent_config):
        unread = _unread(parent, origins)
        lost = [name for name in unread if layer_names.index(name) is not None]
        if lost:
            raise SurgeryError(
                f"the causal language model of {parent_config.model_type!r} does not read the layers of its wrapper's "
                f"files ({lost[0]}), so there is no text decoder that could be cut. Name another model."
            )
        notes.append(f"the child is the text decoder alone: {len(unread)} tensors of the towers beside it are dropped")
        unused += unread
    elif unused:
        notes.append(f"{len(unused)} tensors that {anatomy.model_type} does not read are dropped (first: {unused[0]})")
    origins = {
        name: source
        for name, source in origins.items()
        if name not in set(unused) and not is_of_dropped_hybrid(name, sketch.text)
    }
    _check_places(origins, parent, sketch.model, anatomy, selection)
    word = _dtype_word(dtype, config)
    may_be_infinite = limits(parent)
    pieces = tuple(
        replace(
            _piece(name, weights.tensors[source], word, anatomy, selection),
            must_be_finite=source.rpartition(".")[2] not in may_be_infinite,
        )
        for name, source in origins.items()
    )
    zeros = _zeros(sketch, layer_names, pieces)
    pieces += zeros
    if word:
        _state_dtype(child_config, str(FLOATS[word]).removeprefix("torch."))
    if zeros:
        notes.append(f"{', '.join(piece.name for piece in zeros)}: zeros, which the class wants in its last layer")
    if any(piece.is_converted for piece in pieces):
        notes.append(f"floating tensors converted to {word}; each hash is that of the converted bytes")
    if not config.get("quantization_config"):  # its scales and packed weights have places once it is loaded only
        with suppress(NotByLayer):  # then what was written is loaded whole
            planned = {piece.name: (piece.dtype, piece.shape) for piece in pieces}
            check_tensors(sketch.model, planned, str(weights.folder), all_are_read=True)
    return Cut(anatomy, selection, child_config, pieces, origins, tuple(notes))


def cut_config(config: Mapping[str, Any], parent: PreTrainedModel, depth: int) -> dict[str, Any]:
    """The config of a child with the first layers, where files are not asked.

    Args:
        config: the reference's config.json.
        parent: its model on device meta.
        depth: kept layers.

    Raises:
        SurgeryError: the child's class would not be the reference's with fewer layers.
    """
    return _sketch(config, parent.config.to_dict(), parent, find_layers(parent), range(depth)).config


@dataclass(frozen=True)
class _Sketch:
    """A child without its weights: the config to be written, notes, the model on device meta, its own text config, and
    the module tensors that are zeros in it."""

    config: dict[str, Any]
    notes: tuple[str, ...]
    model: PreTrainedModel
    text: Mapping[str, Any]
    zeros: Mapping[str, tuple[int, ...]]


def _sketch(
    config: Mapping[str, Any],
    full: Mapping[str, Any],
    parent: PreTrainedModel,
    anatomy: Anatomy,
    layers: Sequence[int],
) -> _Sketch:
    """The child's config and model, after both models were built and compared.

    Args:
        config: the reference's config.json.
        full: every field that transformers makes of it.
        parent: the reference on device meta.
        anatomy: where the layers are.
        layers: kept layers.

    Raises:
        SurgeryError: the child's class would not be the reference's with fewer layers; gives the reason.
    """
    full_text = anatomy.text_config(full)
    try:
        if len(layers) < LEAST_DEPTHS.get(anatomy.model_type, 1):
            raise SurgeryError(f"{anatomy.model_type!r} cannot be cut to {len(layers)} layers.")
        expected = copy.deepcopy(full_text)
        try:
            edited, notes = edit_config(config, full, anatomy, layers)
            edit_text_config(expected, anatomy, layers)
        except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise SurgeryError(
                f"the config of this {anatomy.model_type!r} has a field of another kind than its class's "
                f"({type(error).__name__}: {error}), so it cannot be cut. Mend config.json."
            ) from error
        child_config = build_config(edited)
        found = anatomy.text_config(child_config.to_dict())
        differing = sorted(name for name in full_text if _plain(expected[name]) != _plain(found.get(name)))
        if differing:
            name = differing[0]
            raise SurgeryError(
                f"{anatomy.model_type!r} cannot be cut exactly to the layers {_in_words(layers)}: transformers turns "
                f"{name} into {shown(found.get(name))}, and the kept layers need {shown(expected[name])}."
            )
        child = build_on_meta(child_config)
        if find_layers(child, child_config).path != anatomy.path:
            raise SurgeryError(f"{anatomy.model_type!r} of {len(layers)} layers keeps another list of that length.")
        zeros = check_shapes(_shapes(parent), _shapes(child), anatomy, layers, found)
        changed = _check_maths(parent, child, anatomy, layers)
    except SurgeryError as error:
        obstacle = OBSTACLES.get(str(full_text.get("model_type")))
        if obstacle:
            raise SurgeryError(f"{error} The reason: {obstacle.reason}.") from error
        periods = [name for name in PERIOD_FIELDS if type(full_text.get(name)) is int and full_text[name] > 1]
        if periods and not is_prefix(layers):
            raise SurgeryError(
                f"{error} The config states the kind of a layer by its index ({periods[0]} = {full_text[periods[0]]}); "
                "choose a prefix: a number of layers."
            ) from error
        raise
    return _Sketch(edited, (*notes, *changed), child, found, zeros)


def _shapes(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """Module tensor name -> shape."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _check_maths(
    parent: PreTrainedModel, child: PreTrainedModel, anatomy: Anatomy, layers: Sequence[int]
) -> tuple[str, ...]:
    """Notes on what moved layers compute otherwise than they did.

    Raises:
        SurgeryError: a layer is of another kind than it was, or layers of a prefix compute something else.
    """
    if not is_prefix(layers):
        shared = [name for name in parent.all_tied_weights_keys if name.startswith(f"{anatomy.path}.")]
        if shared:
            raise SurgeryError(
                f"layers of {anatomy.model_type!r} share tensors ({shared[0]}), which are stored with the first of "
                "them, so that only first layers can be kept. Choose a prefix: a number of layers."
            )
    changed = changed_settings(parent, child, anatomy, layers)
    for path, had, has in changed:
        if is_prefix(layers) or isinstance(had, bool | str) or isinstance(has, bool | str):
            raise SurgeryError(
                f"{anatomy.model_type!r} cannot be cut exactly to the layers {_in_words(layers)}: {path} would be "
                f"{shown(has)}, and is {shown(had)} in the reference."
            )
    if not changed:
        return ()
    names = sorted({path.rpartition(".")[2] for path, _, _ in changed})
    path, had, has = changed[0]
    return (
        f"moved layers do not compute what they did, since this depends on their index: {', '.join(names)} "
        f"({path} is {has!r}, was {had!r})",
    )


def _check_places(
    origins: Mapping[str, str],
    parent: PreTrainedModel,
    child: PreTrainedModel,
    anatomy: Anatomy,
    layers: Sequence[int],
) -> None:
    """Check that transformers loads every tensor of the child's files to where its source belongs.

    What has no place in the reference's own class is the reference's affair (scales of quantised weights).

    Raises:
        SurgeryError: a tensor would be lost or go elsewhere.
    """
    place = {old: new for new, old in enumerate(layers)}
    names = LayerNames(f"{anatomy.path}.", "")
    sources, found = module_names(parent, origins.values()), module_names(child, origins)
    known, places = parent.state_dict().keys(), child.state_dict().keys()
    for name, source in origins.items():
        module = sources[source]
        if module not in known:
            continue
        index = names.index(module)
        wanted = module if index is None else names.renumbered(module, place.get(index, -1))
        if wanted != found[name] or wanted not in places:
            raise SurgeryError(
                f"{anatomy.model_type!r} cannot be cut exactly to the layers {_in_words(layers)}: {source!r} is "
                f"{module} in the reference, and {name!r} would have no such place in the child. "
                "Load the model with transformers and save it again with save_pretrained."
            )


def _zeros(sketch: _Sketch, layer_names: LayerNames, pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    """The tensors of zeros that the child's class wants, in the spelling and the dtype of the files."""
    return tuple(
        Piece(name.removeprefix(layer_names.absent), None, pieces[0].dtype, shape)
        for name, shape in sketch.zeros.items()
    )


def _plain(value: Any) -> Any:
    """A config value with tuples as lists and keys as text without leading zeros, so that spellings compare."""
    if isinstance(value, Mapping):
        return {str(int(key)) if str(key).isdecimal() else str(key): _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def _in_words(layers: Sequence[int]) -> str:
    return f"0 to {len(layers) - 1}" if is_prefix(layers) else str(list(layers))


def _advice(
    config: Mapping[str, Any],
    full: Mapping[str, Any],
    parent: PreTrainedModel,
    anatomy: Anatomy,
    layers: Sequence[int],
) -> str:
    """What to type instead of a refused selection: the nearest number of first layers that can be cut exactly."""
    for depth in sorted(range(1, anatomy.depth), key=lambda depth: (abs(depth - len(layers)), depth)):
        try:
            _sketch(config, full, parent, anatomy, range(depth))
        except SurgeryError:
            continue
        return f"The nearest depth that can be cut exactly is {depth}: --layers {depth}."
    return "No smaller depth of this model can be cut exactly; name another model."


def _unused(
    origins: Mapping[str, str], shapes: Shapes, module_name: Callable[[str], str], patterns: Sequence[str]
) -> list[str]:
    """Child names of tensors that the class has no place for and does not read."""
    return sorted(
        name
        for name, source in origins.items()
        if module_name(source) not in shapes and _matches(module_name(source), patterns)
    )


def is_text_only(model: PreTrainedModel, config: Any) -> bool:
    """Whether the causal LM of a config is built from the text part of it alone."""
    return bool(model.config.model_type != config.model_type)


def _unread(model: PreTrainedModel, origins: Mapping[str, str]) -> list[str]:
    """Child names of tensors for which the class has no place, wherever transformers would load them."""
    modules, places = module_names(model, origins.values()), model.state_dict().keys()
    return sorted(name for name, source in origins.items() if modules[source] not in places)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether transformers says that it does not read a tensor of this name."""
    return re.search("|".join(patterns), name) is not None


def _piece(name: str, entry: TensorEntry, word: str | None, anatomy: Anatomy, layers: Sequence[int]) -> Piece:
    """The child's tensor: the reference's whole, or its leading blocks where it is packed over depth."""
    packed = packed_over_depth(name, entry.shape, anatomy.depth, len(layers)) if is_prefix(layers) else None
    dtype = word if word and entry.dtype in FLOATS else entry.dtype
    return Piece(name, entry, dtype, None if packed == entry.shape else packed)


def _state_dtype(config: dict[str, Any], name: str) -> None:
    """State the dtype, in the configs inside it too, which transformers loads their models by."""
    config.pop("torch_dtype", None)
    config["dtype"] = name
    for inner in config.values():
        if isinstance(inner, dict) and "model_type" in inner:
            _state_dtype(inner, name)


def _dtype_word(dtype: str | torch.dtype | None, config: Mapping[str, Any]) -> str | None:
    """The asked dtype in the words of the file format; None: each tensor keeps its own.

    Raises:
        SurgeryError: it is no floating dtype, or the reference is quantised.
    """
    if dtype is None:
        return None
    words = {str(value).removeprefix("torch."): word for word, value in FLOATS.items()}
    name = str(dtype).removeprefix("torch.")
    if name not in words:
        raise SurgeryError(f"a child cannot have the dtype {name!r}. Choose one of {', '.join(sorted(words))}.")
    if config.get("quantization_config"):
        raise SurgeryError(
            f"the reference is quantised, so its dtype cannot be changed to {name} here. Leave dtype out, or "
            "dequantise the reference first and save it."
        )
    return words[name]
