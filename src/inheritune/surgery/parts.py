"""Partial inheritance, for ablations: some parts of the kept layers are the reference's, the rest begins at random.

Which tensors of a layer are its attention, its MLP or its norms is read off the layer's own modules (the names of their
attributes and classes, and their shapes) on device meta: no table of architectures, and what fits none is refused.

Source: arXiv:2404.08634 v4, table 3 (attention, MLP, with and without norms); its released scripts (``published``).
"""

import glob
import math
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import PreTrainedModel

from inheritune.errors import RecipeError, SurgeryError
from inheritune.runs import is_running, require_space
from inheritune.surgery.anatomy import find_layers, layer_modules
from inheritune.surgery.cut import Cut
from inheritune.surgery.folder import WEIGHTS, build_config, build_on_meta, check_files, quiet
from inheritune.surgery.proof import fits_in_memory
from inheritune.surgery.tensor_file import FLOATS, Piece, TensorEntry
from inheritune.surgery.tensor_names import LayerNames, find_names

Parts = Literal["all", "attention", "attention+norms", "mlp", "mlp+norms", "attention+mlp", "published"]
"""What is inherited. ``published``: the layers and the head (with the input embedding where the two are tied)."""

Part = Literal["attention", "mlp", "norms"]

KEPT: Mapping[Parts, frozenset[Part]] = {
    "attention": frozenset({"attention"}),
    "attention+norms": frozenset({"attention", "norms"}),
    "mlp": frozenset({"mlp"}),
    "mlp+norms": frozenset({"mlp", "norms"}),
    "attention+mlp": frozenset({"attention", "mlp"}),
}
"""The parts of each layer that are inherited, where not all are."""

ATTENTION_ATTRIBUTE = re.compile(r"(^|_)(attn|attentions?|mixer)$")
MLP_ATTRIBUTE = re.compile(r"(^|_)(mlps?|ffn|feed_?forward|moe|experts|fc1|fc2)$")
NORM_ATTRIBUTE = re.compile(r"norm|(^|_)ln(\d|_|$)")
"""Attributes that hold the attention (what mixes positions), the MLP (what works on each position alone), a norm."""

ATTENTION_CLASSES = ("attention", "mixer")
MLP_CLASSES = ("mlp", "ffn", "feedforward", "experts")
NORM_CLASS = "norm"
"""The same in the names of classes; ``moe`` is not among them, since it is part of many models' names."""

INITIAL = "init"
"""What a certificate names as the source of a tensor from the initialiser."""

LEFT_OVER = ".{name}.{process}.init"
"""Name of the folder that holds the initialiser's tensors for a while, beside the child's folder."""


def choose_parts(cut: Cut, parts: Parts, seed: int, out: Path) -> Cut:
    """The cut with the tensors that are not inherited marked as the initialiser's; nothing is made yet.

    Args:
        cut: of whole layers.
        parts: what is inherited.
        seed: of the initialiser.
        out: the child's folder, beside which the initialiser's tensors will lie for a while.

    Raises:
        RecipeError: there is no such choice of parts.
        SurgeryError: the reference's layers cannot be told apart into these parts, or its files spell a tensor as
            transformers would not; names the tensor.
    """
    if parts not in get_args(Parts):
        raise RecipeError(f"there are no parts {parts!r} to inherit. Choose one of {', '.join(get_args(Parts))}.")
    if parts == "all":
        return cut
    if cut.config.get("quantization_config"):
        raise SurgeryError(
            f"the reference is quantised, and an initialiser makes no quantised weights, so parts={parts!r} cannot be "
            "inherited alone. Inherit all parts, or dequantise the reference first and save it."
        )
    model = build_on_meta(build_config(cut.config))
    places = _published_places(model) if parts == "published" else _layer_places(model)
    kept = {"layer", "head"} if parts == "published" else {"other", *KEPT[parts]}
    initial = _left_out(model, cut, find_names(cut.origins, cut.anatomy), places, kept)
    planned = _planned_file(cut, initial, _beside(out) / WEIGHTS)
    return replace(
        cut,
        pieces=tuple(planned.get(piece.name, piece) for piece in cut.pieces),
        origins={**cut.origins, **dict.fromkeys(initial, INITIAL)},
        notes=(*cut.notes, _note(parts, initial, cut, seed)),
        initial=initial,
    )


