"""Model folders as passthrough merging leaves them: layers taken out of the files, and the config not what it was.

A stand-in for mergekit 0.1.5 (``passthrough``, ``layer_range: [0, 5]``) and what else goes wrong in merges, made from a
saved parent. It shares nothing with the code under test: tensors are told apart by the numbers in their names.

``KINDS`` maps each kind of wrong folder to its maker ``make(parent, folder, depth) -> bool``; False where a parent
cannot go wrong in this way (no per-layer list, no tied head, no tensors whose file names differ from the class's).

Source: measured on mergekit 0.1.5 (the config's depth stays, shards get temporary names until the end, the config is
written after the weights, fused experts are written under the class's names, a tied head is written out).
"""

import json
import re
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
TOWERS = re.compile(r"vision|visual|audio|image|encoder_model|speech")
DEPTHS = ("num_hidden_layers", "decoder_layers", "num_decoder_layers", "n_layer", "n_layers", "num_layers")
TEXTS = ("text_config", "decoder", "generator")

Tensors = dict[str, Tensor]
Make = Callable[[Path, Path, int], bool]


def read(parent: Path) -> tuple[dict[str, Any], Tensors]:
    """Config and tensors of a parent saved in one file."""
    return json.loads((parent / CONFIG).read_text()), load_file(parent / WEIGHTS)


def write(folder: Path, config: dict[str, Any] | None, tensors: Tensors) -> None:
    """A folder of one weight file."""
    folder.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS, {"format": "pt"})
    if config is not None:
        (folder / CONFIG).write_text(json.dumps(config))


