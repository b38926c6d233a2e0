"""One cut of a saved parent, judged from outside: what the files of the child give against what the parent computes.

The judge shares nothing with the code's own proof: it loads both folders with transformers, listens to every layer,
and holds the child's logits against those of the parent with its upper layers taken out in memory.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from architectures.nursery import save, silence
from inheritune.errors import SurgeryError
from inheritune.surgery.transplant import inherit

BATCH, POSITIONS = 2, 24
"""More positions than a sliding window of the nursery has."""

TOWERS = re.compile(r"vision|visual|audio|image|expert|patch")


@dataclass(frozen=True)
class Outcome:
    """What became of a cut.

    Attributes:
        kind: ``exact``: the child loads whole and computes what the parent does; ``refused``: nothing was written;
            ``wrong``: a child was written that is not exact.
        difference: largest absolute difference of hidden states and logits; None where refused.
        reason: of a refusal, or what is wrong.
        nearest: the depth that a refusal names.
        notes: of the certificate.
    """

    kind: Literal["exact", "refused", "wrong"]
    difference: float | None = None
    reason: str = ""
    nearest: int | None = None
    notes: tuple[str, ...] = ()


def cut(parent: Path, child: Path, depth: int, *, verify: bool = False) -> Outcome:
    """Cut a saved parent to its first ``depth`` layers and judge the child.

    The code's own proof is left out unless ``verify``: what it would stop is to be refused before.
    """
    try:
        with silence():
            certificate = inherit(parent, child, layers=depth, verify=verify)
    except SurgeryError as error:
        named = re.search(r"--layers (\d+)", str(error))
        return Outcome("refused", None, str(error), int(named[1]) if named else None)
    try:
        difference = compare(load(parent, whole=False), load(child), depth)
    except Exception as error:  # whatever stops a child from being loaded and run is a fault of the child
        return Outcome(
            "wrong", None, f"{type(error).__name__}: {' '.join(str(error).split())}", None, certificate.notes
        )
    if difference:
        return Outcome("wrong", difference, f"differs by {difference:.3g}", None, certificate.notes)
    return Outcome("exact", difference, "", None, certificate.notes)


def judge(model_type: str, folder: Path, depths: Sequence[int] = (5, 1, 11)) -> dict[int, Outcome]:
    """Save a parent of this type, cut its files to each depth, and judge; a depth that a refusal names must work."""
    parent = save(model_type, folder / "parent")
    outcomes = {}
    for depth in depths:
        outcome = cut(parent, folder / f"child-{depth}", depth)
        if outcome.kind == "refused" and outcome.nearest is not None:
            other = cut(parent, folder / f"child-{depth}-nearest", outcome.nearest)
            if other.kind != "exact":
                reason = f"refused {depth} and named {outcome.nearest}, which is {other.kind}: {other.reason}"
                outcome = replace(other, kind="wrong", reason=reason)
        outcomes[depth] = outcome
    return outcomes


MOVED = (0, 2, 4, 7, 11)
"""A selection that moves layers."""


def judge_moved(parent: Path, child: Path) -> Outcome:
    """Keep layers that move, and judge each by itself: given what it got in the parent, does it give what it gave?

    ``exact`` also where it does not and the certificate says so.
    """
    try:
        with silence():
            notes = inherit(parent, child, layers=MOVED, verify=False).notes
    except SurgeryError as error:
        return Outcome("refused", None, str(error))
    try:
        difference = compare_layers(load(parent, whole=False), load(child), MOVED)
    except Exception as error:  # whatever stops a child from being loaded and run is a fault of the child
        return Outcome("wrong", None, f"{type(error).__name__}: {' '.join(str(error).split())}", None, notes)
    if difference and not any("do not compute what they did" in note for note in notes):
        return Outcome("wrong", difference, f"a moved layer differs by {difference:.3g}", None, notes)
    return Outcome("exact", difference, "", None, notes)


def compare_layers(parent: PreTrainedModel, child: PreTrainedModel, layers: Sequence[int]) -> float:
    """Largest difference of what the child's layers make of what the parent's got."""
    path = layers_path(parent)
    calls: dict[int, tuple[Any, ...]] = {}

    def keeper(index: int) -> Any:
        def keep(_module: nn.Module, given: Any, named: Any, output: Any) -> None:
            calls[index] = (given, named, output)

        return keep

    modules = parent.get_submodule(path)
    handles = [modules[index].register_forward_hook(keeper(index), with_kwargs=True) for index in layers]
    run(parent, path)
    for handle in handles:
        handle.remove()
    run(child, path)
    differences = []
    for place, index in enumerate(layers):
        if index not in calls:
            continue  # it runs only where there are images
        given, named, output = calls[index]
        with torch.no_grad(), silence():
            torch.manual_seed(0)
            found = child.get_submodule(path)[place](*given, **named)
        differences.append(largest_difference(_flat(output), _flat(found)))
    return max(differences)


def _flat(output: Any) -> Tensor:
    """Every tensor that comes out of a layer, in one row."""
    streams = [output] if isinstance(output, Tensor) else [each for each in output if isinstance(each, Tensor)]
    return torch.cat([each.flatten().float() for each in streams])


def load(folder: Path, *, whole: bool = True) -> PreTrainedModel:
    """The model of a folder, in which every tensor comes from the files.

    Args:
        folder: of the model.
        whole: and every tensor of the files is used (those of a tower are not, where the causal LM is text alone).

    Raises:
        ValueError: it is not so.
    """
    with silence():
        model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    if not whole:
        info.pop("unexpected_keys")
    faults = {kind: sorted(map(str, keys)) for kind, keys in info.items() if keys}
    if faults:
        raise ValueError(f"{faults}"[:300])
    if hasattr(model, "set_default_language"):
        model.set_default_language("en_XX")
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()  # out of the file's own alignment, which decides how products are rounded
    loaded: PreTrainedModel = model.eval()
    return loaded


def compare(parent: PreTrainedModel, child: PreTrainedModel, depth: int) -> float:
    """Largest difference after each of the child's layers, and in the logits, once the parent's upper layers are out.

    Raises:
        ValueError: the child has not ``depth`` layers, or a layer of the parent does nothing.
    """
    path = layers_path(parent)
    found = child.get_submodule(path)
    if len(found) != depth:
        raise ValueError(f"the child has {len(found)} layers, not {depth}")
    expected_hidden, _ = run(parent, path)
    if any(torch.equal(below, above) for below, above in pairwise(expected_hidden.values())):
        raise ValueError("a layer of the parent does nothing, so that losing it would not be seen")
    child_hidden, child_logits = run(child, path)
    shorten(parent, path, depth)
    _, expected_logits = run(parent, path)
    if child_hidden.keys() != {index for index in expected_hidden if index < depth}:
        raise ValueError(f"of the child's layers {sorted(child_hidden)} run, of the parent's {sorted(expected_hidden)}")
    pairs = [(expected_hidden[index], hidden) for index, hidden in child_hidden.items()]
    pairs.append((expected_logits, child_logits))
    return max(largest_difference(one, other) for one, other in pairs)


def layers_path(model: PreTrainedModel) -> str:
    """Path of the decoder's layers: the outermost longest list of modules that is in no tower."""
    paths = {
        path: len(module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and not TOWERS.search(path) and not re.search(r"\.\d+\.", path)
    }
    return max(paths, key=lambda path: paths[path])


def shorten(model: PreTrainedModel, path: str, depth: int) -> None:
    """Take the upper layers out of a model in memory; its config is left as it is."""
    front, _, name = path.rpartition(".")
    setattr(model.get_submodule(front), name, model.get_submodule(path)[:depth])


def run(model: PreTrainedModel, path: str) -> tuple[dict[int, Tensor], Tensor]:
    """The hidden state after each layer that runs, by its index, and the logits, of seeded random tokens."""
    hidden: dict[int, Tensor] = {}

    def keeper(index: int) -> Any:
        def keep(_module: nn.Module, _given: Any, output: Any) -> None:
            hidden[index] = _flat(output)

        return keep

    ids = torch.randint(200, (BATCH, POSITIONS), generator=torch.Generator().manual_seed(3))
    handles = [layer.register_forward_hook(keeper(index)) for index, layer in enumerate(model.get_submodule(path))]
    try:
        with torch.no_grad(), silence():
            torch.manual_seed(0)
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    return hidden, logits


def largest_difference(one: Tensor, other: Tensor) -> float:
    """Largest absolute difference; infinite where the shapes differ or a value is not finite."""
    if one.shape != other.shape or not torch.isfinite(one).all() or not torch.isfinite(other).all():
        return float("inf")
    return float((one - other).abs().max())
