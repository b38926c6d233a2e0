"""The main job: the search, then the child's card and the report."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inheritune import runs
from inheritune.data.standard_library import write_standard_library
from inheritune.errors import RecipeError
from inheritune.growth.record import provenance, provenance_of_inputs, record
from inheritune.growth.rounds import search
from inheritune.growth.run import Run
from inheritune.growth.stages import make_reference
from inheritune.machine.stop import stop_on_signals
from inheritune.recipe import KEEPING_KEYS, Recipe, may_change, recipe_differences
from inheritune.reporting.card import write_card
from inheritune.reporting.page import report
from inheritune.training.sinks import Progress, Terminal

RECIPES = Path(__file__).parent / "recipes"
"""What comes with the package."""


OF_THE_CHILD = ("evaluation", "analysis")
"""Folders in a run's that the report reads, with what verbs have said of its child."""


@dataclass(frozen=True)
class GrowthResult:
    """A finished search."""

    run_dir: Path
    summary: dict[str, Any]
    report: Path

    @property
    def verdict(self) -> str:
        """ "better", "parity" or "not shown"."""
        return str(self.summary["verdict"])

    @property
    def exit_code(self) -> int:
        """0 where parity is shown, 5 where it is not."""
        return 0 if self.summary["parity"] else 5

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"run_dir": str(self.run_dir), "report": str(self.report), "summary": self.summary}


def grow(recipe: Recipe, *, fresh: bool = False, progress: Progress | None = None) -> GrowthResult:
    """Make the child that the recipe asks for; called again it goes on, and when it is done it says so.

    Args:
        recipe: what is asked; everything lands in ``recipe.run_dir``.
        fresh: delete what an earlier call left in the run folder and start over.
        progress: where to show what happens; the terminal by default.

    Raises:
        RecipeError: the run folder was made by another recipe, or another process is at work in it.
        Stopped: stopped on request, saved.
        DiskError: something did not fit on the disk; what was finished before is whole.
    """
    with _open_run(recipe, fresh=fresh, progress=progress) as run:
        folder = run.folder
        if (folder / "summary.json").exists():
            run.progress.say(f"{folder} is done already; --fresh starts over")
            write_card(folder / "model", folder)  # a kill may have come between summary and card
            return GrowthResult(folder, runs.read_json(folder / "summary.json"), report(folder))
        found = search(run)
        known = runs.read_json(folder / "provenance.json")
        runs.write_json(folder / "provenance.json", {**known, **provenance_of_inputs(run, found)})
        summary = record(run, found)
        write_card(folder / "model", folder)
        return GrowthResult(folder, summary, report(folder))


def demo(
    run_dir: str | Path = "runs/demo",
    *,
    fresh: bool = False,
    from_scratch: bool = False,
    progress: Progress | None = None,
) -> GrowthResult:
    """The main job on text and a reference that every installation has.

    Args:
        run_dir: folder of the run. The text lies beside it as ``NAME-text.jsonl``, and with ``from_scratch`` the
            reference's own run as ``NAME-reference``.
        fresh: start over.
        from_scratch: make the reference by its recipe first, instead of taking the one that comes with the package.
        progress: where to show what happens; the terminal by default.
    """
    folder = Path(run_dir).absolute()
    text = folder.with_name(f"{folder.name}-text.jsonl")
    if not text.exists():
        write_standard_library(text)
    reference = RECIPES / "demo_reference"
    given = {"data.sources": [str(text)]}
    if from_scratch:
        making_folder = folder.with_name(f"{folder.name}-reference")
        making = Recipe.load(RECIPES / "demo-reference.yaml", {**given, "run-dir": str(making_folder)})
        with _open_run(making, fresh=fresh, progress=progress) as run:
            reference = make_reference(run)
    recipe = Recipe.load(RECIPES / "demo.yaml", {**given, "run-dir": str(folder), "reference.model": str(reference)})
    return grow(recipe, fresh=fresh, progress=progress)


@contextmanager
def _open_run(recipe: Recipe, *, fresh: bool, progress: Progress | None) -> Iterator[Run]:
    """The run folder, locked and claimed for this recipe, with its signals and its terminal."""
    folder = Path(recipe.run_dir)
    progress = progress or Terminal()
    _refuse_nested(folder, recipe)
    with runs.locked(folder), stop_on_signals() as stop:
        if fresh:
            _clear(folder)
        _claim(folder, recipe, progress)
        run = Run(recipe=recipe, folder=folder, stop=stop, progress=progress)
        if not (folder / "provenance.json").exists():
            runs.write_json(folder / "provenance.json", provenance(run, sys.argv, runs.now_utc()))
        try:
            with runs.writing(folder):  # whatever in it has no better name
                yield run
        finally:
            progress.close()


