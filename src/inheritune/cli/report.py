"""inheritune report."""

from pathlib import Path


def report(*runs: Path, out: Path | None = None) -> None:
    """Rebuild the page from run folders: inheritune report runs/a runs/b --out compare.html

    Args:
        runs: One run folder, or several for a comparison.
        out: Page to write; RUN/report.html for one run, report.html for several.
    """
    from inheritune.errors import RecipeError
    from inheritune.reporting.page import report as build

    if not runs:
        raise RecipeError("no run folder named. Write: inheritune report runs/demo")
    print(build(runs[0] if len(runs) == 1 else list(runs), out))
