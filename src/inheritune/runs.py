"""Files that survive a kill: written to a temporary name, synced, renamed; a folder is committed by one rename.

Everything a run leaves behind goes through the functions of this module.
"""

import errno
import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from inheritune.errors import DiskError, RecipeError
from inheritune.units import format_bytes

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a write says where the disk, the user's quota or the process's largest file is full."""


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


@contextmanager
def writing(path: Path, num_bytes: int | None = None) -> Iterator[None]:
    """Where the block fails for want of space, say what was to be written, how much it needs and what is still safe.

    Args:
        path: what the block writes.
        num_bytes: its size, where that is known.

    Raises:
        DiskError: no space, no quota, or a file beyond the largest size allowed.
    """
    try:
        yield
    except DiskError:  # it names its own file
        raise
    except Exception as error:
        if reason := _no_space(error):
            needed = "" if num_bytes is None else f"It needs {_exact(num_bytes)}, and "
            raise _disk_error(path, reason, needed) from error
        raise


def require_space(folder: Path, num_bytes: int, what: str) -> None:
    """Refuse, before a byte is written, what will not fit.

    Args:
        folder: where it will lie; it need not be there yet.
        num_bytes: what it takes.
        what: its name, as in "no space for the shards".

    Raises:
        DiskError: less is free. Quotas, and file systems that do not tell their size, are seen when writing only.
    """
    usage = shutil.disk_usage(_nearest(folder))
    if usage.total and usage.free < num_bytes:
        raise DiskError(
            f"no space for {what}: it takes {_exact(num_bytes)} in {folder}, and {_exact(usage.free)} are free there. "
            "Free some space and run the same command; nothing of it has been written, and what was finished before is "
            "whole, the last checkpoint too."
        )


def _disk_error(path: Path, reason: str, needed: str, part: str = "") -> DiskError:
    """What could not be written, why, how much it needs and how much is free."""
    free = _exact(shutil.disk_usage(_nearest(path)).free)
    full = DiskError(
        f"cannot write {path}{part}: {reason}. {needed}{free} are free. Free some space and run the same "
        "command: what was finished before is whole, the last checkpoint too."
    )
    full.path = path
    return full


def _no_space(error: BaseException | None) -> str | None:
    """The reason in the system's words where there was no space; safetensors and numpy tell it in their text alone."""
    if isinstance(error, DiskError):
        return _no_space(error.__cause__)
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (told := re.search(r"\(os error (\d+)\)", str(error))):
        number = int(told[1])
    if number is None and isinstance(error, OSError) and re.fullmatch(r"\d+ requested and \d+ written", str(error)):
        number = errno.ENOSPC  # numpy's short write
    return os.strerror(number) if number in NO_SPACE else None


def _exact(num_bytes: int) -> str:
    """Bytes to the last one, and in words where they are many."""
    return f"{num_bytes} bytes" + (f" ({format_bytes(num_bytes)})" if num_bytes >= 1000 else "")


def _nearest(path: Path) -> Path:
    """The path itself, or the folder nearest to it that is there."""
    return next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())


def write_bytes(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content`` in one step: old or new, never half.

    Raises:
        DiskError: no space for it; the old content stands.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path, len(content)):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_all(file: BinaryIO, content: bytes) -> None:
    """Write every byte to an unbuffered file; a nearly full disk takes some of them and says no to the rest."""
    while content:
        content = content[file.write(content) :]


def append_line(path: Path, line: str) -> None:
    """Append one line, whole or not at all; what a kill has left of a line before it is cut off.

    Raises:
        DiskError: no space for it; the lines before it stand.
    """
    content = f"{line}\n".encode()
    with writing(path, len(content)), path.open("a+b", buffering=0) as file:
        file.seek(0)
        end = file.read().rfind(b"\n") + 1
        file.truncate(end)
        try:
            write_all(file, content)
        except OSError:
            file.truncate(end)
            raise


def write_text(path: Path, content: str) -> None:
    """Replace ``path`` by UTF-8 ``content`` in one step."""
    write_bytes(path, content.encode())


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` by ``value`` as indented JSON; NaN and infinity are refused, since they are not JSON."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """What ``write_json`` writes."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_json(path: Path) -> Any:
    """The value in a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def recover(target: Path) -> None:
    """Put back what a kill between the two renames of ``new_folder`` has left under its former name, and sweep up."""
    former = target.with_name(f".{target.name}.old")
    if former.exists() and not target.exists():
        former.rename(target)
    remove_folder(former)


@contextmanager
def new_folder(target: Path, num_bytes: int | None = None) -> Iterator[Path]:
    """A temporary folder beside ``target`` that becomes ``target`` if the block ends well, and vanishes if not.

    Left-overs of killed processes are swept away, and those of a process that is still at work are left alone. An
    existing ``target`` is replaced, and is there whole until the new one is: killed in between, the next call puts it
    back.

    Args:
        target: the folder to make.
        num_bytes: what it will take, where that is known.

    Raises:
        DiskError: no space for what the block writes, whoever writes it; ``target`` is as it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary, former = target.with_name(f".{target.name}.{os.getpid()}.tmp"), target.with_name(f".{target.name}.old")
    recover(target)
    for left_over in target.parent.glob(f".{target.name}.*.tmp"):
        owner = left_over.name.split(".")[-2]
        if owner == str(os.getpid()) or not (owner.isdecimal() and is_running(int(owner))):
            shutil.rmtree(left_over, ignore_errors=True)
    try:
        temporary.mkdir()
        yield temporary
        for path in sorted(temporary.rglob("*")):
            sync_folder(path) if path.is_dir() else sync_file(path)
        sync_folder(temporary)
        if target.exists():
            target.rename(former)
        temporary.rename(target)
        sync_folder(target.parent)
        remove_folder(former)  # out of sight first: half of it is never put back
    except BaseException as error:
        files = [path for path in temporary.rglob("*") if path.is_file()] if temporary.exists() else []
        held = sum(path.stat().st_size for path in files)
        latest = max(files, key=lambda path: path.stat().st_mtime_ns, default=None)
        shutil.rmtree(temporary, ignore_errors=True)
        if reason := _no_space(error):
            file = error.path if isinstance(error, DiskError) else latest
            part = f" ({file.name} in it)" if file else ""
            least = "" if num_bytes else "more than "
            needed = f"It needs {least}{_exact(num_bytes or held)}, and " if num_bytes or held else ""
            raise _disk_error(target, reason, needed, part) from error
        raise


def is_running(process: int) -> bool:
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
    append_line(folder / "events.jsonl", json.dumps(event, ensure_ascii=False))


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
