"""inheritune demo."""

from pathlib import Path


def demo(*, run_dir: Path = Path("runs/demo"), fresh: bool = False, from_scratch: bool = False) -> int:
    """The whole method in a few minutes: no network, no GPU.

    The text is Python's standard library; the reference is a Llama of 2M parameters that comes with the package.
    Run it again to go on after a stop.

    Args:
        run_dir: Folder of the run.
        fresh: Start over.
        from_scratch: Train the reference first, instead of taking the one that comes with the package (slow).
    """
    from inheritune.cli.ending import show_ending
    from inheritune.job import demo as run_demo

    show_ending(run_demo(run_dir, fresh=fresh, from_scratch=from_scratch))
    return 0
