"""The config that a folder's files are of, where it follows from them. Nothing is written here."""

import copy
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import CONFIG_MAPPING
from transformers.modeling_utils import PreTrainedModel

from inheritune.errors import SurgeryError
from inheritune.surgery.anatomy import DEPTH_FIELDS, TEXT_CONFIGS, find_layers
from inheritune.surgery.config_edit import INDEX_LISTS, ONE_BASED_LISTS, PER_LAYER_DICTS, PER_LAYER_LISTS
from inheritune.surgery.cut import cut_config
from inheritune.surgery.exceptions import (
    PREDICTION_LAYERS,
    PREDICTION_TENSOR,
    SECOND_DEPTHS,
    is_of_dropped_hybrid,
    layer_beside,
)
from inheritune.surgery.folder import build_config, build_on_meta
from inheritune.surgery.tensor_names import LayerNames, find_names


@dataclass(frozen=True)
class Mended:
    """A config that has been made to state what the files hold.

    Attributes:
        config: the new config dict.
        depth: that it states.
    """

    config: Mapping[str, Any]
    depth: int


@dataclass(frozen=True)
class Held:
    """The layers that files hold.

    Attributes:
        depth: whole run of layers from 0 on, prediction layers left out.
        beyond: indices of further layers, behind a hole or behind the depth that the config states.
    """

    depth: int
    beyond: tuple[int, ...]


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a config dict that describes the decoder: the dict itself, or that of a text model in it."""
    for key in TEXT_CONFIGS:
        if isinstance(config.get(key), dict):
            return config[key]  # type: ignore[no-any-return]
    assert isinstance(config, dict)
    return config


def depth_field(text: Mapping[str, Any]) -> str | None:
    """Which field of the decoder's config states the depth; None where none does."""
    model_type = text.get("model_type")
    known = isinstance(model_type, str) and model_type in CONFIG_MAPPING
    mapped = CONFIG_MAPPING[model_type].attribute_map.get(DEPTH_FIELDS[0]) if known else None
    fields = [field for field in (mapped, *DEPTH_FIELDS) if field and type(text.get(field)) is int and text[field] >= 1]
    return fields[0] if fields else None


def list_lengths(text: Mapping[str, Any]) -> dict[str, int]:
    """Length of each list of the decoder's config that has one entry for each layer."""
    return {name: len(text[name]) for name in sorted(PER_LAYER_LISTS & set(text)) if isinstance(text[name], list)}


def stale_indices(text: Mapping[str, Any], depth: int) -> dict[str, list[int]]:
    """Fields that list or describe layers by index -> those indices that a model of this depth does not have."""
    stale = {}
    for name in sorted((INDEX_LISTS | ONE_BASED_LISTS | PER_LAYER_DICTS) & set(text)):
        value = text[name] if isinstance(text[name], list | dict) else []
        indices = [int(index) - (name in ONE_BASED_LISTS) for index in value if str(index).isdecimal()]
        if beyond := [index for index in indices if index >= depth]:
            stale[name] = beyond
    return stale


def prediction_depth(text: Mapping[str, Any]) -> int:
    """Multi-token prediction layers that the decoder's config states."""
    return max((text[name] for name in PREDICTION_LAYERS if type(text.get(name)) is int), default=0)


def stale_prediction(text: Mapping[str, Any]) -> list[str]:
    """Fields that state prediction layers."""
    return sorted(name for name in PREDICTION_LAYERS if text.get(name))


def without_prediction(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same config without prediction layers."""
    mended = copy.deepcopy(dict(config))
    text = text_config(mended)
    for name in stale_prediction(text):
        text[name] = copy.deepcopy(PREDICTION_LAYERS[name])
    return mended


def held_layers(names: Iterable[str], layer_names: LayerNames, stated: int, num_predicting: int) -> Held:
    """Which layers are in the files.

    Args:
        names: of the files' tensors.
        layer_names: how the files spell the layers.
        stated: depth that the config states.
        num_predicting: layers behind the stated depth that are no decoder layers.
    """
    inside = [name for name in names if layer_beside(name) is None]
    indices = {index for name in inside if (index := layer_names.index(name)) is not None}
    run = next(index for index in range(len(indices) + 1) if index not in indices)
    if stated < run <= stated + num_predicting:
        run = stated
    return Held(run, tuple(sorted(index for index in indices if index >= run)))


def prediction_tensors(names: Iterable[str], layer_names: LayerNames, depth: int) -> list[str]:
    """Tensors of prediction layers: beside the layer list, or behind its last layer."""
    return [
        name
        for name in names
        if PREDICTION_TENSOR.match(name) or ((index := layer_names.index(name)) is not None and index >= depth)
    ]


def leftovers(names: Iterable[str], layer_names: LayerNames, depth: int, model: PreTrainedModel) -> set[str]:
    """Tensors that a model of this depth has no use for: of prediction layers, and beside layers that are not there.

    Args:
        names: of the files' tensors.
        layer_names: how the files spell the layers.
        depth: layers that are there.
        model: of this depth, on device meta.
    """
    names = list(names)
    text = model.config.get_text_config(decoder=True).to_dict()
    beside = [name for name in names if is_of_dropped_hybrid(name, text) or (layer_beside(name) or 0) >= depth]
    return {*prediction_tensors(names, layer_names, depth), *beside}


def deeper_depths(text: Mapping[str, Any], stated: int | None, held: int | None) -> list[int]:
    """Depths that the config may have been of, the likeliest first: of most of its lists, stated, of the files."""
    lengths = Counter(list_lengths(text).values()).most_common(1)
    depths = [*(length for length, _ in lengths), stated, held]
    return list(dict.fromkeys(depth for depth in depths if depth))


def mend(
    config: Mapping[str, Any], depth_name: str, deeper: int, names: Collection[str]
) -> tuple[Mended, LayerNames, PreTrainedModel]:
    """The config cut to the layers that the files hold, as if it were that of a deeper model.

    Args:
        config: config.json of the folder.
        depth_name: field that states the depth.
        deeper: depth of the model that the config was of.
        names: of the files' tensors.

    Returns:
        The new config, how the files spell the layers, and the new config's model on device meta.

    Raises:
        SurgeryError: the config is not of that depth, or cannot state the files' layers.
    """
    reference = copy.deepcopy(dict(config))
    text = text_config(reference)
    stated = text.get(depth_name)
    for name in {depth_name, *DEPTH_FIELDS, *SECOND_DEPTHS} & set(text):
        if text[name] == stated:
            text[name] = deeper
    parent = build_on_meta(build_config(reference))
    anatomy = find_layers(parent)
    if anatomy.depth != deeper:
        raise SurgeryError(f"{depth_name} does not state the depth of this model. Mend config.json by hand.")
    layer_names = find_names(names, anatomy)
    held = held_layers(names, layer_names, deeper, prediction_depth(text))
    if not 1 <= held.depth <= deeper:
        raise SurgeryError(f"the files hold {held.depth} layers, more than {deeper}. Mend config.json by hand.")
    edited = cut_config(reference, parent, held.depth)
    others = set(list_lengths(text_config(edited)).values()) - {held.depth}
    if others:
        raise SurgeryError(f"its lists have {sorted(others)} entries, not {held.depth}. Mend config.json by hand.")
    return Mended(edited, held.depth), layer_names, build_on_meta(build_config(edited))
