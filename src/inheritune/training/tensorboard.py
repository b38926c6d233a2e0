"""TensorBoard beside ``metrics.jsonl``: for looking at, never needed, and nothing that goes wrong in it matters."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = "tensorboard"


class TensorBoard:
    """Writes the numbers of each line as scalars; at the first failure it says so once and falls silent."""

    def __init__(self, folder: Path, resumed_step: int, record_event: Callable[[str, str], None]) -> None:
        """Open a file of events in ``folder``; steps after ``resumed_step`` that an earlier process wrote are hidden.

        Args:
            folder: gets TensorBoard's own files.
            resumed_step: steps that hold.
            record_event: called with (kind, message) at the first failure.
        """
        self._record_event = record_event
        self._writer: Any = None

        def open_it() -> None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder), purge_step=resumed_step + 1)

        self._try(open_it)

    def write(self, kind: str, values: dict[str, Any]) -> None:
        """The numbers of one line of ``metrics.jsonl``, as ``kind/name``."""
        if self._writer is not None:
            numbers = {name: each for name, each in values.items() if isinstance(each, int | float)}
            self._try(
                lambda: [
                    self._writer.add_scalar(f"{kind}/{name}", each, values["step"]) for name, each in numbers.items()
                ]
            )

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._try(self._writer.close)
            self._writer = None

    def _try(self, act: Callable[[], object]) -> None:
        """Do it; whatever it raises is told, and ends the sink but not the run."""
        try:
            act()
        except Exception as error:
            self._writer = None
            why = str(error) or type(error).__name__
            if isinstance(error, ImportError):
                why += " (pip install 'inheritune[tensorboard]')"
            self._record_event("tensorboard", f"nothing more goes to TensorBoard: {why}. metrics.jsonl has everything.")
