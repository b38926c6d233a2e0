"""Which code was measured."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CHANGED = " with changes"


def commit_here() -> str:
    """The commit that is checked out; " with changes" behind it where what ran is not what it holds."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--", "src", "tests", "benchmarks/*.py", "benchmarks/speed")
    return (git("rev-parse", "HEAD") or "unknown") + (CHANGED if changed else "")


def short(commit: str) -> str:
    """Its first characters, and whether it was changed."""
    return commit[:7] + (CHANGED if commit.endswith(CHANGED) else "")
