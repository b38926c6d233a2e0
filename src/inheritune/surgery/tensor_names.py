"""Names of tensors in files: which belong to which layer, and what they are called in a child. Pure.

File names are not module names (old GPT-2 files lack ``transformer.``; experts are stored one by one), so a tensor's
layer is the integer behind the layer list's name; everything else is not under the layer list and is kept.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inheritune.errors import SurgeryError
from inheritune.surgery.anatomy import OTHER_TOWERS, Anatomy
from inheritune.surgery.exceptions import (
    PREDICTION_TENSOR,
    is_of_dropped_hybrid,
    is_zero_in_child,
    layer_beside,
    packed_over_depth,
)
from inheritune.surgery.selection import is_prefix


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
        return int(number) if number.isdecimal() else layer_beside(name)

    def renumbered(self, name: str, index: int) -> str:
        """The same tensor's name in layer ``index``."""
        if (beside := layer_beside(name)) is not None:
            front, _, number = name.rpartition(".")
            return f"{front}.{int(number) + index - beside}"
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
    others = [
        stem for stem in stems if not PREDICTION_TENSOR.match(stem) and not any(word in stem for word in OTHER_TOWERS)
    ]
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
            f"({layer_names.stem}{absent[0]}.*). Mend {anatomy.depth_field} in config.json, or copy the missing "
            "shards; `inheritune doctor FOLDER` tells which."
        )
    return mapped, tuple(behind)


def check_shapes(
    reference: Mapping[str, Sequence[int]],
    child: Mapping[str, Sequence[int]],
    anatomy: Anatomy,
    layers: Sequence[int],
    text: Mapping[str, Any],
) -> dict[str, tuple[int, ...]]:
    """Check that every tensor of the child's class is a tensor of the reference's, of the same shape.

    Args:
        reference: module tensor name -> shape, of the whole reference.
        child: the same of the model that the child's config builds.
        anatomy: where the layers are.
        layers: kept layers.
        text: the child's text config, every field of it.

    Returns:
        The child's tensors of zeros that the reference lacks: module tensor name -> shape.

    Raises:
        SurgeryError: a tensor is missing, left over or of another shape; the first is named.
    """
    module_names = LayerNames(f"{anatomy.path}.", "")
    origins, _ = map_names(reference, module_names, anatomy, layers)
    expected = {name: source for name, source in origins.items() if not is_of_dropped_hybrid(name, text)}
    shapes = {name: _child_shape(source, reference[source], anatomy, layers) for name, source in expected.items()}
    new = sorted(set(child) - set(expected))
    zeros = {name: tuple(child[name]) for name in new if is_zero_in_child(anatomy.model_type, name)}
    faults = [f"the child needs {name!r}, which the reference lacks" for name in new if name not in zeros]
    faults += [
        f"the reference has {name!r}, for which the child has no place" for name in sorted(set(expected) - set(child))
    ]
    faults += [
        f"{name!r} is {shapes[name]} in the reference and would be {list(child[name])} in the child"
        for name in sorted(set(child) & set(expected))
        if shapes[name] != list(child[name])
    ]
    if faults:
        kept = f"to {len(layers)} layers" if is_prefix(layers) else f"to the layers {list(layers)}"
        raise SurgeryError(
            f"{anatomy.model_type!r} cannot be cut exactly from {anatomy.depth} {kept}: {faults[0]}"
            + (f" (and {len(faults) - 1} more)." if len(faults) > 1 else ".")
        )
    return zeros


def _child_shape(name: str, shape: Sequence[int], anatomy: Anatomy, layers: Sequence[int]) -> list[int]:
    """The shape of a reference's tensor in the child: its own, or its leading blocks where it is packed over depth."""
    packed = packed_over_depth(name, shape, anatomy.depth, len(layers)) if is_prefix(layers) else None
    return list(packed or shape)
