"""A long training with many restarts holds its memory and its files, and ends as one without (R25)."""

import os
import time
from pathlib import Path
from statistics import median

import pytest

PAGE_KB = os.sysconf("SC_PAGE_SIZE") / 1024


def look_at(process, path):
    """Samples (bytes of metrics written, resident kB, open files) of a process until it ends."""
    samples = []
    proc = Path(f"/proc/{process.number}")
    while process.look() is None:
        try:
            pages = int((proc / "statm").read_text().split()[1])
            files = len(list((proc / "fd").iterdir()))
        except OSError:
            break  # it has just ended
        samples.append((path.stat().st_size if path.exists() else 0, pages * PAGE_KB, files))
        time.sleep(0.01)
    return samples


@pytest.mark.reliability("R25")
def test_a_long_training_grows_neither_in_memory_nor_in_files_and_restarts_change_nothing(
    stage, start, finish, differences, at_step, tmp_path, full
):
    steps, between = (20_000, 400) if full else (500, 200)
    changes = {
        "batch_tokens": 64,
        "token_budget": 6400,
        "passes": steps // 100,
        "validations": steps // 50,
        "save_every_minutes": 0.002,
    }
    whole = start(stage(tmp_path / "whole", **changes), apart=True)
    samples = look_at(whole, tmp_path / "whole" / "metrics.jsonl")
    assert whole.wait() == 0, whole.said
    written = samples[-1][0]
    early = [(kb, files) for size, kb, files in samples if 0.3 * written < size <= 0.6 * written]
    late = [(kb, files) for size, kb, files in samples if 0.7 * written < size < written]
    assert min(len(early), len(late)) >= 20
    assert median(kb for kb, _ in late) < 1.01 * median(kb for kb, _ in early)
    assert min(files for _, files in late) <= min(files for _, files in early)

    words = stage(tmp_path / "parts", **changes)
    for step in range(between, steps, between):
        finish(words, at_step(step, "signal:15"), code=4)
    finish(words)
    assert differences(tmp_path / "whole", tmp_path / "parts") == []
