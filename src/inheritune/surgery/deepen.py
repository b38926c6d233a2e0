"""A trained child with the reference's next layers on top; where asked, these begin as exact no-ops.

What the child has learned stays bit for bit. Which matrices of a layer are its output projections is found by trying,
without a table of architectures: a layer whose parameters are all zero either hands its input through unchanged, or no
choice of zeros makes it do so. If it does, parameters are put back one by one in the order in which the layer uses
them, as long as it still does; those that cannot be put back are the ones that write to the residual stream.
"""

# B batch, T positions, D hidden size.

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from inheritune import runs
from inheritune.errors import SurgeryError
from inheritune.surgery.anatomy import find_layers, layer_modules
from inheritune.surgery.certificate import Certificate, TensorOrigin
from inheritune.surgery.folder import load_model, quiet
from inheritune.surgery.proof import largest_difference, trace
from inheritune.surgery.tensor_file import chunks, read_header, sha256
from inheritune.surgery.transplant import copy_companions, inherit

Added = Literal["reference", "identity"]

LEFT_OVER = ".deepen-"
"""Begins the name of the folder that holds the reference's deeper prefix for a while."""


def deepen(
    child: Path,
    reference: Path,
    out: Path,
    *,
    layers: int,
    weights: Mapping[str, Tensor] | None = None,
    added: Added = "reference",
) -> Certificate:
    """Put the reference's next layers on a trained child.

    Args:
        child: folder of the trained child, whose layers are the reference's first ones, trained on.
        reference: folder of the reference.
        out: folder to make.
        layers: depth of the deeper child.
        weights: the child's parameters and buffers by module name, where they are not those in its folder (training
            goes on from before the cool-down).
        added: "reference": the added layers are the reference's; "identity": so are they, but for what writes to the
            residual stream, which is 0, so that the logits are the child's.

    Returns:
        The certificate, also saved. Its ``from`` begins with ``child/`` or ``reference/``.

    Raises:
        SurgeryError: the child is not shallower, has other tensors than the reference's first layers, or its layers
            cannot be no-ops; nothing is left behind.
    """
    shallow = load_model(child)
    if weights is not None:
        _overlay(shallow, weights, child)
    depth = find_layers(shallow).depth
    if depth >= layers:
        raise SurgeryError(f"{child} has {depth} layers already. Ask for more than {depth}.")
    with tempfile.TemporaryDirectory(dir=_place(out), prefix=LEFT_OVER) as temporary:
        inherited = inherit(reference, Path(temporary) / "inherited", layers=layers)
        deep = load_model(Path(temporary) / "inherited")
    _overlay(deep, _tensors(shallow), child)
    zeroed: list[str] = []
    if added == "identity":
        for index in range(depth, layers):
            zeroed += make_identity(deep, index)
    before, after = trace(shallow, depth - 1), trace(deep, depth - 1)
    difference = largest_difference(before.hidden_BTD, after.hidden_BTD)
    if added == "identity":
        difference = max(difference, largest_difference(before.logits_BTV, after.logits_BTV))
    if difference != 0.0:
        raise SurgeryError(
            f"{child} with {layers} layers differs from what it was with {depth} by {difference:.3g}, where 0 is "
            "required; nothing was kept. Something in this model depends on its depth: use growth.mode: restart."
        )
    with runs.new_folder(out) as new:
        copy_companions(child, new)
        with quiet():
            deep.save_pretrained(new)
        certificate = Certificate(
            kind="grown",
            reference=str(reference),
            layers=tuple(range(layers)),
            max_abs_difference=difference,
            tensors=_origins(new, inherited, f"{find_layers(deep).path}.", depth),
            notes=(
                f"layers 0 to {depth - 1}, and what is no layer, are the trained child's, bit for bit; layers {depth} "
                f"to {layers - 1} the reference's",
                *((f"0 in the added layers: {', '.join(zeroed)}",) if zeroed else ()),
            ),
        )
        certificate.save(new)
    return certificate


def _place(out: Path) -> Path:
    """The folder in which ``out`` is made, without what a killed call has left there."""
    out.parent.mkdir(parents=True, exist_ok=True)
    for left_over in out.parent.glob(f"{LEFT_OVER}*"):
        shutil.rmtree(left_over, ignore_errors=True)
    return out.parent


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter (a tied one once) and every buffer that is saved, by module name."""
    kept = model.state_dict(keep_vars=True)
    return {**dict(model.named_parameters()), **{name: each for name, each in model.named_buffers() if name in kept}}


def _overlay(model: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Copy tensors into those of the same name.

    Raises:
        SurgeryError: one is not there, or has another shape.
    """
    own = _tensors(model)
    with torch.no_grad():
        for name, tensor in tensors.items():
            if name not in own or own[name].shape != tensor.shape:
                found = "missing" if name not in own else f"of shape {tuple(own[name].shape)}"
                raise SurgeryError(
                    f"tensor {name!r} of {source} ({tuple(tensor.shape)}) is {found} in the deeper model, so the child "
                    "does not consist of the reference's first layers. Grow a child of this very reference."
                )
            own[name].copy_(tensor)


