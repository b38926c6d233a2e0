"""The command line: one file per verb, each of which calls one function of the library."""

import os
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from importlib.metadata import version
from typing import Any, TextIO, cast

from cyclopts import App, CycloptsError

from inheritune.cli.analyze import analyze
from inheritune.cli.demo import demo
from inheritune.cli.doctor import doctor
from inheritune.cli.eval import evaluate
from inheritune.cli.inherit import inherit
from inheritune.cli.init import init
from inheritune.cli.prepare import prepare
from inheritune.cli.report import report
from inheritune.cli.run import run
from inheritune.cli.train import train
from inheritune.errors import InherituneError, RecipeError, Stopped
from inheritune.machine.allocator import keep_freed_memory
from inheritune.machine.streams import Unfailing

HELP = (
    "Make a small base language model from a big one.\n\n"
    "Keep the reference's first layers, train them on a small share of the data, add layers until the validation loss "
    "matches. Start with `inheritune demo`, then `inheritune init` and `inheritune run`."
)

VERBS: dict[str, Callable[..., Any]] = {
    "demo": demo,
    "init": init,
    "run": run,
    "inherit": inherit,
    "doctor": doctor,
    "prepare": prepare,
    "train": train,
    "eval": evaluate,
    "analyze": analyze,
    "report": report,
}

RESUMING = ("demo", "run", "train")
"""Verbs that go on where they were."""

INTERRUPTED = 130
"""Exit code of another verb after Ctrl-C, as shells have it."""


def build_app() -> App:
    """The command line with all its verbs."""
    # Plain text: a renderer of Markdown is a fifth of the time that --help takes.
    app = App(
        name="inheritune",
        help=HELP,
        help_format="plaintext",
        version=lambda: version("inheritune"),
        suppress_keyboard_interrupt=False,  # what an interrupt means is said by _run
    )
    for verb, function in VERBS.items():
        app.command(function, name=verb)
    return app


def main(arguments: list[str] | None = None) -> None:
    """Parse, run, and exit with the code that the design gives to each end.

    ``--debug`` anywhere shows the traceback of an error.
    """
    given = sys.argv[1:] if arguments is None else arguments
    words = [word for word in given if word != "--debug"]
    keep_freed_memory()
    streams = sys.stdout, sys.stderr  # None where the caller has closed one
    out, err = (stream and cast(TextIO, Unfailing(stream, BrokenPipeError)) for stream in streams)
    with redirect_stdout(out), redirect_stderr(err):
        code = _run(words, debug="--debug" in given)
    for stream in streams:
        try:
            if stream and not stream.closed:
                stream.flush()
        except OSError:  # full: what it has not taken is let go, so that the exit code stays the command's own
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)


def _run(words: list[str], *, debug: bool) -> int:
    """Run one command; gives its exit code."""
    try:
        code = build_app()(words, exit_on_error=False, print_error=False, result_action="return_value")
        return code if isinstance(code, int) else 0
    except CycloptsError as error:
        verb = f"{words[0]} " if words and words[0] in VERBS else ""
        return _say(RecipeError(f"{error}\nTry `inheritune {verb}--help`."), debug=debug)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_code
    except InherituneError as error:
        return _say(error, debug=debug)
    except KeyboardInterrupt:
        if words[:1] and words[0] in RESUMING:
            print("interrupted; run the same command to go on from the last checkpoint.", file=sys.stderr)
            return Stopped.exit_code
        print("interrupted; nothing was saved.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except OSError as error:
        return _say(InherituneError(f"{error}. Check the path, its permissions and the free space."), debug=debug)


def _say(error: InherituneError, *, debug: bool) -> int:
    """One message on stderr; the traceback only where it was asked for."""
    if debug:
        traceback.print_exc()
    print(f"error: {error}", file=sys.stderr)
    return error.exit_code
