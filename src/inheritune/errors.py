"""Errors that a user can act on: what happened, where, why, and what to type next.

The command line prints the message alone and ends with ``exit_code``. A traceback on a user's mistake is our bug.
"""

from pathlib import Path


class InherituneError(Exception):
    """Root of every error that the user can mend."""

    exit_code: int = 1

    def __str__(self) -> str:
        """The message with what a terminal would act on (escape codes, NUL, half of a surrogate pair) spelt out."""
        return "".join(
            letter if letter.isprintable() or letter == "\n" else repr(letter)[1:-1] for letter in super().__str__()
        )


class RecipeError(InherituneError):
    """The recipe, or the way a command was called, is wrong."""

    exit_code = 2


class SurgeryError(InherituneError):
    """A model cannot be read, or cannot be cut exactly."""

    exit_code = 3


class DataError(InherituneError):
    """Text or shards are missing, too small, damaged, or do not fit the model."""

    exit_code = 3


class DiskError(InherituneError):
    """It does not fit on the disk; what was finished before is whole."""

    exit_code = 3

    path: Path | None = None
    """What could not be written."""


class TrainingError(InherituneError):
    """Training cannot go on: a loss that is not finite, a damaged checkpoint, no memory left."""

    exit_code = 1


class EvaluationError(InherituneError):
    """A score cannot be computed or would mean nothing."""

    exit_code = 1


class Stopped(InherituneError):  # noqa: N818  (the public name of DESIGN)
    """Stopped on request with everything saved; the same command goes on."""

    exit_code = 4
