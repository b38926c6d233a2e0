"""Real text that every machine with Python has: the source of the standard library."""

import json
import sysconfig
from pathlib import Path

from inheritune import runs

LEFT_OUT = frozenset({"test", "tests", "idlelib", "lib2to3", "pydoc_data", "site-packages", "dist-packages"})
"""Folders that are no part of it, or tests."""


def write_standard_library(out: Path) -> int:
    """One JSON line per source file, {"text", "path"}, sorted by path; gives the number of files.

    About 600 files and 10 MB; a little more or less with each Python release.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    lines = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if LEFT_OUT.isdisjoint(parts[:-1]):
            text = path.read_bytes().decode("utf-8", errors="ignore")
            lines.append(json.dumps({"text": text, "path": "/".join(parts)}) + "\n")
    runs.write_text(out, "".join(lines))
    return len(lines)
