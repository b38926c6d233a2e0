"""The reference of a run: found once, recorded by content, and held to at every later start."""

from pathlib import Path
from typing import Any

from inheritune import runs
from inheritune.errors import SurgeryError
from inheritune.surgery.folder import resolve

PROVENANCE = "provenance.json"


def find_reference(run_folder: Path, reference: str, revision: str | None) -> Path:
    """The reference's folder; a hub id is held to the commit that the run began with, whatever was pushed since."""
    pinned = _recorded(run_folder)
    if pinned and not Path(reference).is_dir():
        revision = pinned["revision"]
    return resolve(reference, revision)


def hold_to_reference(run_folder: Path, folder: Path, revision: str | None) -> None:
    """Record config and weights by SHA-256 at the first start, and refuse other ones at a later.

    Raises:
        SurgeryError: the reference is not the one that this run began with; names the file.
    """
    hashes = {path.name: runs.file_sha256(path) for path in [folder / "config.json", *folder.glob("*.safetensors")]}
    hashes = dict(sorted(hashes.items()))
    pinned = _recorded(run_folder)
    if pinned is None:
        commit = folder.name if folder.parent.name == "snapshots" else revision  # the hub's cache: .../snapshots/COMMIT
        provenance = runs.read_json(run_folder / PROVENANCE)
        provenance["reference"] = {"path": str(folder), "revision": commit, "sha256": hashes}
        runs.write_json(run_folder / PROVENANCE, provenance)
        return
    before = pinned["sha256"]
    changed = [name for name in sorted({*before, *hashes}) if before.get(name) != hashes.get(name)]
    if changed:
        raise SurgeryError(
            f"the reference changed since {run_folder} was begun: {folder / changed[0]} "
            f"{'is gone' if changed[0] not in hashes else 'has other bytes' if changed[0] in before else 'is new'}. "
            "Put the former one back, start over with --fresh, or choose another run_dir."
        )


def _recorded(run_folder: Path) -> dict[str, Any] | None:
    """What an earlier start recorded of the reference."""
    recorded = runs.read_json(run_folder / PROVENANCE).get("reference")
    return dict(recorded) if recorded else None
