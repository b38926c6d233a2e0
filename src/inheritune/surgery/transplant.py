"""Inheritance: a child's folder made from the reference's files, tensor by tensor, and certified.

The reference is never built to be copied: its tensors go from file to file as byte ranges. Whether the cut is exact is
decided before a byte is written, from both configs and both models on device meta; after it, what was written is read
back and run (law 2). The folder appears under its name by one rename, whole, or not at all.
"""

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from inheritune.errors import RecipeError, SurgeryError
from inheritune.runs import new_folder, require_space, sync_file, write_json
from inheritune.surgery.certificate import FILE, Certificate, TensorOrigin
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
from inheritune.surgery.layer_stream import LayerStream, NotByLayer
from inheritune.surgery.parts import Parts, choose_parts, initialised
from inheritune.surgery.proof import NotProved, States, first_difference, fits_in_memory, states_of
from inheritune.surgery.recheck import check_hashes
from inheritune.surgery.selection import is_prefix
from inheritune.surgery.tensor_check import hash_written
from inheritune.surgery.tensor_file import FLOATS, Piece, split_shards, write_file

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
    parts: Parts = "all",
    seed: int = 0,
) -> Certificate:
    """Make a child: the selected layers of the reference, with everything that is not a layer.

    Args:
        reference: folder or hub id.
        out: the child's folder; a former child there, as it was made, is replaced; anything else is left alone.
        layers: number of first layers, increasing indices from 0, or words such as ``"half"``, ``"0-5,8,-1"``,
            ``"every-2"``, ``"drop 20-27"`` (all of them: ``surgery.selection.parse_selection``).
        dtype: float32, bfloat16, float16 or float64 for every floating tensor; None keeps each tensor's own.
        verify: read back what was written, load it and compare it with the reference (law 2).
        revision: of a hub id.
        max_shard_bytes: largest weight file.
        parts: what is inherited of the kept layers; the rest begins at the model's own initialiser. ``"attention"``,
            ``"attention+norms"``, ``"mlp"``, ``"mlp+norms"`` and ``"attention+mlp"`` inherit all that is no layer;
            ``"published"`` inherits whole layers and the head alone (and the input embedding where the two are tied).
        seed: of the initialiser.

    Returns:
        The certificate, also saved as ``certificate.json``. Its kind is ``prefix`` where the models were run and
        compared, ``bytes`` where only tensors were: a selection with holes, partial inheritance, a lossy dtype, a
        quantised or too large reference, or ``verify=False`` (its notes say which).

    Raises:
        SurgeryError: the model cannot be read or cut exactly, a kept weight is (or in ``dtype`` would be) NaN or
            infinite, or ``out`` is in the way; nothing is left behind.
        DiskError: no space for the child; nothing is left behind.
        RecipeError: a shard of no bytes.
    """
    target, folder = Path(out), resolve(reference, revision)
    target = target.resolve() if target.name in ("", "..") else target  # the folder itself, which has to have a name
    check_target(target, folder)
    if max_shard_bytes < 1:
        raise RecipeError(f"a shard of {max_shard_bytes} bytes holds nothing. Give max_shard_bytes 1 or more.")
    weights = check_files(folder)
    cut = choose_parts(plan_cut(weights, layers, dtype), parts, seed, target)
    require_space(target, sum(piece.num_bytes for piece in cut.pieces), "the child")
    quantised = bool(cut.config.get("quantization_config"))
    obstacle = obstacle_to_proof(cut, verify, quantised)
    expected = None
    if obstacle is None:
        try:
            expected = _states(weights, cut, is_child=False)
        except NotProved as error:
            obstacle = f"{error}: bytes were compared"
    notes = [*cut.notes, *([obstacle] if obstacle else [])]
    if folder.resolve() != Path(reference).resolve():
        notes.append(f"snapshot {folder.name} of the hub")
    if not any(path.is_file() for pattern in TOKENIZER_FILES for path in folder.glob(pattern)):
        notes.append("the reference has no tokenizer files, so the child has none")
    with initialised(cut, seed, target) as cut, new_folder(target) as new:
        write_json(new / "config.json", encode_floats(cut.config))
        files = write_weights(new, cut.pieces, max_shard_bytes)
        check_unchanged(weights)
        copy_companions(folder, new)
        with syncing(files):
            hashes = hash_written(files, compare=verify)
            difference = None
            if expected is not None:
                try:
                    difference = _compare(expected, new, cut)
                    if idle := sorted(set(range(len(cut.layers))) - set(expected.hidden_BTD)):
                        notes.append(f"layers that do not run on text alone, so that only bytes were compared: {idle}")
                except NotProved as error:
                    notes.append(f"{error}: bytes were compared")
            if verify and difference is None and not quantised:
                _check_loads(new)
        certificate = Certificate(
            kind="bytes" if difference is None else "prefix",
            reference=str(reference),
            layers=cut.layers,
            max_abs_difference=difference,
            tensors={
                piece.name: _origin(piece, cut, hashes) for piece in sorted(cut.pieces, key=lambda each: each.name)
            },
            notes=tuple(notes),
        )
        certificate.save(new)
    return certificate


