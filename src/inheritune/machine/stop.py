"""A polite stop: SIGTERM or Ctrl-C asks, the work saves at its next safe point and raises ``Stopped``."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from inheritune.errors import Stopped


class StopRequest:
    """Set once by a signal, polled by every loop of a run."""

    def __init__(self) -> None:
        self.requested = False

    def check(self) -> None:
        """Raise ``Stopped`` if a stop was asked for. Call it only where nothing half-done would be left."""
        if self.requested:
            raise Stopped("stopped on request; everything finished is saved. Run the same command to go on.")


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """SIGTERM and SIGINT set the request; a second one interrupts at once (the last checkpoint still holds).

    Outside the main thread signals cannot be caught; the request is then never set by one.
    """
    request = StopRequest()

    def ask(number: int, _frame: FrameType | None) -> None:
        if request.requested:
            raise KeyboardInterrupt(signal.Signals(number).name)
        request.requested = True

    try:
        before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread
        yield request
        return
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
