"""What lies in a model folder, read as far as it can be: a broken file is a finding, and the others are read on.

Only config, index and headers are read, whatever the size of the weights; nothing outside the folder is.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from inheritune.errors import SurgeryError
from inheritune.runs import read_json
from inheritune.surgery.findings import Finding, in_words, of_error
from inheritune.surgery.folder import ADAPTER, COMPANIONS, INDEX, PICKLED, WEIGHTS, check_entry, decode_floats, is_shard
from inheritune.surgery.tensor_file import MAX_HEADER_BYTES, TensorEntry, read_header

CONFIG = "config.json"

COPY_AGAIN = "Download or copy it again."

ABSURD = re.compile(r"\d{10}")
"""A number in a tensor's name that no layer and no expert has."""

SHOWN_LETTERS = 60
"""Of a name that may be of any length."""


NUMBERED = re.compile(r"-(\d+)-of-(\d+)\.safetensors$")
"""How a shard's name says which one it is, of how many."""

MAX_NAMED = 20
"""Missing shards that are named."""


@dataclass(frozen=True)
class Contents:
    """A model folder, read without building anything.

    Attributes:
        names: of the files that may be read: none that a link takes out of the folder.
        config: config.json; None where there is none that can be read.
        files: the weight files that make up the model, as far as that is known.
        tensors: name -> entry, of these files.
        are_whole: whether every one of these files is there and its header is right.
        findings: what was wrong.
    """

    folder: Path
    names: tuple[str, ...]
    config: Mapping[str, Any] | None
    files: tuple[str, ...]
    tensors: Mapping[str, TensorEntry]
    are_whole: bool
    findings: tuple[Finding, ...]


def read_contents(folder: Path) -> Contents:
    """Read config, index and the headers of all weight files.

    Raises:
        SurgeryError: the folder itself cannot be read.
    """
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise SurgeryError(f"{folder} cannot be read ({error}). Check that it is a folder that may be read.") from error
    findings: list[Finding] = []
    outside = set()
    for path in paths:
        try:
            check_entry(folder, path)
        except SurgeryError as error:
            outside.add(path.name)
            findings.append(of_error("fault" if _is_read(path.name) else "warning", "file", path.name, error))
    names = [path.name for path in paths if path.name not in outside and path.is_file()]
    config = None if CONFIG in outside else _read_config(folder, findings)
    files, said = _weight_files(folder, names, findings)
    headers = _read_headers(folder, [file for file in files if file in names], findings)
    tensors = _union(headers, findings)
    if said is not None:
        _check_index(said, headers, findings)
    findings += _beside(names, files)
    if ADAPTER in names:
        what = "an adapter: transformers loads the model that it names, and not this one alone"
        advice = "Merge the adapter into its model with peft, save that, and name the new folder."
        findings.append(Finding("fault", "adapter", ADAPTER, what, advice))
    are_whole = bool(files) and set(headers) == set(files)
    return Contents(folder, tuple(names), config, tuple(files), tensors, are_whole, tuple(findings))


def _is_read(name: str) -> bool:
    """Whether the model is read from a file of this name."""
    return name.endswith((".json", ".safetensors")) or any(fnmatch(name, pattern) for pattern in COMPANIONS)


def _read_config(folder: Path, findings: list[Finding]) -> dict[str, Any] | None:
    path = folder / CONFIG
    if not path.is_file():
        findings.append(
            Finding(
                "fault",
                "config",
                CONFIG,
                "is not there, and without it nobody knows what the weights are",
                f"Copy config.json of the model that the weights come from into {folder}, then run this again.",
            )
        )
        return None
    try:
        if path.stat().st_size > MAX_HEADER_BYTES:
            raise ValueError(f"it has {path.stat().st_size} bytes, which is no model's")
        config = decode_floats(read_json(path))
        if not isinstance(config, dict):
            raise TypeError(f"a {type(config).__name__}, not an object")
    except (ValueError, TypeError, RecursionError, OSError) as error:
        findings.append(Finding("fault", "config", CONFIG, f"is not the JSON of a config ({error})", COPY_AGAIN))
        return None
    return config


def _weight_files(
    folder: Path, names: Sequence[str], findings: list[Finding]
) -> tuple[list[str], Mapping[str, str] | None]:
    """The weight files of the model, and tensor name -> file as the index says (empty for what is no file of here)."""
    present = [name for name in names if name.endswith(".safetensors")]
    if WEIGHTS in present:
        if INDEX in names:
            findings.append(
                Finding(
                    "warning",
                    "index",
                    INDEX,
                    f"lies beside {WEIGHTS}: transformers reads {WEIGHTS} alone, other programs may follow the index",
                    f"Delete {INDEX} and its shards, or {WEIGHTS}, whichever is the old one.",
                )
            )
        return [WEIGHTS], None
    if INDEX not in names:
        findings += _without_index(folder, names, present)
        return present, None
    try:
        said = dict(read_json(folder / INDEX)["weight_map"])
        if not said:
            raise ValueError("it names no tensor")
    except (ValueError, KeyError, TypeError, RecursionError, OSError) as error:
        findings.append(
            Finding("fault", "index", INDEX, f"is not an index of safetensors files ({error!r:.200})", COPY_AGAIN)
        )
        return present, None
    bad = sorted({repr(file) for file in said.values() if not _is_plain(file)})
    if bad:
        findings.append(
            Finding(
                "fault",
                "index",
                INDEX,
                f"names {in_words(bad)}: a weight file must be a .safetensors file of the same folder; it is not read",
                "Do not use this model unless you know why; copy the index again.",
            )
        )
    shards = sorted({file for file in said.values() if _is_plain(file)})
    absent = [file for file in shards if file not in names]
    if absent:
        findings.append(
            Finding(
                "fault",
                "shard",
                INDEX,
                f"names {in_words(absent)}, of {len(shards)} files, which {'is' if len(absent) == 1 else 'are'} not "
                f"there: {sum(file in absent for file in said.values())} tensors are missing",
                "Download or copy the missing files again.",
            )
        )
    return shards, {name: file if _is_plain(file) else "" for name, file in said.items()}