def _origin(piece: Piece, cut: Cut, hashes: Mapping[str, str]) -> TensorOrigin:
    """Where a tensor of the child comes from."""
    return TensorOrigin(cut.source_of(piece), cut.operation(piece), hashes[piece.name])


@contextmanager
def syncing(files: Iterable[Path]) -> Iterator[None]:
    """The files go to the disk while the block reads them; both are done at its end."""
    with ThreadPoolExecutor(1) as thread:
        synced = [thread.submit(sync_file, path) for path in files]
        yield
        for each in synced:
            each.result()


def check_target(target: Path, reference: Path) -> None:
    """Refuse a target that holds anything but a former child, or that overlaps the reference."""
    here, there = target.resolve(), reference.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise SurgeryError(
            f"the child's folder {target} and the reference {reference} lie in each other. Name a folder elsewhere."
        )
    place = next(parent for parent in target.absolute().parents if parent.exists())
    try:
        tempfile.TemporaryFile(dir=place).close()  # nameless; what permissions promise is not always kept
    except OSError as error:
        raise SurgeryError(
            f"{place} cannot be written to ({error.strerror}), so {target.name} cannot be made there. "
            "Name another folder."
        ) from error
    if target.is_symlink() and not target.exists():
        raise SurgeryError(f"{target} is a link to nothing. Remove it, or name another folder.")
    if target.exists() and not target.is_dir():
        raise SurgeryError(f"{target} is a file, and the child is to be a folder. Name another one.")
    if target.is_dir() and any(target.iterdir()) and not (target / FILE).is_file():
        raise SurgeryError(
            f"{target} is not empty and no former child (it has no {FILE}), so it is left as it is. "
            "Name another folder, or remove this one yourself."
        )
    if (target / FILE).is_file():
        try:
            check_hashes(Certificate.load(target), check_files(target))
        except SurgeryError as error:
            raise SurgeryError(
                f"{target} holds a child that is not what inherit made (trained since, changed or damaged), so it is "
                f"left as it is. Name another folder, or remove this one yourself. What differs: {error}"
            ) from error


def obstacle_to_proof(cut: Cut, verify: bool, quantised: bool) -> str | None:
    """Why the models cannot be run and compared, in words; None where they can."""
    if not verify:
        return "not verified: verify=False"
    if cut.initial:
        return "only parts are inherited, so hidden states differ from the reference's: bytes were compared"
    if not is_prefix(cut.layers):
        return "the selection is no prefix, so there is no layer of the reference to compare with: bytes were compared"
    if quantised:
        return "the reference is quantised and cannot run in float32: bytes were compared"
    if any(_is_lossy(piece) for piece in cut.pieces):
        return "the dtype loses digits, so hidden states differ: bytes were compared"
    return None


