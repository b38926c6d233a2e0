"""The report page: one offline HTML file from one run folder, or a comparison from several.

No script, nothing loaded from outside, the same bytes from the same folders.
"""

from collections.abc import Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup

from inheritune.errors import RecipeError
from inheritune.reporting import wording
from inheritune.reporting.comparison import comparison_view
from inheritune.reporting.panels import run_view
from inheritune.reporting.record import read_run
from inheritune.runs import write_text

SIGN = '<meta name="generator" content="inheritune report">'


def report(run_dirs: Path | Sequence[Path], out: Path | None = None) -> Path:
    """Write the report page of one run folder, or a comparison of several, and return its path.

    Args:
        run_dirs: one run folder, or several; unfinished runs give a page that says so.
        out: the HTML file; default ``RUN/report.html`` for one folder, ``report.html`` here for several.

    Raises:
        RecipeError: a folder is no run folder, none was named, or ``out`` is something else than a report.
        DiskError: no space for the page; one that was there stands.
    """
    folders = [Path(run_dirs)] if isinstance(run_dirs, str | Path) else [Path(folder) for folder in run_dirs]
    if not folders:
        raise RecipeError("a report needs a run folder, none was named. Type: inheritune report runs/NAME")
    records = [read_run(folder) for folder in folders]
    target = Path(out) if out is not None else (folders[0] if len(folders) == 1 else Path()) / "report.html"
    _refuse_foreign(target)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for word in (
        "count",
        "exact",
        "nats",
        "difference",
        "share",
        "scaled",
        "perplexity",
        "duration",
        "seeds",
        "interval",
    ):
        environment.filters[word] = getattr(wording, word)
    environment.filters["dash"] = lambda text: "-" if text == wording.UNKNOWN else text
    shared = {"sign": Markup(SIGN), "unknown": wording.UNKNOWN}
    if len(records) == 1:
        html = environment.get_template("run.html.j2").render(**shared, **run_view(records[0]))
    else:
        html = environment.get_template("comparison.html.j2").render(**shared, **comparison_view(records))
    write_text(target, html)
    return target


def _refuse_foreign(target: Path) -> None:
    """Only a report is overwritten."""
    if target.is_dir():
        raise RecipeError(
            f"cannot write the report to {str(target)!r}: it is a folder. Name a file: --out {target / 'report.html'}"
        )
    if target.exists():
        with target.open(encoding="utf-8", errors="replace") as file:
            head = file.read(2000)
        if SIGN not in head:
            raise RecipeError(
                f"cannot write the report to {str(target)!r}: a file is there that is not a report of this program, "
                "and it is not overwritten. Move it away, or name another file with --out FILE.html"
            )
