"""Names of tensors in files: which belong to which layer, and what they are called in a child. Pure.

File names are not module names (old GPT-2 files lack ``transformer.``; experts are stored one by one), so a tensor's
layer is the integer behind the layer list's name; everything else is not under the layer list and is kept.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from inheritune.errors import SurgeryError
from inheritune.surgery.anatomy import OTHER_TOWERS, Anatomy
from inheritune.surgery.selection import is_prefix

PREDICTION_TENSOR = re.compile(r"^(?:model\.)?mtp(?:_\w+)?\.")
"""Multi-token prediction layers that are stored beside the layer list."""


PACKED_OVER_DEPTH = {"embed_tokens_per_layer": 1, "per_layer_model_projection": 0}
"""Gemma 3n and 4: one block for each layer in these matrices, along this axis; a prefix keeps the leading blocks."""


@dataclass(frozen=True)
class LayerNames:
    """Where the layers are in the files.

    Attributes:
        stem: what stands before a layer's number, as ``model.layers.`` or, in old GPT-2 files, ``h.``.
        absent: what the files leave out in front of every name, as ``transformer.``; mostly empty.
    """

    stem: str
    absent: str

    def index(self, name: str) -> int | None:
        """The layer that a tensor belongs to; None outside the layer list."""
        number = name[len(self.stem) :].split(".", 1)[0] if name.startswith(self.stem) else ""
        return int(number) if number.isdecimal() else None

    def renumbered(self, name: str, index: int) -> str:
        """The same tensor's name in layer ``index``."""
        return f"{self.stem}{index}.{name[len(self.stem) :].split('.', 1)[1]}"

    def module_name(self, name: str) -> str:
        """The name that the model's own state dict would use, where the files only leave out the front."""
        return name if name.startswith(self.absent) else self.absent + name


def find_names(names: Iterable[str], anatomy: Anatomy) -> LayerNames:
    """How the files spell the layer list's path.

    Raises:
        SurgeryError: no tensor has a layer's number, or several lists could be meant.
    """
    front, _, last = anatomy.path.rpartition(".")
    pattern = re.compile(rf"^((?:.*?\.)?{re.escape(last)}\.)\d+\.")
    stems = sorted({match[1] for match in map(pattern.match, names) if match})
    parts = front.split(".") if front else []
    for start in range(len(parts) + 1):
        stem = ".".join([*parts[start:], last]) + "."
        if stem in stems:
            return LayerNames(stem, "".join(f"{part}." for part in parts[:start]))
    others = [stem for stem in stems if not any(word in stem for word in OTHER_TOWERS)]
    if len(others) == 1:
        return LayerNames(others[0], "")
    raise SurgeryError(
        f"the layers of {anatomy.model_type!r} ({anatomy.path}) are not in its files under one name: "
        f"found {stems or 'none'}. Load the model with transformers and save it again with save_pretrained."
    )


def map_names(
    names: Iterable[str], layer_names: LayerNames, anatomy: Anatomy, layers: Sequence[int]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Child tensor name -> reference tensor name, and the reference's tensors of prediction layers that are dropped.

    Raises:
        SurgeryError: the files do not hold the layers 0 to depth - 1.
    """
    place = {old: new for new, old in enumerate(layers)}
    mapped: dict[str, str] = {}
    behind: list[str] = []
    found: set[int] = set()
    for name in names:
        index = layer_names.index(name)
        if index is None:
            if PREDICTION_TENSOR.match(name):
                behind.append(name)
            else:
                mapped[name] = name
        elif index >= anatomy.depth:
            behind.append(name)
        else:
            found.add(index)
            if index in place:
                mapped[layer_names.renumbered(name, place[index])] = name
    absent = sorted(set(range(anatomy.depth)) - found)
    if absent:
        raise SurgeryError(
            f"the config states {anatomy.depth} layers, and the files hold no tensor of layer {absent[0]} "
            f"({layer_names.stem}{absent[0]}.*). Mend {anatomy.depth_field} in config.json, or copy the missing shards."
        )
    return mapped, tuple(behind)


def packed_over_depth(name: str, shape: Sequence[int], depth: int, num_kept: int) -> tuple[int, ...] | None:
    """The child's shape of a matrix that holds one block for each layer side by side; None for every other tensor."""
    axis = next((axis for word, axis in PACKED_OVER_DEPTH.items() if f".{word}." in f".{name}"), None)
    if axis is None or len(shape) != 2 or shape[axis] % depth:
        return None
    kept = shape[axis] // depth * num_kept
    return (kept, shape[1]) if axis == 0 else (shape[0], kept)


def check_shapes(
    reference: Mapping[str, Sequence[int]],
    child: Mapping[str, Sequence[int]],
    anatomy: Anatomy,
    layers: Sequence[int],
) -> None:
    """Check that every tensor of the child's class is a tensor of the reference's, of the same shape.

    Args:
        reference: module tensor name -> shape, of the whole reference.
        child: the same of the model that the child's config builds.
        anatomy: where the layers are.
        layers: kept layers.

    Raises:
        SurgeryError: a tensor is missing, left over or of another shape; the first is named.
    """
    module_names = LayerNames(f"{anatomy.path}.", "")
    expected, _ = map_names(reference, module_names, anatomy, layers)
    shapes = {name: _child_shape(source, reference[source], anatomy, layers) for name, source in expected.items()}
    faults = [f"the child needs {name!r}, which the reference lacks" for name in sorted(set(child) - set(expected))]
    faults += [
        f"the reference has {name!r}, for which the child has no place" for name in sorted(set(expected) - set(child))
    ]
    faults += [
        f"{name!r} is {shapes[name]} in the reference and would be {list(child[name])} in the child"
        for name in sorted(set(child) & set(expected))
        if shapes[name] != list(child[name])
    ]
    if faults:
        raise SurgeryError(
            f"{anatomy.model_type!r} cannot be cut exactly from {anatomy.depth} to {len(layers)} layers: {faults[0]}"
            + (f" (and {len(faults) - 1} more)." if len(faults) > 1 else ".")
        )


def _child_shape(name: str, shape: Sequence[int], anatomy: Anatomy, layers: Sequence[int]) -> list[int]:
    """The shape of a reference's tensor in the child: its own, or its leading blocks where it is packed over depth."""
    packed = packed_over_depth(name, shape, anatomy.depth, len(layers)) if is_prefix(layers) else None
    return list(packed or shape)