def write_shards(folder: Path, tensors: Tensors, names: list[str]) -> dict[str, str]:
    """The tensors dealt out to several files; gives tensor name -> file."""
    folder.mkdir(parents=True, exist_ok=True)
    ordered = sorted(tensors)
    place = {name: names[index * len(names) // len(ordered)] for index, name in enumerate(ordered)}
    for file in names:
        part = {name: tensors[name].contiguous() for name in ordered if place[name] == file}
        save_file(part, folder / file, {"format": "pt"})
    return place


def layer_stem(names: list[str]) -> str:
    """What stands before a layer's number: the stem with the most tensors, outside of towers."""
    counts: dict[str, int] = defaultdict(int)
    for name in names:
        match = re.match(r"^(.*?\.)\d+\.", name)
        if match and not TOWERS.search(match[1]):
            counts[match[1]] += 1
    return max(counts, key=lambda stem: counts[stem])


def first_layers(tensors: Tensors, depth: int) -> Tensors:
    """The tensors without those of the layers from ``depth`` on."""
    stem = layer_stem(list(tensors))
    layer = re.compile(rf"^{re.escape(stem)}(\d+)\.")
    return {
        name: tensor
        for name, tensor in tensors.items()
        if not (match := layer.match(name)) or int(match[1]) < depth
    }  # fmt: skip


def text_of(config: dict[str, Any]) -> dict[str, Any]:
    """The decoder's part of a config dict."""
    return next((config[key] for key in TEXTS if isinstance(config.get(key), dict)), config)


def depth_field(config: dict[str, Any]) -> str | None:
    """The field that states the depth; None where only a list does."""
    return next((name for name in DEPTHS if type(text_of(config).get(name)) is int), None)


def depth_unchanged(parent: Path, folder: Path, depth: int) -> bool:
    """The commonest: five layers in the files, and the parent's config."""
    config, tensors = read(parent)
    kept = first_layers(tensors, depth)
    write(folder, config, kept)
    return len(kept) < len(tensors)


def lists_unchanged(parent: Path, folder: Path, depth: int) -> bool:
    """The number was changed by hand, the per-layer lists were not."""
    config, tensors = read(parent)
    text = text_of(config)
    field = depth_field(config)
    if field is None:
        return False
    before = text[field]
    text[field] = depth
    write(folder, config, first_layers(tensors, depth))
    return any(isinstance(value, list) and len(value) == before for value in text.values())


def tensor_lost(parent: Path, folder: Path, depth: int) -> bool:
    """A tensor that layer 0 does not have was taken for an optional one; here one of the last kept layer is lost."""
    config, tensors = read(parent)
    kept = first_layers(tensors, depth)
    last = sorted(name for name in kept if name.startswith(f"{layer_stem(list(kept))}{depth - 1}."))
    if not last:
        return False
    del kept[last[-1]]
    write(folder, config, kept)
    return True


def head_differs(parent: Path, folder: Path, _depth: int) -> bool:
    """The tied head was written out, and is another one."""
    return _with_head(parent, folder, lambda embedding: embedding + 1)


def head_twice(parent: Path, folder: Path, _depth: int) -> bool:
    """The tied head was written out, byte for byte."""
    return _with_head(parent, folder, lambda embedding: embedding.clone())


def _with_head(parent: Path, folder: Path, head_of: Callable[[Tensor], Tensor]) -> bool:
    config, tensors = read(parent)
    model = AutoModelForCausalLM.from_pretrained(parent)
    tied = {copy: source for copy, source in model.all_tied_weights_keys.items() if source in tensors}
    absent = sorted(copy for copy in tied if copy not in tensors)
    if not absent:
        return False
    tensors[absent[0]] = head_of(tensors[tied[absent[0]]])
    write(folder, config, tensors)
    return True


def without_config(parent: Path, folder: Path, depth: int) -> bool:
    """The config's validator stopped the save after the weights were written."""
    _, tensors = read(parent)
    write(folder, None, first_layers(tensors, depth))
    return True


def temporary_shards(parent: Path, folder: Path, depth: int) -> bool:
    """Killed before the shards were renamed and the index was written; the parent's config was copied by hand."""
    config, tensors = read(parent)
    write_shards(folder, first_layers(tensors, depth), ["model-1.safetensors", "model-2.safetensors"])
    (folder / CONFIG).write_text(json.dumps(config))
    return True


def stale_index(parent: Path, folder: Path, depth: int) -> bool:
    """The parent's index beside the shards of a cut."""
    config, tensors = read(parent)
    kept = first_layers(tensors, depth)
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    place = write_shards(folder, kept, names)
    everywhere = {name: place.get(name, names[-1]) for name in tensors}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": everywhere}))
    (folder / CONFIG).write_text(json.dumps(config))
    return len(kept) < len(tensors)


def class_names(parent: Path, folder: Path, depth: int) -> bool:
    """The tensors fused and named as in the class, where published files have them otherwise."""
    config, tensors = read(parent)
    model = AutoModelForCausalLM.from_pretrained(parent, dtype=torch.float32)
    tied = set(model.all_tied_weights_keys)
    own = {name: tensor.clone() for name, tensor in model.state_dict().items() if name not in tied}
    write(folder, config, first_layers(own, depth))
    return bool(set(own) - set(tensors))


KINDS: dict[str, tuple[Make, str]] = {
    "depth unchanged": (depth_unchanged, "fault"),
    "lists unchanged": (lists_unchanged, "fault"),
    "tensor lost": (tensor_lost, "fault"),
    "head differs": (head_differs, "fault"),
    "head twice": (head_twice, "warning"),
    "without config": (without_config, "fault"),
    "temporary shards": (temporary_shards, "fault"),
    "stale index": (stale_index, "fault"),
    "class names": (class_names, "fault"),
}
"""Kind -> its maker, and how severe the doctor must call it (a head written twice is harmless)."""


def make(kind: str, parent: Path, folder: Path, depth: int) -> bool:
    """Make a wrong folder; False (and no folder) where this parent cannot go wrong so."""
    made = KINDS[kind][0](parent, folder, depth)
    if not made:
        shutil.rmtree(folder, ignore_errors=True)
    return made
