"""One run folder as a frozen value: what a report may say, and notes on what is missing or damaged."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from inheritune.errors import RecipeError
from inheritune.runs import read_json

ANALYSIS, DOWNSTREAM, PROBE = "analysis/analysis.json", "evaluation/downstream.json", "evaluation/probe.json"
"""What other verbs may leave in a run's folder."""


@dataclass(frozen=True)
class RunRecord:
    """Everything a report reads, as plain values; an absent file is an empty value."""

    folder: Path
    summary: Mapping[str, Any]
    recipe_text: str
    provenance: Mapping[str, Any]
    metrics: tuple[Mapping[str, Any], ...]
    events: tuple[Mapping[str, Any], ...]
    probes: Mapping[str, Mapping[str, Any]]
    certificate: Mapping[str, Any]
    analysis: Mapping[str, Any]
    """What ``analyze`` has written into the folder; empty where it has not been run."""
    downstream: Mapping[str, Any]
    """What ``eval --suite`` or the run itself has written into it; likewise."""
    written: Mapping[str, Any]
    """What ``eval --probe`` has written into it; likewise."""
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """The run's own name, else its folder's."""
        return str(self.summary.get("name") or self.folder.resolve().name)

    @property
    def recipe(self) -> Mapping[str, Any]:
        """The recipe as plain values; empty where it is missing or cannot be read."""
        try:
            value = yaml.safe_load(self.recipe_text)
        except yaml.YAMLError:
            return {}
        return value if isinstance(value, Mapping) else {}

    @property
    def made_reference(self) -> bool:
        """Whether the run trained its reference itself."""
        return bool(pick(self.recipe, "reference.train"))

    @property
    def finished(self) -> bool:
        """Whether the run came to its end (with or without parity)."""
        return self.summary.get("state") == "done"

    def stage_lines(self, stage: str, kind: str) -> tuple[Mapping[str, Any], ...]:
        """The metric lines of one stage and kind (``train`` or ``validation``), in order."""
        return tuple(line for line in self.metrics if line.get("stage") == stage and line.get("kind") == kind)

    def stages(self) -> tuple[str, ...]:
        """Stage names in the order in which they first appear in the metrics."""
        return tuple(dict.fromkeys(str(line["stage"]) for line in self.metrics if "stage" in line))


def pick(value: Any, path: str) -> Any:
    """The value under a dotted ``path`` of nested mappings, or None where a part of the path is missing."""
    for key in path.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value


def read_run(folder: Path) -> RunRecord:
    """Read a run folder, finished or not.

    Raises:
        RecipeError: the folder is no run folder, or one of its JSON files is damaged.
    """
    if not folder.is_dir():
        raise RecipeError(
            f"cannot report on {str(folder)!r}: there is no such folder. "
            "Name a run folder (the `run_dir` of the recipe): inheritune report runs/NAME"
        )
    has = {name: (folder / name).is_file() for name in ("summary.json", "recipe.yaml", "metrics.jsonl")}
    if not has["summary.json"] and not (has["recipe.yaml"] and has["metrics.jsonl"]):
        found = ", ".join(name for name, there in has.items() if there) or "none of them"
        raise RecipeError(
            f"cannot report on {str(folder)!r}: it is not a run folder that has begun to train. A report needs "
            f"summary.json, or recipe.yaml and metrics.jsonl; found: {found}. "
            "Start the run (inheritune run RECIPE.yaml) or name another folder: inheritune report runs/NAME"
        )
    notes: list[str] = []
    for name, what in (
        ("summary.json", "the run has not ended, so there is no verdict"),
        ("recipe.yaml", "the recipe cannot be shown"),
        ("provenance.json", "versions, machine and hashes cannot be shown"),
        ("metrics.jsonl", "there are no curves"),
    ):
        if not (folder / name).is_file():
            notes.append(f"{name} is missing: {what}.")
    probes = {path.parent.name: _mapping(path) for path in sorted(folder.glob("stages/*/probe.json"))}
    return RunRecord(
        folder=folder,
        summary=_mapping(folder / "summary.json"),
        recipe_text=_text(folder / "recipe.yaml"),
        provenance=_mapping(folder / "provenance.json"),
        metrics=_lines(folder / "metrics.jsonl", notes),
        events=_lines(folder / "events.jsonl", notes),
        probes=probes,
        certificate=_mapping(folder / "model" / "certificate.json"),
        analysis=_beside(folder / ANALYSIS, notes),
        downstream=_beside(folder / DOWNSTREAM, notes),
        written=_beside(folder / PROBE, notes),
        notes=tuple(notes),
    )


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _mapping(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = read_json(path)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"cannot read {str(path)!r}: {error}. The file is damaged; run the recipe again (it goes on where it "
            "stopped and writes the file anew), or restore it from a copy."
        ) from error
    if not isinstance(value, dict):
        raise RecipeError(
            f"cannot read {str(path)!r}: it holds a {type(value).__name__}, a JSON object was expected. "
            "The file is not of this program; name another run folder: inheritune report runs/NAME"
        )
    return value


def _beside(path: Path, notes: list[str]) -> Mapping[str, Any]:
    """The object of a file that the verdict does not need; a damaged one is left out and named in ``notes``."""
    try:
        return _mapping(path)
    except RecipeError:
        notes.append(left_out(path))
        return {}


def left_out(path: Path) -> str:
    """The note on a file of another verb that cannot be shown."""
    verb = {ANALYSIS: "analyze", DOWNSTREAM: "eval", PROBE: "eval"}["/".join(path.parts[-2:])]
    return (
        f"{path.parent.name}/{path.name} is damaged and left out; write it anew with: inheritune {verb} ... --out "
        f"{path.parent}."
    )


def _lines(path: Path, notes: list[str]) -> tuple[Mapping[str, Any], ...]:
    """The objects of a JSON Lines file; lines torn by a kill are left out and counted in ``notes``."""
    lines: list[Mapping[str, Any]] = []
    damaged = 0
    for text in _text(path).splitlines():
        if not text.strip():
            continue
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = None
        if isinstance(value, dict):
            lines.append(value)
        else:
            damaged += 1
    if damaged:
        notes.append(f"{path.name}: {damaged} damaged line{'s' if damaged > 1 else ''} left out.")
    return tuple(lines)
