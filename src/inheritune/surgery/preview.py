"""The dry run: what an inheritance would keep, drop, read, write and need, from config and headers alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from inheritune.runs import json_text
from inheritune.surgery.certificate import Operation
from inheritune.surgery.cut import Cut, plan_cut
from inheritune.surgery.folder import (
    INDEX,
    Weights,
    build_config,
    build_on_meta,
    check_files,
    encode_floats,
    read_config,
    resolve,
)
from inheritune.surgery.layer_stream import LayerStream, NotByLayer
from inheritune.surgery.parts import Parts, choose_parts
from inheritune.surgery.proof import fits_in_memory, memory_needed
from inheritune.surgery.selection import selection_table, show_selection
from inheritune.surgery.tensor_file import CHUNK_BYTES, Piece, TensorEntry, encode_header, ordered
from inheritune.surgery.transplant import (
    MAX_SHARD_BYTES,
    check_target,
    companions,
    index_of,
    obstacle_to_proof,
    plan_files,
)
from inheritune.units import format_bytes, format_count

MAX_SHOWN = 60
"""Characters of a config value that are shown."""

NUM_BUFFERS = 8
"""Chunks that are in memory at a time while two threads hash: read, kept over, converted to at most four times it."""

CHILD = Path("child")
"""Stands for the child's folder where none is named."""


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the child.

    Attributes:
        source: the reference's tensor by its name in the reference's files, ``init``, or ``0`` (JSON: ``from``).
        op: how it would come here.
        dtype: in the words of the file format.
        shape: in the child.
        num_bytes: in the child's file.
    """

    source: str
    op: Operation
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int


@dataclass(frozen=True)
class Preview:
    """What an inheritance would do.

    Attributes:
        reference: path or hub id, as it was given.
        model_type: as in the config.
        depth: layers of the reference.
        layers: kept layers of the reference, counted from 0.
        parts: what is inherited of them.
        parameters_before: of the reference; a tied tensor counts once.
        parameters_after: of the child, counted alike.
        tensors: the child's tensor name -> where it would come from.
        dropped: the reference's tensors that the child would have nothing of: name -> bytes.
        read_bytes: of the reference's weight files that the copy reads. The proof reads child and reference again.
        files: file (or folder) of the child -> bytes, exact; certificate.json comes on top.
        copy_memory_bytes: of this process while it copies: buffers, and with partial inheritance the initialised child.
        proof_memory_bytes: for the proof; None where bytes are compared only.
        obstacle: why the certificate would be of kind ``bytes``, in words; None where it would be ``prefix``.
        config_changes: field of config.json -> its value in the reference and in the child; None where it is not there.
        notes: as in the certificate.
    """

    reference: str
    model_type: str
    depth: int
    layers: tuple[int, ...]
    parts: Parts
    parameters_before: int
    parameters_after: int
    tensors: Mapping[str, PlannedTensor]
    dropped: Mapping[str, int]
    read_bytes: int
    files: Mapping[str, int]
    copy_memory_bytes: int
    proof_memory_bytes: int | None
    obstacle: str | None
    config_changes: Mapping[str, tuple[Any, Any]]
    notes: tuple[str, ...]

    @property
    def write_bytes(self) -> int:
        """Of all files of the child but its certificate."""
        return sum(self.files.values())

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "reference": self.reference,
            "model_type": self.model_type,
            "depth": {"before": self.depth, "after": len(self.layers)},
            "layers": [{"child": child, "reference": reference} for child, reference in selection_table(self.layers)],
            "parts": self.parts,
            "parameters": {"before": self.parameters_before, "after": self.parameters_after},
            "tensors": {
                name: {
                    "from": tensor.source,
                    "op": tensor.op,
                    "dtype": tensor.dtype,
                    "shape": list(tensor.shape),
                    "bytes": tensor.num_bytes,
                }
                for name, tensor in self.tensors.items()
            },
            "dropped": dict(self.dropped),
            "read_bytes": self.read_bytes,
            "write_bytes": self.write_bytes,
            "files": dict(self.files),
            "memory_bytes": {"copy": self.copy_memory_bytes, "proof": self.proof_memory_bytes},
            "kind": "prefix" if self.obstacle is None else "bytes",
            "obstacle": self.obstacle,
            "config": {
                field: encode_floats({"before": before, "after": after})
                for field, (before, after) in self.config_changes.items()
            },
            "notes": list(self.notes),
        }

    def text(self) -> str:
        """The same in a page of text; tensors are counted, not named."""
        ops = [tensor.op for tensor in self.tensors.values()]
        made = {"init": "from the initialiser", "slice": "in part", "constant": "a constant"}
        others = "".join(f", {ops.count(op)} of them {words}" for op, words in made.items() if op in ops)
        child_bytes = sum(tensor.num_bytes for tensor in self.tensors.values())
        weight_files = sum(name.endswith(".safetensors") for name in self.files)
        needed = self.proof_memory_bytes
        proof = "" if needed is None else f", {format_bytes(needed)} for the proof"
        rows = [
            ("layers", f"{self.depth} -> {len(self.layers)}"),
            ("parameters", f"{_exact(self.parameters_before)} -> {_exact(self.parameters_after)}"),
            ("tensors", f"{len(ops)} in the child, {format_bytes(child_bytes)}{others}"),
            ("dropped", f"{len(self.dropped)} of the reference's, {format_bytes(sum(self.dropped.values()))}"),
            ("read", f"{self.read_bytes:,} bytes ({format_bytes(self.read_bytes)}) of the reference"),
            (
                "write",
                f"{self.write_bytes:,} bytes ({format_bytes(self.write_bytes)}) in {len(self.files)} files, "
                f"{weight_files} of them weights; certificate.json comes on top",
            ),
            ("memory", f"{format_bytes(self.copy_memory_bytes)} for the copy{proof}"),
            ("certificate", "prefix" if self.obstacle is None else f"bytes: {self.obstacle}"),
            *(
                ("config", f"{field}: {_shown(before)} -> {_shown(after)}")
                for field, (before, after) in self.config_changes.items()
            ),
        ]
        lines = [f"{name:<12}{value}" for name, value in rows]
        return "\n".join([show_selection(self.layers), "", *lines])


def preview(
    reference: str | Path,
    out: str | Path | None = None,
    *,
    layers: int | str | Sequence[int] = "half",
    dtype: str | torch.dtype | None = None,
    verify: bool = True,
    revision: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    parts: Parts = "all",
    seed: int = 0,
) -> Preview:
    """What ``inherit`` with the same arguments would do; reads config and headers, writes nothing.

    Args:
        reference: folder or hub id.
        out: the child's folder, where it is to be checked that it is free.
        layers: as of ``inherit``.
        dtype: as of ``inherit``.
        verify: as of ``inherit``.
        revision: of a hub id.
        max_shard_bytes: largest weight file.
        parts: as of ``inherit``.
        seed: of the initialiser.

    Raises:
        SurgeryError: where ``inherit`` would refuse for what config, headers and ``out`` tell.
    """
    folder = resolve(reference, revision)
    if out is not None:
        check_target(Path(out), folder)
    weights = check_files(folder)
    config = read_config(folder)
    cut = choose_parts(plan_cut(weights, layers, dtype), parts, seed, Path(out or CHILD))
    obstacle = obstacle_to_proof(cut, verify, bool(cut.config.get("quantization_config")))
    proof_memory = None
    if obstacle is None:
        in_memory = _in_memory(weights, cut)
        proof_memory = memory_needed(in_memory)
        if not fits_in_memory(in_memory):
            obstacle = "the proof does not fit in the memory that is free now: bytes would be compared"
    used = {cut.origins[piece.name] for piece in cut.pieces if piece.source and piece.name not in cut.initial}
    return Preview(
        reference=str(reference),
        model_type=cut.anatomy.model_type,
        depth=cut.anatomy.depth,
        layers=cut.layers,
        parts=parts,
        parameters_before=_num_parameters(config),
        parameters_after=_num_parameters(cut.config),
        tensors={piece.name: _planned(piece, cut) for piece in sorted(cut.pieces, key=lambda piece: piece.name)},
        dropped={name: entry.num_bytes for name, entry in sorted(weights.tensors.items()) if name not in used},
        read_bytes=sum(_read_bytes(piece) for piece in cut.pieces if piece.name not in cut.initial),
        files=_files(cut, folder, max_shard_bytes),
        copy_memory_bytes=_copy_memory(cut),
        proof_memory_bytes=proof_memory,
        obstacle=obstacle,
        config_changes=_changes(config, cut.config),
        notes=cut.notes,
    )


def _num_parameters(config: Mapping[str, Any]) -> int:
    """Of the model that a config dict builds; a tied tensor counts once."""
    return sum(parameter.numel() for parameter in build_on_meta(build_config(config)).parameters())


def _planned(piece: Piece, cut: Cut) -> PlannedTensor:
    return PlannedTensor(cut.source_of(piece), cut.operation(piece), piece.dtype, piece.shape, piece.num_bytes)


def _read_bytes(piece: Piece) -> int:
    """Of the source: all of it, or the rows that something is taken from."""
    if piece.source is None:
        return 0
    if piece.leading is None:
        return piece.source.num_bytes
    return piece.source.num_bytes // piece.source.shape[0] * piece.leading[0]


def _files(cut: Cut, folder: Path, max_shard_bytes: int) -> dict[str, int]:
    """File of the child -> bytes, without its certificate."""
    planned = plan_files(cut.pieces, max_shard_bytes)
    sizes = {
        name: len(encode_header(ordered(pieces))) + sum(piece.num_bytes for piece in pieces)
        for name, pieces in planned.items()
    }
    if len(planned) > 1:
        sizes[INDEX] = len(json_text(index_of(planned)).encode())
    sizes["config.json"] = len(json_text(encode_floats(cut.config)).encode())
    for path in companions(folder):
        inside = path.rglob("*") if path.is_dir() else [path]
        sizes[path.name] = sum(each.stat().st_size for each in inside if each.is_file())
    return sizes


def _copy_memory(cut: Cut) -> int:
    """Buffers, however large the tensors are, and the initialised child in float32."""
    initialised = memory_needed([piece.source for piece in cut.pieces if piece.source]) if cut.initial else 0
    return initialised + NUM_BUFFERS * CHUNK_BYTES


def _in_memory(weights: Weights, cut: Cut) -> Sequence[TensorEntry]:
    """What the proof holds at a time: what is no layer and the largest one, or all where it must be loaded whole."""
    stream = LayerStream(weights)
    try:
        stream.check(all_are_read=False)
    except NotByLayer:
        return list(weights.tensors.values())
    return stream.in_memory(len(cut.layers), head=len(cut.layers) == cut.anatomy.depth)


def _changes(before: Mapping[str, Any], after: Mapping[str, Any], path: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted field -> its two values, where they differ."""
    changes: dict[str, tuple[Any, Any]] = {}
    for name in dict.fromkeys([*before, *after]):
        old, new = before.get(name), after.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            changes |= _changes(old, new, f"{path}{name}.")
        elif old != new or (name in before) != (name in after):
            changes[f"{path}{name}"] = old, new
    return changes


def _shown(value: Any) -> str:
    """A config value on one line."""
    text = "(not there)" if value is None else str(value)
    if len(text) <= MAX_SHOWN:
        return text
    is_long = isinstance(value, list | tuple | Mapping)
    return f"{len(value)} entries" if is_long else f"{text[:MAX_SHOWN]}..."


def _exact(count: int) -> str:
    return f"{count:,} ({format_count(count)})"
