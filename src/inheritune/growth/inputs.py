"""The reference of a run: found once, recorded by content, and held to at every later start."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inheritune import runs
from inheritune.data.tokenizer import check_embedding, open_tokenizer, tokenizer_hashes
from inheritune.errors import SurgeryError
from inheritune.surgery.folder import build_config, build_on_meta, check_files, limits, read_config, resolve
from inheritune.surgery.tensor_file import sha256_of_file

PROVENANCE = "provenance.json"


def find_reference(run_folder: Path, reference: str, revision: str | None) -> Path:
    """The reference's folder; a hub id is held to the commit that the run began with, whatever was pushed since.

    Raises:
        SurgeryError: there is no such reference, or its tokenizer is not the one that this run began with (names the
            file).
        DataError: it has no tokenizer that can be used, or one with more entries than its embedding has rows.
    """
    pinned = _recorded(run_folder)
    if pinned and not Path(reference).is_dir():
        revision = pinned["revision"]
    folder = resolve(reference, revision)
    if pinned:
        _hold_to_tokenizer(run_folder, folder, pinned)
    else:  # what cannot be done is refused before anything is prepared
        embedding = build_on_meta(build_config(read_config(folder))).get_input_embeddings()
        check_embedding(open_tokenizer(folder), int(embedding.weight.shape[0]))
    return folder


def hold_to_reference(run_folder: Path, folder: Path, revision: str | None) -> None:
    """Record config, weights and tokenizer by SHA-256 at the first start, and refuse other ones at a later.

    The weights are looked at while they are hashed for the first time.

    Raises:
        SurgeryError: the reference is not the one that this run began with (names the file), or it has weights that are
            NaN or infinite (names the tensor).
    """
    pinned = _recorded(run_folder)
    if pinned is None:
        commit = folder.name if folder.parent.name == "snapshots" else revision  # the hub's cache: .../snapshots/COMMIT
        provenance = runs.read_json(run_folder / PROVENANCE)
        provenance["reference"] = {
            "path": str(folder),
            "revision": commit,
            "sha256": _checked_hashes(folder),
            "tokenizer_sha256": tokenizer_hashes(folder),
        }
        runs.write_json(run_folder / PROVENANCE, provenance)
        return
    _hold_to_tokenizer(run_folder, folder, pinned)
    hashes = {path.name: runs.file_sha256(path) for path in _pinned_files(folder)}
    _refuse_change(run_folder, folder, "reference", pinned["sha256"], hashes)


def _pinned_files(folder: Path) -> list[Path]:
    """Config and weights, sorted by name."""
    return sorted([folder / "config.json", *folder.glob("*.safetensors")])


def _checked_hashes(folder: Path) -> dict[str, str]:
    """File name -> SHA-256 of config and weights; the weights are read once, for this and to see that all are finite.

    Raises:
        SurgeryError: a weight is NaN or infinite.
    """
    weights = check_files(folder).files
    may_be_infinite = limits(build_on_meta(build_config(read_config(folder))))

    def must_be_finite(name: str) -> bool:
        return name.rpartition(".")[2] not in may_be_infinite

    return {
        path.name: sha256_of_file(path, must_be_finite) if path.name in weights else runs.file_sha256(path)
        for path in _pinned_files(folder)
    }


def _hold_to_tokenizer(run_folder: Path, folder: Path, pinned: Mapping[str, Any]) -> None:
    """Refuse another tokenizer than the recorded; runs of an earlier version have recorded none."""
    if "tokenizer_sha256" in pinned:
        before = pinned["tokenizer_sha256"]
        _refuse_change(run_folder, folder, "reference's tokenizer", before, tokenizer_hashes(folder))


def _refuse_change(
    run_folder: Path, folder: Path, what: str, before: Mapping[str, str], now: Mapping[str, str]
) -> None:
    """Refuse files that are not those of the first start.

    Raises:
        SurgeryError: names the first of them.
    """
    changed = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    if changed:
        raise SurgeryError(
            f"the {what} changed since {run_folder} was begun: {folder / changed[0]} "
            f"{'is gone' if changed[0] not in now else 'has other bytes' if changed[0] in before else 'is new'}. "
            "Put the former one back, start over with --fresh, or choose another run_dir."
        )


def _recorded(run_folder: Path) -> dict[str, Any] | None:
    """What an earlier start recorded of the reference."""
    recorded = runs.read_json(run_folder / PROVENANCE).get("reference")
    return dict(recorded) if recorded else None