def _is_plain(file: Any) -> bool:
    """Whether an index names a weight file of its own folder."""
    return isinstance(file, str) and is_shard(file)


def _without_index(folder: Path, names: Sequence[str], present: Sequence[str]) -> list[Finding]:
    numbered = [match for match in map(NUMBERED.search, present) if match]
    promised = {number for match in numbered for number in range(1, int(match[2][:6]) + 1)}
    if absent := sorted(promised - {int(match[1][:6]) for match in numbered})[:MAX_NAMED]:
        what = f"by the names of the others, {'shards' if len(absent) > 1 else 'shard'} {absent} of them are not there"
        return [Finding("fault", "file", in_words(present), what, "Download or copy the missing files again.")]
    if present:
        what = f"is not there, and {in_words(present)} {'is' if len(present) == 1 else 'are'}"
        return [
            Finding(
                "fault",
                "index",
                INDEX,
                f"{what}: transformers finds no weights under these names",
                f"Rename the one file to {WEIGHTS}." if len(present) == 1 else "Copy the index of the model again.",
            )
        ]
    pickled = [name for name in names if name.endswith(PICKLED)]
    if pickled:
        return [
            Finding(
                "fault",
                "pickle",
                in_words(pickled),
                "the weights are there as pickle only, which can run code and is never opened",
                "If you trust the model, load it with transformers and call save_pretrained on a new folder.",
            )
        ]
    return [Finding("fault", "weights", str(folder), f"holds neither {WEIGHTS} nor {INDEX}", "Put the weights there.")]


def _read_headers(folder: Path, files: Sequence[str], findings: list[Finding]) -> dict[str, dict[str, TensorEntry]]:
    """Tensors of each file whose header is right; the others are findings."""
    headers = {}
    for file in files:
        try:
            headers[file] = read_header(folder / file)
        except SurgeryError as error:
            findings.append(of_error("fault", "shard", file, error))
            continue
        absurd = next(filter(ABSURD.search, headers[file]), None)
        if absurd is not None:
            what = f"a tensor is numbered beyond any layer ({absurd[:SHOWN_LETTERS]!r})"
            findings.append(Finding("fault", "shard", file, what, "Do not use this model unless you know why."))
            del headers[file]
    return headers


def _union(headers: Mapping[str, Mapping[str, TensorEntry]], findings: list[Finding]) -> dict[str, TensorEntry]:
    """All tensors; one that several files hold is a finding."""
    held = Counter(name for header in headers.values() for name in header)
    twice = sorted(name for name, count in held.items() if count > 1)
    if twice:
        places = [file for file, header in headers.items() if twice[0] in header]
        findings.append(
            Finding(
                "fault",
                "shard",
                ", ".join(places),
                f"{len(twice)} tensors are in more than one of the files ({in_words(twice)})",
                "Remove the files that are not of this model, and their lines in the index.",
            )
        )
    tensors: dict[str, TensorEntry] = {}
    for header in headers.values():
        tensors |= {name: entry for name, entry in header.items() if name not in tensors}
    return tensors


def _check_index(
    said: Mapping[str, str], headers: Mapping[str, Mapping[str, TensorEntry]], findings: list[Finding]
) -> None:
    """Compare what the index says with what the files hold."""
    held = {name: file for file, header in headers.items() for name in header}
    absent = sorted(name for name, file in said.items() if file in headers and name not in held)
    unnamed = sorted(set(held) - set(said))
    elsewhere = sorted(
        name for name, file in held.items() if name in said and said[name] in headers and said[name] != file
    )
    for names, what in (
        (absent, "promises {} tensors that no file holds"),
        (unnamed, "leaves out {} tensors that the files hold"),
        (elsewhere, "places {} tensors in another file than the one that holds them"),
    ):
        if names:
            said_so = what.format(len(names)) + f" ({in_words(names)})"
            findings.append(Finding("fault", "index", INDEX, said_so, "Copy the index again."))


def _beside(names: Sequence[str], files: Sequence[str]) -> list[Finding]:
    """Files that are not the model's."""
    left = [name for name in names if name.endswith(".safetensors") and name not in files]
    former = [name for name in left if name.startswith("model")]
    others = [name for name in left if name not in former]
    pickled = [name for name in names if name.endswith(PICKLED)] if files else []
    code = [name for name in names if name.endswith(".py")]
    findings = []
    if former:
        what = "not of this model as its index has it: left over from another save, and read by programs that take all"
        findings.append(Finding("warning", "left over", in_words(former), what, "Delete what is not needed."))
    for kind, some, what in (
        ("other weights", others, "not read by transformers"),
        ("pickle", pickled, "beside the weights; pickle can run code and is never opened"),
        ("code", code, "code of the model's own; it is never run"),
    ):
        if some:
            findings.append(Finding("note", kind, in_words(some), what, ""))
    return findings
