"""Inheritance: a child's folder made from the reference's files, tensor by tensor, and certified.

The reference is never built to be copied: its tensors go from file to file as byte ranges. Whether the cut is exact is
decided before a byte is written, from both configs and both models on device meta; after it, what was written is read
back and run (law 2). The folder appears under its name by one rename, whole, or not at all.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from inheritune.errors import SurgeryError
from inheritune.runs import new_folder, write_json
from inheritune.surgery.certificate import FILE, Certificate, Operation, TensorOrigin
from inheritune.surgery.cut import Cut, plan_cut
from inheritune.surgery.folder import (
    INDEX,
    PICKLED,
    WEIGHTS,
    Weights,
    check_entry,
    check_files,
    check_unchanged,
    encode_floats,
    load_model,
    resolve,
)
from inheritune.surgery.proof import Trace, fits_in_memory, largest_difference, trace
from inheritune.surgery.selection import is_prefix
from inheritune.surgery.tensor_file import FLOATS, Piece, TensorEntry, read_header, sha256, split_shards, write_file

MAX_SHARD_BYTES = 5_000_000_000

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "*.tiktoken")
"""A folder with none of them has no tokenizer."""

COPIED_FILES = (
    *TOKENIZER_FILES,
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt", "vocab.*", "*.model"),
    *("chat_template*", "generation_config.json", "LICENSE*", "LICENCE*", "NOTICE*", "COPYING*", "USE_POLICY*"),
)
"""Files of the reference that are copied byte for byte."""


def inherit(
    reference: str | Path,
    out: str | Path,
    *,
    layers: int | str | Sequence[int] = "half",
    dtype: str | torch.dtype | None = None,
    verify: bool = True,
    revision: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Certificate:
    """Make a child: the selected layers of the reference, with everything that is not a layer.

    Args:
        reference: folder or hub id.
        out: the child's folder; a former child there is replaced, anything else is left alone.
        layers: number of first layers, ``"half"``, or increasing indices from 0.
        dtype: float32, bfloat16, float16 or float64 for every floating tensor; None keeps each tensor's own.
        verify: read back what was written, load it and compare it with the reference (law 2).
        revision: of a hub id.
        max_shard_bytes: largest weight file.

    Returns:
        The certificate, also saved as ``certificate.json``. Its kind is ``prefix`` where the models were run and
        compared, ``bytes`` where only tensors were: a selection with holes, a lossy dtype, a quantised or too large
        reference, or ``verify=False`` (its notes say which).

    Raises:
        SurgeryError: the model cannot be read or cut exactly, a kept weight is (or in ``dtype`` would be) NaN or
            infinite, or ``out`` is in the way; nothing is left behind.
    """
    target, folder = Path(out), resolve(reference, revision)
    _check_target(target, folder)
    weights = check_files(folder)
    cut = plan_cut(weights, layers, dtype)
    _check_space(target, cut)
    quantised = bool(cut.config.get("quantization_config"))
    obstacle = _obstacle(cut, weights, verify, quantised)
    expected = None if obstacle else trace(load_model(folder), len(cut.layers) - 1)
    notes = [*cut.notes, *([obstacle] if obstacle else [])]
    if folder.resolve() != Path(reference).resolve():
        notes.append(f"snapshot {folder.name} of the hub")
    if not any(path.is_file() for pattern in TOKENIZER_FILES for path in folder.glob(pattern)):
        notes.append("the reference has no tokenizer files, so the child has none")
    with new_folder(target) as new:
        write_json(new / "config.json", encode_floats(cut.config))
        hashes = _write_weights(new, cut.pieces, max_shard_bytes)
        check_unchanged(weights)
        copy_companions(folder, new)
        if verify:
            _check_bytes(new, hashes)
        difference = None if expected is None else _compare(expected, new, cut)
        sources = [piece.source for piece in cut.pieces if piece.source]
        if verify and expected is None and not quantised and fits_in_memory(sources):
            load_model(new)
        operations: dict[str, Operation] = {
            piece.name: "constant" if piece.source is None else "slice" if piece.leading else "copy"
            for piece in cut.pieces
        }
        certificate = Certificate(
            kind="bytes" if difference is None else "prefix",
            reference=str(reference),
            layers=cut.layers,
            max_abs_difference=difference,
            tensors={
                name: TensorOrigin(cut.origins.get(name, "0"), operations[name], hashes[name])
                for name in sorted(hashes)
            },
            notes=tuple(notes),
        )
        certificate.save(new)
    return certificate


def _check_target(target: Path, reference: Path) -> None:
    """Refuse a target that holds anything but a former child, or that overlaps the reference."""
    here, there = target.resolve(), reference.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise SurgeryError(
            f"the child's folder {target} and the reference {reference} lie in each other. Name a folder elsewhere."
        )
    if target.exists() and not target.is_dir():
        raise SurgeryError(f"{target} is a file, and the child is to be a folder. Name another one.")
    if target.is_dir() and any(target.iterdir()) and not (target / FILE).is_file():
        raise SurgeryError(
            f"{target} is not empty and no former child (it has no {FILE}), so it is left as it is. "
            "Name another folder, or remove this one yourself."
        )


def _check_space(target: Path, cut: Cut) -> None:
    """Refuse before the disk is full, and where nothing can be written."""
    place = next(parent for parent in target.resolve().parents if parent.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise SurgeryError(
            f"{place} cannot be written to (no folder, no permission, or a read-only disk). Name another folder."
        )
    needed, free = sum(piece.num_bytes for piece in cut.pieces), shutil.disk_usage(place).free
    if needed > free:
        raise SurgeryError(
            f"the child needs {needed / 1e9:.1f} GB and {place} has {free / 1e9:.1f} GB free. "
            "Free some space, or name a folder on another disk."
        )


def _obstacle(cut: Cut, weights: Weights, verify: bool, quantised: bool) -> str | None:
    """Why the models cannot be run and compared, in words; None where they can."""
    if not verify:
        return "not verified: verify=False"
    if not is_prefix(cut.layers):
        return "the selection is no prefix, so there is no layer of the reference to compare with: bytes were compared"
    if quantised:
        return "the reference is quantised and cannot run in float32: bytes were compared"
    if any(_is_lossy(piece) for piece in cut.pieces):
        return "the dtype loses digits, so hidden states differ: bytes were compared"
    if not fits_in_memory(list(weights.tensors.values())):
        return "the reference in float32 does not fit in the memory that is free: bytes were compared"
    return None


def _is_lossy(piece: Piece) -> bool:
    """Whether the new dtype, or float32 in the comparison, cannot hold every value of the old one."""
    if piece.source is None or piece.dtype == piece.source.dtype:
        return False
    old, new = FLOATS[piece.source.dtype], FLOATS[piece.dtype]
    return torch.promote_types(old, new) != new


def _write_weights(folder: Path, pieces: Sequence[Piece], max_shard_bytes: int) -> dict[str, str]:
    """Write the weight files (and their index, where there are several); gives tensor name -> SHA-256."""
    copied = [(piece.source.file, piece.source.begin, piece) for piece in pieces if piece.source]
    ordered = [piece for *_, piece in sorted(copied, key=lambda each: each[:2])]
    shards = split_shards([*ordered, *(piece for piece in pieces if piece.source is None)], max_shard_bytes)
    if len(shards) == 1:
        return write_file(folder / WEIGHTS, shards[0])
    hashes: dict[str, str] = {}
    file_of: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        hashes |= write_file(folder / file, shard)
        file_of |= {piece.name: file for piece in shard}
    total = sum(piece.num_bytes for piece in pieces)
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(file_of.items()))})
    return hashes


def copy_companions(reference: Path, folder: Path) -> None:
    """Tokenizer files, generation config, chat templates and licence, byte for byte; no pickle."""
    for pattern in COPIED_FILES:
        for path in sorted(reference.glob(pattern)):
            check_entry(reference, path)
            if path.is_dir():
                shutil.copytree(path, folder / path.name, dirs_exist_ok=True)
            elif path.suffix not in PICKLED:
                shutil.copyfile(path, folder / path.name)


def _check_bytes(folder: Path, hashes: dict[str, str]) -> None:
    """Read every tensor back and compare its hash with that of the bytes that were to be written."""
    written: dict[str, TensorEntry] = {}
    for path in sorted(folder.glob("*.safetensors")):
        written |= read_header(path)
    for name, expected in hashes.items():
        if name not in written or sha256(written[name]) != expected:
            raise SurgeryError(
                f"tensor {name!r} reads back otherwise than it was written to {folder.parent}. "
                "The disk is at fault: check it, or name a folder on another one."
            )


def _compare(expected: Trace, folder: Path, cut: Cut) -> float:
    """The largest difference between child and reference, which must be 0.

    Raises:
        SurgeryError: it is not.
    """
    child = load_model(folder)
    if len(cut.layers) < cut.anatomy.depth:
        child_hidden_BTD = trace(child, len(cut.layers) - 1).hidden_BTD
        difference = largest_difference(expected.hidden_BTD, child_hidden_BTD)
        where = f"after layer {len(cut.layers) - 1}"
    else:
        found = trace(child, len(cut.layers) - 1)
        difference = max(map(largest_difference, expected, found))
        where = "in the logits"
    if difference != 0.0:
        raise SurgeryError(
            f"the child of {cut.anatomy.model_type!r} with {len(cut.layers)} of {cut.anatomy.depth} layers differs "
            f"from its reference by {difference:.3g} {where}, where 0 is required; nothing was kept. Something in this "
            "model depends on its depth: try another depth, or report the model type."
        )
    return difference