def _refuse_nested(folder: Path, recipe: Recipe) -> None:
    """Keep what a run reads apart from its folder, which --fresh empties and whose records are JSON lines, too.

    Raises:
        RecipeError: the reference, a source or the tasks' rows lie in the run folder, or the run folder in a source.
    """
    here = folder.resolve()
    sources = [source if isinstance(source, str) else source.path for source in recipe.data.sources]
    for what in filter(None, [recipe.reference.model, recipe.tasks.data, *sources]):
        given = Path(what).resolve()
        if given.exists() and (given == here or here in given.parents):
            raise RecipeError(
                f"{what} lies in the run folder {folder}, which belongs to the run alone. Move it elsewhere, or choose "
                "another run_dir."
            )
        if given.is_dir() and given in here.parents and what in sources:
            raise RecipeError(
                f"the run folder {folder} lies in the source {what}, whose files would then be taken for text. Choose "
                "another run_dir, or name the files of the source."
            )


def _claim(folder: Path, recipe: Recipe, progress: Progress) -> None:
    """Mark the folder as this recipe's; one that another recipe made is gone on with, or refused, with what differs.

    Raises:
        RecipeError: the folder belongs to something else, or the recipes differ where a run cannot change.
    """
    path = folder / "recipe.yaml"
    begun = (folder / "data").exists() or (folder / "stages").exists()
    if not path.exists() or not begun:
        foreign = _entries(folder) - {"recipe.yaml", "provenance.json", "events.jsonl"}
        if foreign:
            raise RecipeError(
                f"{folder} is not empty and no run folder (it holds {min(foreign)!r}). Choose another run_dir."
            )
        for name in ("provenance.json", "events.jsonl"):  # of a recipe that was refused before anything was made
            (folder / name).unlink(missing_ok=True)
        runs.write_text(path, recipe.dump())
        return
    before = Recipe.load(path).model_copy(update={"run_dir": recipe.run_dir})  # the folder may have been moved
    differences = recipe_differences(before, recipe)
    if not differences:
        return
    lines = {key: f"{key}: {old} -> {new}" for key, (old, new) in differences.items()}
    trained = any(path.parent.name != "reference" for path in (folder / "stages").glob("*/settings.json"))
    refused = [line for key, line in lines.items() if not may_change(key) and (trained or not key.startswith("train."))]
    if refused:
        allowed = [line for line in lines.values() if line not in refused]
        raise RecipeError(
            f"{folder} was made by another recipe:\n  "
            + "\n  ".join(refused)
            + ("\nThese may change: " + "; ".join(allowed) + "." if allowed else "")
            + "\nChoose another run_dir, or start over with --fresh."
        )
    progress.say(f"{folder} goes on with a changed recipe: {'; '.join(lines.values())}")
    for line in lines.values():
        runs.record_event(folder, None, "recipe changed", line)
    if set(differences) - KEEPING_KEYS:  # more is asked than was done: what was said of the end does not hold any more
        (folder / "summary.json").unlink(missing_ok=True)
        for name in OF_THE_CHILD:
            if (folder / name).exists():
                shutil.rmtree(folder / f"{name}.before", ignore_errors=True)
                (folder / name).rename(folder / f"{name}.before")
                progress.say(f"{folder / name} is of the child as it was: it is now {name}.before")
    runs.write_text(path, recipe.dump())


def _clear(folder: Path) -> None:
    """Empty a run folder; anything that is not one is left alone."""
    entries = _entries(folder)
    if entries and "recipe.yaml" not in entries:
        raise RecipeError(f"{folder} is no run folder (no recipe.yaml), so nothing is deleted. Choose another run_dir.")
    # Moved aside whole, the verdict first and the mark last: killed anywhere, no half of a stage is taken for a whole.
    for former in folder.glob(".*.old"):  # what a kill has left must not come back
        shutil.rmtree(former)
    aside = folder / ".cleared"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    for name in sorted(entries, key=lambda name: (name == "recipe.yaml", name != "summary.json", name)):
        (folder / name).rename(aside / name)
    shutil.rmtree(aside)


def _entries(folder: Path) -> set[str]:
    """Names in a folder, the hidden ones of locks and half-written files left out."""
    return {entry.name for entry in folder.iterdir() if not entry.name.startswith(".")}
