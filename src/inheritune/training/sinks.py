"""Where a stage writes what it measured: ``metrics.jsonl`` (the record), TensorBoard beside it, and the terminal."""

import json
import os
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Protocol, TextIO, cast

from rich.console import Console
from rich.live import Live
from rich.text import Text

from inheritune import runs
from inheritune.machine.streams import Unfailing
from inheritune.training.tensorboard import TensorBoard
from inheritune.units import format_count, format_duration

PLAIN_INTERVAL_S = 15.0
"""Seconds between lines where the output is not a terminal."""


class MetricsLog:
    """One JSON object a line; a line torn by a kill is cut off when the stage resumes."""

    def __init__(self, path: Path, stage: str, *, resumed_step: int, looked_again: bool = True) -> None:
        """Open for appending, after dropping what this stage wrote beyond ``resumed_step``.

        Training lines count steps done; a validation line of step n is written before step n + 1 is made, and so
        again after a resume at n, where that is a step to look at (``looked_again``).
        """
        self.stage = stage
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue  # torn by a kill: the step it tells of is made again
            last_kept = resumed_step - 1 if entry["kind"] == "validation" and looked_again else resumed_step
            if entry["stage"] != stage or entry["step"] <= last_kept:
                kept.append(json.dumps(entry) + "\n")
        runs.write_text(path, "".join(kept))
        self.path = path
        self._file = path.open("ab", buffering=0)

    def write(self, kind: str, values: dict[str, Any]) -> None:
        """Append one line and hand it to the operating system.

        Raises:
            DiskError: no space for it.
        """
        content = (json.dumps({"stage": self.stage, "kind": kind, **values}, allow_nan=False) + "\n").encode()
        with runs.writing(self.path, len(content)):
            runs.write_all(self._file, content)

    def sync(self) -> None:
        """Make the lines durable: a checkpoint must never be ahead of them."""
        with runs.writing(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Make the lines durable, and end; once more is nothing."""
        if not self._file.closed:
            with self._file:
                self.sync()


class StageLog:
    """``metrics.jsonl``, and TensorBoard where it is wanted, from the step on that a stage stands at."""

    def __init__(
        self,
        path: Path,
        stage: str,
        *,
        step: int,
        looks: Collection[int],
        board: Path | None,
        record_event: Callable[[str, str], None],
    ) -> None:
        """
        Args:
            path: the run's ``metrics.jsonl``.
            stage: whose lines are written.
            step: that the stage stands at; what it wrote beyond is dropped.
            looks: steps whose validation line is written again after a resume there.
            board: TensorBoard's folder; None for none.
            record_event: called with (kind, message) where TensorBoard fails.
        """
        self._path, self._stage, self._looks, self._board_folder = path, stage, looks, board
        self._record_event = record_event
        self._open(step)

    def _open(self, step: int) -> None:
        self._metrics = MetricsLog(self._path, self._stage, resumed_step=step, looked_again=step in self._looks)
        self._board = TensorBoard(self._board_folder, step, self._record_event) if self._board_folder else None

    def write(self, kind: str, values: dict[str, Any]) -> None:
        """One line.

        Raises:
            DiskError: no space for it.
        """
        self._metrics.write(kind, values)
        if self._board:
            self._board.write(kind, values)

    def sync(self) -> None:
        """Make the lines durable."""
        self._metrics.sync()

    def go_back(self, step: int) -> None:
        """Drop what was written beyond an earlier step."""
        self.close()
        self._open(step)

    def close(self) -> None:
        """Make the lines durable, and end."""
        self._metrics.close()
        if self._board:
            self._board.close()


class Progress(Protocol):
    """What a run shows while it works."""

    def say(self, message: str) -> None:
        """One line that stays."""

    def show(self, status: str) -> None:
        """The current state; a later one replaces it."""

    def close(self) -> None:
        """Leave the screen as it is."""


class Terminal:
    """A status line that renews itself on a terminal; plain lines now and then elsewhere."""

    def __init__(self, console: Console | None = None) -> None:
        stream = cast(TextIO, Unfailing(sys.stderr))
        self.console = console or Console(file=stream, highlight=False, soft_wrap=True)
        self._live: Live | None = None
        self._last_plain_s = float("-inf")

    def say(self, message: str) -> None:
        """One line that stays."""
        self.console.print(Text(message))

    def show(self, status: str) -> None:
        """The current state."""
        if self.console.is_terminal:
            if self._live is None:
                self._live = Live(console=self.console, refresh_per_second=4, transient=True)
                self._live.start()
            self._live.update(Text(status, style="cyan", overflow="ellipsis", no_wrap=True))
        elif time.monotonic() - self._last_plain_s >= PLAIN_INTERVAL_S:
            self._last_plain_s = time.monotonic()
            self.say(status)

    def close(self) -> None:
        """Take the status line away."""
        if self._live is not None:
            self._live.stop()
            self._live = None


class Silent:
    """Shows nothing: for the library and for tests."""

    def say(self, message: str) -> None:
        """Nothing."""

    def show(self, status: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def status_line(
    *,
    label: str,
    tokens: int,
    total_tokens: int,
    loss_nats: float,
    validation_nats: float | None,
    target_nats: float | None,
    tokens_per_s: float | None,
    utilisation: float | None = None,
) -> str:
    """One line of a stage's progress, every number with its unit."""
    parts = [label, f"{format_count(tokens)}/{format_count(total_tokens)} tokens", f"loss {loss_nats:.3f} nats"]
    if validation_nats is not None:
        parts.append(f"val {validation_nats:.3f} nats")
    if target_nats is not None:
        parts.append(f"target {target_nats:.3f}")
    if validation_nats is not None and target_nats is not None:
        parts.append(f"gap {validation_nats - target_nats:+.3f}")
    if tokens_per_s:
        share = f" ({utilisation:.0%} of peak)" if utilisation is not None else ""
        parts.append(f"{format_count(round(tokens_per_s))} tok/s{share}")
        parts.append(f"{format_duration((total_tokens - tokens) / tokens_per_s)} left")
    return " | ".join(parts)
