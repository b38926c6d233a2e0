"""What is printed matters less than what is done: a full log disk or a closed pipe stops nobody."""

from typing import Any, TextIO


class Unfailing:
    """A stream that loses what it cannot write, and says nothing."""

    def __init__(self, stream: TextIO, *passed_on: type[OSError]) -> None:
        """Stand in front of ``stream``; errors that are ``passed_on`` are raised all the same."""
        self.stream = stream
        self.passed_on = passed_on

    def write(self, text: str) -> int:
        """Write it if that is possible."""
        try:
            return self.stream.write(text)
        except OSError as error:
            if isinstance(error, self.passed_on):
                raise
            return len(text)

    def flush(self) -> None:
        """Hand on what can be."""
        try:
            self.stream.flush()
        except OSError as error:
            if isinstance(error, self.passed_on):
                raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)
