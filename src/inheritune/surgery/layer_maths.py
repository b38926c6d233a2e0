"""Whether a child's layers compute what they did in the reference, read off both models on device meta.

Same tensors are not enough: a layer also computes with numbers that its constructor derives from its index, the depth
or the config (a residual scale, the period of a pattern, which layer's keys it reads). They stand in its modules as
plain attributes, so both are compared without a table of architectures.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from inheritune.surgery.anatomy import Anatomy
from inheritune.surgery.exceptions import HARMLESS_SETTINGS, HYBRID_ADAPTER, INDEX_NAMES


def changed_settings(
    reference: nn.Module, child: nn.Module, anatomy: Anatomy, layers: Sequence[int]
) -> list[tuple[str, Any, Any]]:
    """Settings in which a kept layer differs from what it was: (path in the child, value it had, value it has).

    Settings are the class of each module and its attributes that are numbers, words, switches or lists of these; a
    layer's own index is none.
    """
    old, new = reference.get_submodule(anatomy.path), child.get_submodule(anatomy.path)
    assert isinstance(old, nn.ModuleList) and isinstance(new, nn.ModuleList)
    return [
        (f"{anatomy.path}.{place}{path}", had, has)
        for place, index in enumerate(layers)
        for path, had, has in _differences(old[index], new[place], {index: place for place, index in enumerate(layers)})
    ]


def _differences(old: nn.Module, new: nn.Module, places: Mapping[int, int]) -> Iterator[tuple[str, Any, Any]]:
    others = dict(new.named_modules())
    for name, module in old.named_modules():
        path, other = f".{name}" if name else "", others.get(name)
        if other is None and HYBRID_ADAPTER.search(f"{path}."):
            continue
        if other is None or type(other) is not type(module):
            yield path, type(module).__name__, type(other).__name__
            continue
        settings = _settings(module)
        for setting, has in _settings(other).items():
            if not is_same(settings.get(setting), has, places):
                yield f"{path}.{setting}", settings.get(setting), has


def is_same(had: Any, has: Any, places: Mapping[int, int]) -> bool:
    """Whether a setting means the same in the child: equal, or what is left of a list about layers.

    Numbers are compared as float32: so they meet the tensors. ``places`` maps kept layers to their new index.
    """
    if had == has:
        return True
    if isinstance(had, float) and isinstance(has, float):
        return torch.tensor(had).equal(torch.tensor(has)) or had != had
    if isinstance(had, list | tuple) and isinstance(has, list | tuple):
        of_kept = [had[index] for index in places] if len(had) > max(places) else None
        renumbered = [places[index] for index in had if isinstance(index, int) and index in places]
        return list(has) in (list(had), of_kept, renumbered)
    return bool(had == has)


def _settings(module: nn.Module) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and name not in INDEX_NAMES and _is_plain(value)
        if f"{type(module).__name__}.{name}" not in HARMLESS_SETTINGS
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)