def _note(parts: Parts, initial: frozenset[str], cut: Cut, seed: int) -> str:
    """What was left to the initialiser, in words."""
    rest = f"{len(initial)} of {len(cut.pieces)} tensors begin at the model's own initialiser (seed {seed})"
    if parts == "published":
        outside = ", ".join(sorted(initial)) or "none"
        return f"parts=published: the layers and the head are inherited, as by the published scripts; {rest}: {outside}"
    return (
        f"parts={parts}: of each layer {parts.replace('+', ' and ')} alone, and all that is no layer (embeddings, "
        f"final norm, head), are inherited; {rest}"
    )


Places = Mapping[str, str]
"""Module tensor name -> where it is: ``layer``, ``head`` or ``other``, or the part of a layer."""


def _published_places(model: PreTrainedModel) -> Places:
    """Layers, the head (with the input embedding where the two are tied), and what is neither."""
    head = model.get_output_embeddings()
    if head is None:
        raise SurgeryError(
            f"the head of {model.config.model_type!r} cannot be told from its other tensors, so parts='published' is "
            "not defined for it. Choose other parts."
        )
    in_layers = {id(tensor) for tensor in layer_modules(model).state_dict(keep_vars=True).values()}
    in_head = {id(tensor) for tensor in head.parameters()}
    return {
        name: "layer" if id(tensor) in in_layers else "head" if id(tensor) in in_head else "other"
        for name, tensor in model.state_dict(keep_vars=True).items()
    }


def _layer_places(model: PreTrainedModel) -> Places:
    """The part of each tensor of a layer; ``other`` for what is no layer.

    Raises:
        SurgeryError: a layer has a tensor that is none of them, or lacks attention or MLP; names it.
    """
    path, model_type = find_layers(model).path, model.config.model_type
    places = dict.fromkeys(model.state_dict(), "other")
    for index, layer in enumerate(layer_modules(model)):
        told = parts_of(layer)
        for needed in ("attention", "mlp"):
            if needed not in told.values():
                found = dict.fromkeys(f"{name.split('.')[0]} ({part or 'not told'})" for name, part in told.items())
                raise SurgeryError(
                    f"layer {index} of {model_type!r} has no {needed} of its own (it has {', '.join(found)}), so it "
                    "cannot be inherited in parts. Choose parts 'all' or 'published'."
                )
        for name, part in told.items():
            if part is None:
                raise SurgeryError(
                    f"'{path}.{index}.{name}' of {model_type!r} is neither attention nor MLP nor norm by the names of "
                    "its modules, so its layers cannot be inherited in parts. Choose parts 'all' or 'published'."
                )
            places[f"{path}.{index}.{name}"] = part
    return places


def _left_out(
    model: PreTrainedModel, cut: Cut, names: LayerNames, places: Places, kept: Collection[str]
) -> frozenset[str]:
    """Names of the child's tensors whose place is not among those that are inherited.

    Files spell some names otherwise than modules do, so each place's tensors are renamed (and, for experts, taken
    apart) as transformers does it when it saves a model.

    Raises:
        SurgeryError: the files spell a tensor as transformers would not.
    """
    tensors = model.state_dict()
    saved: dict[str, tuple[str, tuple[int, ...]]] = {}
    for place in set(places.values()):
        inside = {name: tensor for name, tensor in tensors.items() if places[name] == place}
        for name, tensor in revert_weight_conversion(model, inside).items():
            saved[name] = place, tuple(tensor.shape)
    left_out = set()
    for piece in cut.pieces:
        place, shape = saved.get(piece.name) or saved.get(names.module_name(piece.name)) or ("", ())
        if not place or (place not in kept and shape != piece.shape):
            found = f"the shape {list(shape)}" if place else "no tensor of this name"
            raise SurgeryError(
                f"the reference's files hold {piece.name!r} with the shape {list(piece.shape)}, and transformers saves "
                f"a fresh {cut.anatomy.model_type!r} with {found}, so parts of it cannot be told. Load the reference "
                "with transformers, save it again with save_pretrained, and inherit from that."
            )
        if place not in kept:
            left_out.add(piece.name)
    return frozenset(left_out)


