"""A corrected copy of a model folder, where it is certain what is right. The folder itself is never touched.

Certain means: under the mended config transformers' own loader finds a place for every tensor and a tensor for every
place. Weight files in which nothing changes are copied whole.
"""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from inheritune.errors import SurgeryError
from inheritune.runs import new_folder, require_space, write_json
from inheritune.surgery.contents import CONFIG, Contents
from inheritune.surgery.doctor import MENDABLE, Examination, Mend, diagnose, examine
from inheritune.surgery.findings import Diagnosis, Finding, in_order, in_words
from inheritune.surgery.folder import INDEX, WEIGHTS, encode_floats, load_model
from inheritune.surgery.mending import text_config
from inheritune.surgery.proof import fits_in_memory
from inheritune.surgery.tensor_file import Piece, TensorEntry, write_file
from inheritune.surgery.transplant import copy_companions


def repair(folder: str | Path, out: str | Path, *, values: bool = False) -> Diagnosis:
    """Write a corrected copy: depth and per-layer lists as the files are, no stale fields, no doubled head, an index.

    Args:
        folder: of the model, or a hub id.
        out: folder to make; it must not be there, or be empty.
        values: look at every weight of the copy, too; NaN and infinity cannot be mended.

    Returns:
        The diagnosis of the new folder, which has no fault and nothing left to mend.

    Raises:
        SurgeryError: there is nothing to mend, it is not certain how, or ``out`` is in the way; nothing is left behind.
    """
    target = Path(out)
    examination = examine(folder)
    contents = examination.contents
    _check_target(target, contents.folder)
    mend = examination.mend
    if mend is None:
        raise SurgeryError(_refusal(examination))
    num_bytes = sum(entry.num_bytes for entry in mend.tensors.values())
    require_space(target, num_bytes, "the repaired model")
    with new_folder(target, num_bytes) as new:
        write_json(new / CONFIG, encode_floats(mend.config))
        _write_weights(new, contents, mend)
        copy_companions(contents.folder, new)
        diagnosis = diagnose(new, values=values)
        left = [finding for finding in diagnosis.findings if finding.severity == "fault" or finding.kind in MENDABLE]
        if left:
            raise SurgeryError(
                f"{folder} is not repaired: the copy would still have a fault ({left[0].where}: {left[0].what}); "
                "nothing was kept. Mend config.json by hand, or report the model type."
            )
        if not mend.config.get("quantization_config") and fits_in_memory(list(mend.tensors.values())):
            load_model(new)
    done = [*_config_changes(contents.config or {}, mend), *_weight_changes(contents, mend)]
    return replace(diagnosis, folder=str(out), findings=in_order([*diagnosis.findings, *done]))


def _config_changes(before: Mapping[str, Any], mend: Mend) -> list[Finding]:
    """What was changed in the config, as notes."""
    old, new = text_config(before), text_config(mend.config)
    changed = [(name, old.get(name), value) for name, value in new.items() if old.get(name) != value]
    notes = [
        Finding("note", "mended", f"{CONFIG}: {name}", f"{_brief(was)} before, {_brief(now)} now", "")
        for name, was, now in changed
    ]
    if changed:
        what = "the layers of the files are taken to be the first ones of the model that the config was of"
        notes.append(Finding("note", "mended", CONFIG, what, "If they are others of its layers, cut it anew."))
    return notes


def _brief(value: Any) -> str:
    """A config value in a few letters."""
    return f"{len(value)} entries" if isinstance(value, list | dict) else repr(value)


def _weight_changes(contents: Contents, mend: Mend) -> list[Finding]:
    """What was dropped from the weights or cut, as notes."""
    dropped = sorted(set(contents.tensors) - set(mend.tensors))
    notes = [(dropped, "dropped"), (sorted(mend.leading), "cut to the leading part, of the layers that are there")]
    return [Finding("note", "mended", in_words(names), what, "") for names, what in notes if names]


def _check_target(target: Path, folder: Path) -> None:
    """Refuse a target that holds something, or lies in the folder."""
    here, there = target.resolve(), folder.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise SurgeryError(f"the repaired copy {target} and {folder} lie in each other. Name a folder elsewhere.")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise SurgeryError(f"{target} is there already, and is left as it is. Name another folder.")


def _refusal(examination: Examination) -> str:
    """Why nothing is repaired."""
    folder, faults = examination.diagnosis.folder, examination.diagnosis.faults
    beyond = [finding for finding in faults if finding.kind not in MENDABLE] or list(faults)
    if not beyond:
        return f"{folder} has nothing to mend. Use it as it is."
    reasons = [finding for finding in examination.diagnosis.findings if finding.kind == "mend"]
    first = (reasons or beyond)[0]
    more = f" (and {len(beyond) - 1} more)" if len(beyond) > 1 else ""
    what = f"{first.where}: {first.what}{more}. {first.next}"
    return f"{folder} is not repaired, since it is not certain what is right: {what}"


def _write_weights(new: Path, contents: Contents, mend: Mend) -> None:
    """Copy weight files whole where nothing in them changes, write the others anew, and the index of several."""
    of_file: dict[str, dict[str, TensorEntry]] = {}
    for name, entry in mend.tensors.items():
        of_file.setdefault(entry.file.name, {})[name] = entry
    names = _new_names(sorted(of_file))
    for file, kept in of_file.items():
        held = sum(entry.file.name == file for entry in contents.tensors.values())
        if len(kept) == held and not set(kept) & set(mend.leading):
            shutil.copyfile(contents.folder / file, new / names[file])
        else:
            pieces = [Piece(name, entry, entry.dtype, mend.leading.get(name)) for name, entry in kept.items()]
            write_file(new / names[file], pieces)
    if len(of_file) > 1:
        total = sum(entry.num_bytes for entry in mend.tensors.values())
        places = {name: names[entry.file.name] for name, entry in sorted(mend.tensors.items())}
        write_json(new / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def _new_names(files: list[str]) -> Mapping[str, str]:
    """Old file name -> new one, as save_pretrained names them."""
    if len(files) == 1:
        return {files[0]: WEIGHTS}
    return {file: f"model-{number:05}-of-{len(files):05}.safetensors" for number, file in enumerate(files, start=1)}
