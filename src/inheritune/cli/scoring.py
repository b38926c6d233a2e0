"""A line on standard error that says how far the scoring of tasks is."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EVERY_S = 1.0
"""Seconds between two changes of the line."""


@contextmanager
def show_progress() -> Iterator[Callable[[int], None] | None]:
    """What is to be called with numbers of scored continuations; None where nobody is looking."""
    if not sys.stderr.isatty():
        yield None
        return
    begin = shown = time.monotonic()
    total = 0

    def count(more: int) -> None:
        nonlocal total, shown
        total += more
        if (now := time.monotonic()) - shown >= EVERY_S:
            shown = now
            speed = total / (now - begin)
            print(f"\r{total:,} continuations scored, {speed:,.0f} a second  ", end="", file=sys.stderr, flush=True)

    try:
        yield count
    finally:
        print("\r" + " " * 60 + "\r", end="", file=sys.stderr, flush=True)