def parts_of(module: nn.Module, inside: Part | None = None) -> dict[str, Part | None]:
    """Tensor of a layer -> the part that it belongs to; None where that is not told.

    The outermost module that its names tell decides for all that is in it, but for norms, which are norms wherever
    they are (those of queries and keys, too). A module whose two names contradict each other tells nothing.

    Args:
        module: the layer, or a module in it.
        inside: the part that the modules around it have told.
    """
    told: dict[str, Part | None] = {}
    children = {name: child for name, child in module.named_children() if child.state_dict()}
    for name, tensor in module.state_dict().items():
        if "." not in name:
            named = _named(name, "")
            told[name] = "norms" if "norms" in named and tensor.dim() < 2 else inside or _only(named)
    for name, child in children.items():
        named = _named(name, type(child).__name__)
        tensors = child.state_dict()
        is_leaf = not any("." in each for each in tensors)
        is_norm = NORM_CLASS in type(child).__name__.lower() or all(each.dim() < 2 for each in tensors.values())
        if "norms" in named and is_leaf and is_norm:
            told |= dict.fromkeys((f"{name}.{each}" for each in tensors), "norms")
        elif named == {"norms"}:  # with something else in it
            told |= dict.fromkeys(f"{name}.{each}" for each in tensors)
        else:
            found = parts_of(child, inside or _only(named))
            told |= {f"{name}.{each}": part for each, part in found.items()}
    return told


def _named(attribute: str, class_name: str) -> set[Part]:
    """The parts that the two names of a module (or the name of a tensor, without a class) speak of."""
    attribute, class_name = attribute.lower(), class_name.lower()
    named: set[Part] = set()
    if NORM_ATTRIBUTE.search(attribute) or NORM_CLASS in class_name:
        named.add("norms")
    if ATTENTION_ATTRIBUTE.search(attribute) or any(word in class_name for word in ATTENTION_CLASSES):
        named.add("attention")
    if MLP_ATTRIBUTE.search(attribute) or any(word in class_name for word in MLP_CLASSES):
        named.add("mlp")
    return named


def _only(named: set[Part]) -> Part | None:
    """The one part that is spoken of."""
    return next(iter(named)) if len(named) == 1 else None


def _planned_file(cut: Cut, initial: frozenset[str], file: Path) -> dict[str, Piece]:
    """The initialiser's tensors as they will lie in its file: float32, in the order of their names."""
    planned: dict[str, Piece] = {}
    end = 0
    for piece in sorted((piece for piece in cut.pieces if piece.name in initial), key=lambda piece: piece.name):
        dtype = "F32" if piece.dtype in FLOATS else piece.dtype
        flat = replace(piece, dtype=dtype)
        entry = TensorEntry(file, dtype, piece.shape, end, end + flat.num_bytes, piece.name)
        planned[piece.name] = replace(piece, source=entry, leading=None)
        end = entry.end
    return planned


@contextmanager
def initialised(cut: Cut, seed: int, out: Path) -> Iterator[Cut]:
    """While the block runs, the initialiser's tensors of the cut lie in a file of their own.

    The whole child is built in float32 by transformers, under the seed, and each tensor is converted to the dtype that
    the reference's has, once it is copied. Other random numbers are not disturbed.

    Raises:
        SurgeryError: it does not fit in memory.
        DiskError: no space for it.
    """
    _sweep(out)
    if not cut.initial:
        yield cut
        return
    if not fits_in_memory([piece.source for piece in cut.pieces if piece.source]):
        raise SurgeryError(
            "the child in float32 does not fit in the memory that is free, and its initialiser needs it so. Use a "
            "machine with more memory, or inherit all parts."
        )
    require_space(out, sum(4 * math.prod(piece.shape) for piece in cut.pieces), "the initialiser's tensors")
    beside = _beside(out)
    try:
        with quiet():
            _initial_model(cut.config, seed).save_pretrained(beside, max_shard_size="1TB")
        made = check_files(beside).tensors
        names = find_names(cut.origins, cut.anatomy)
        drawn = {name: made.get(name) or made[names.module_name(name)] for name in cut.initial}
        yield replace(
            cut,
            pieces=tuple(
                replace(piece, source=drawn[piece.name]) if piece.name in drawn else piece for piece in cut.pieces
            ),
        )
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _beside(out: Path) -> Path:
    """Where the initialiser's tensors lie for a while."""
    return out.absolute().with_name(LEFT_OVER.format(name=out.absolute().name, process=os.getpid()))


def _sweep(out: Path) -> None:
    """Remove what killed calls have left beside the child's folder."""
    name = out.absolute().name
    for left_over in out.absolute().parent.glob(LEFT_OVER.format(name=glob.escape(name), process="*")):
        owner = left_over.name.split(".")[-2]
        if not (owner.isdecimal() and is_running(int(owner))):
            shutil.rmtree(left_over, ignore_errors=True)


def _initial_model(config: Mapping[str, Any], seed: int) -> PreTrainedModel:
    """The child as transformers itself initialises it: float32, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            build_config(config), dtype=torch.float32, trust_remote_code=False
        )
    return model
