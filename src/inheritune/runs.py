"""Files that survive a kill: written to a temporary name, synced, renamed; a folder is committed by one rename.

Everything a run leaves behind goes through the functions of this module.
"""

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from inheritune.errors import RecipeError


def sync_folder(folder: Path) -> None:
    """Make the folder's entries durable (a rename inside it survives a power cut)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make the file's bytes durable."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_bytes(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content`` in one step: old or new, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def write_text(path: Path, content: str) -> None:
    """Replace ``path`` by UTF-8 ``content`` in one step."""
    write_bytes(path, content.encode())


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` by ``value`` as indented JSON; NaN and infinity are refused, since they are not JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The value in a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside ``target`` that becomes ``target`` if the block ends well, and vanishes if not.

    Left-overs of killed processes are swept away, and those of a process that is still at work are left alone. An
    existing ``target`` is replaced, and is there whole until the new one is: killed in between, the next call puts it
    back.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary, former = target.with_name(f".{target.name}.{os.getpid()}.tmp"), target.with_name(f".{target.name}.old")
    if former.exists() and not target.exists():
        former.rename(target)
    shutil.rmtree(former, ignore_errors=True)
    for left_over in target.parent.glob(f".{target.name}.*.tmp"):
        owner = left_over.name.split(".")[-2]
        if owner == str(os.getpid()) or not (owner.isdecimal() and _is_running(int(owner))):
            shutil.rmtree(left_over, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for path in sorted(temporary.rglob("*")):
            sync_folder(path) if path.is_dir() else sync_file(path)
        sync_folder(temporary)
        if target.exists():
            target.rename(former)
        temporary.rename(target)
        sync_folder(target.parent)
        shutil.rmtree(former, ignore_errors=True)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _is_running(process: int) -> bool:
    """Whether a process of this number runs on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def remove_folder(folder: Path) -> None:
    """Delete a folder so that it is never seen in part: it goes out of sight first. No folder is no error."""
    aside = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(aside, ignore_errors=True)
    if folder.exists():
        folder.rename(aside)
        shutil.rmtree(aside)


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder for this process; the operating system lets go when the process ends, however it ends.

    Raises:
        RecipeError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise RecipeError(
            f"another process is at work in {folder}. Wait for it, end it, or choose another run_dir."
        ) from error
    try:
        yield
    finally:
        lock.release()


def record_event(folder: Path, stage: str | None, kind: str, message: str) -> None:
    """Append one decision, in words, to the run's ``events.jsonl``."""
    event = {"time": now_utc(), "stage": stage, "kind": kind, "message": message}
    with (folder / "events.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(event, ensure_ascii=False) + "\n")


def has_event(folder: Path, stage: str | None, kind: str, message: str) -> bool:
    """Whether this very decision is in the run's ``events.jsonl`` already."""
    path = folder / "events.jsonl"
    wanted = {"stage": stage, "kind": kind, "message": message}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            continue  # torn by a kill
        if {key: event.get(key) for key in wanted} == wanted:
            return True
    return False


def now_utc() -> str:
    """The time, to the second, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def link_folder(source: Path, target: Path) -> None:
    """The same files under a second name, hard-linked where the file system can, copied where it cannot."""
    with new_folder(target) as new:
        for path in sorted(source.iterdir()):
            try:
                os.link(path, new / path.name)
            except OSError:
                shutil.copyfile(path, new / path.name)


def machine_facts() -> dict[str, Any]:
    """Versions and machine, for ``provenance.json``; nothing is fetched and nothing leaves."""
    packages = ("inheritune", "torch", "transformers", "safetensors", "tokenizers", "datasets", "numpy")
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "machine": {"system": platform.platform(), "processor": _processor(), "cores": os.cpu_count()},
    }


def _processor() -> str:
    """The processor's name where Linux tells it, else the architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()