def make_identity(model: Any, index: int) -> list[str]:
    """Set the fewest parameters of one layer to 0 that make it hand its input through, bit for bit.

    Args:
        model: a causal language model, float32, on the CPU; it is changed in place.
        index: of the layer.

    Returns:
        Names of the parameters that are 0 now.

    Raises:
        SurgeryError: no zeros make it do so (a norm after the residual sum, say); the layer is left as it was.
    """
    layer = layer_modules(model)[index]
    arguments, keywords, order = _call_of(model, layer)
    parameters = dict(layer.named_parameters())
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.zero_()
        if not _hands_through(layer, arguments, keywords):
            _put_back(parameters, before, list(before))
            raise SurgeryError(
                f"a layer of {model.config.model_type!r} cannot begin as a no-op: with every parameter at 0 it still "
                "changes what it is given. Use growth.mode: continue, or restart."
            )
        zero = []
        for name in sorted(parameters, key=lambda name: (parameters[name].ndim > 1, order[name.rpartition(".")[0]])):
            _put_back(parameters, before, [name])
            if not _hands_through(layer, arguments, keywords):
                parameters[name].zero_()
                zero.append(name)
    path = f"{find_layers(model).path}.{index}"
    return [f"{path}.{name}" for name in zero if bool(before[name].any())]


def _put_back(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor], names: list[str]) -> None:
    """Give parameters their former values."""
    for name in names:
        parameters[name].copy_(values[name])


def _call_of(model: Any, layer: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any], dict[str, int]]:
    """How the model calls one of its layers, and in which order the layer calls its own modules (name -> place)."""
    call: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    used: list[str] = []

    def keep(_module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        call.append((given, named))

    def note(name: str) -> Any:
        return lambda *_: used.append(name)

    handles = [layer.register_forward_pre_hook(keep, with_kwargs=True)]
    handles += [module.register_forward_pre_hook(note(name)) for name, module in layer.named_modules()]
    try:
        with _seeded(), torch.no_grad():
            model(input_ids=torch.randint(model.get_input_embeddings().weight.shape[0], (2, 16)), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    places = {name: place for place, name in reversed(list(enumerate(used)))}
    order = {name: places.get(name, -1) for name, _ in layer.named_modules()}
    return call[0][0], call[0][1], order


@contextmanager
def _seeded() -> Iterator[None]:
    """Random numbers that are the same every time, and disturb no others."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def _hands_through(layer: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> bool:
    """Whether a layer gives back what it is given: the hidden states of the call, and random ones of their size."""
    given_BTD = arguments[0] if arguments else keywords["hidden_states"]
    with _seeded():
        random_BTD = torch.randn_like(given_BTD)
    for hidden_BTD in (given_BTD, random_BTD):
        if arguments:
            output = layer(hidden_BTD, *arguments[1:], **keywords)
        else:
            output = layer(**{**keywords, "hidden_states": hidden_BTD})
        if not torch.equal(output[0] if isinstance(output, tuple) else output, hidden_BTD):
            return False
    return True


def _origins(folder: Path, inherited: Certificate, layers_path: str, depth: int) -> dict[str, TensorOrigin]:
    """Where each tensor in the saved files comes from, by the names in these files."""
    entries = {
        name: entry for path in sorted(folder.glob("*.safetensors")) for name, entry in read_header(path).items()
    }
    origins = {}
    for name, entry in sorted(entries.items()):
        digest, former = sha256(entry), inherited.tensors.get(name)
        layer = name.partition(layers_path)[2].partition(".")[0]
        is_added = layer.isdecimal() and int(layer) >= depth
        source = former.source if former else name
        if not is_added:
            origins[name] = TensorOrigin(f"child/{name}", "copy", digest)
        elif former and former.op == "constant" and former.sha256 == digest:
            origins[name] = former
        elif former and former.sha256 != digest and not any(chunk.count(0) != len(chunk) for chunk in chunks(entry)):
            origins[name] = TensorOrigin("0", "constant", digest)
        else:
            origins[name] = (
                replace(former, source=f"reference/{source}", sha256=digest)
                if former
                else TensorOrigin(f"reference/{source}", "copy", digest)
            )
    return origins