def _is_lossy(piece: Piece) -> bool:
    """Whether the new dtype, or float32 in the comparison, cannot hold every value of the old one."""
    if piece.source is None or not piece.is_converted:
        return False
    old, new = FLOATS[piece.source.dtype], FLOATS[piece.dtype]
    return torch.promote_types(old, new) != new


def write_weights(folder: Path, pieces: Sequence[Piece], max_shard_bytes: int) -> dict[Path, list[Piece]]:
    """Write the weight files (and their index, where there are several); nothing is synced or looked at yet.

    Returns:
        Each file, and the tensors in it.
    """
    files = plan_files(pieces, max_shard_bytes)
    if len(files) > 1:
        write_json(folder / INDEX, index_of(files))
    for name, shard in files.items():
        write_file(folder / name, shard)
    return {folder / name: shard for name, shard in files.items()}


def plan_files(pieces: Sequence[Piece], max_shard_bytes: int) -> dict[str, list[Piece]]:
    """The weight files of a child by name, and what each of them holds."""
    shards = split_shards(_as_they_lie(pieces), max_shard_bytes)
    if len(shards) == 1:
        return {WEIGHTS: shards[0]}
    return {f"model-{number:05}-of-{len(shards):05}.safetensors": shard for number, shard in enumerate(shards, start=1)}


def index_of(files: Mapping[str, Sequence[Piece]]) -> dict[str, Any]:
    """The index of several weight files: where each tensor is."""
    file_of = {piece.name: file for file, pieces in files.items() for piece in pieces}
    total = sum(piece.num_bytes for pieces in files.values() for piece in pieces)
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(file_of.items()))}


def _as_they_lie(pieces: Sequence[Piece]) -> list[Piece]:
    """In the order of their sources' bytes; constants last."""
    found = sorted(
        ((piece.source.file, piece.source.begin, piece.name, piece) for piece in pieces if piece.source),
        key=lambda each: each[:3],
    )
    return [piece for *_, piece in found] + [piece for piece in pieces if piece.source is None]


def copy_companions(reference: Path, folder: Path) -> None:
    """Tokenizer files, generation config, chat templates and licence, byte for byte; no pickle."""
    for path in companions(reference):
        if path.is_dir():
            shutil.copytree(path, folder / path.name, dirs_exist_ok=True)
        else:
            shutil.copyfile(path, folder / path.name)


def companions(reference: Path) -> list[Path]:
    """The files and folders that are copied beside the weights.

    Raises:
        SurgeryError: one is a link that leaves the folder, or no file.
    """
    found = {path for pattern in COPIED_FILES for path in reference.glob(pattern)}
    for path in found:
        check_entry(reference, path)
    return sorted(path for path in found if path.is_dir() or path.suffix not in PICKLED)


def _states(weights: Weights, cut: Cut, *, is_child: bool) -> States:
    """What the kept layers make of the random tokens, in the reference or in the child."""
    whole = len(cut.layers) == cut.anatomy.depth
    return states_of(weights, len(cut.layers), to_the_end=whole, is_child=is_child)


def _check_loads(folder: Path) -> None:
    """Check that transformers can load the child: from its headers, or where that cannot be asked, in memory."""
    weights = check_files(folder)
    try:
        LayerStream(weights).check(all_are_read=True)
    except NotByLayer:
        if fits_in_memory(list(weights.tensors.values())):
            load_model(folder)


def _compare(expected: States, folder: Path, cut: Cut) -> float:
    """The largest difference between child and reference, which must be 0.

    Raises:
        SurgeryError: it is not.
    """
    difference, where = first_difference(expected, _states(check_files(folder), cut, is_child=True))
    if difference != 0.0:
        raise SurgeryError(
            f"the child of {cut.anatomy.model_type!r} with {len(cut.layers)} of {cut.anatomy.depth} layers differs "
            f"from its reference by {difference:.3g} {where}, where 0 is required; nothing was kept. Something in this "
            "model depends on its depth: try another depth, or report the model type."
        )
    return difference
