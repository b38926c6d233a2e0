"""What downstream scores are: values for files and reports, and the table of the terminal."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inheritune.evaluation import floors
from inheritune.evaluation.agreement import Agreement
from inheritune.evaluation.harness import Engine
from inheritune.evaluation.statistics import Interval


@dataclass(frozen=True)
class TaskScore:
    """One model on one task."""

    task: str
    metric: str
    items: int
    score: float
    """A share between 0 and 1, or bits per byte."""
    stderr: float
    chance: float | None
    """What guessing gives; None where there is no such thing."""
    majority: float | None
    """What the commonest answer gives; None where the answers differ from item to item."""
    above_floor: Interval | None
    """Score minus the higher of the two floors, paired over items; more is better for every metric."""

    @property
    def floor(self) -> float | None:
        """The harder of the two."""
        known = [each for each in (self.chance, self.majority) if each is not None]
        lower = self.metric in floors.LOWER_IS_BETTER
        return (min(known) if lower else max(known)) if known else None

    @property
    def at_floor(self) -> bool:
        """Not distinguishable from the floor."""
        return self.above_floor is not None and self.above_floor.low <= 0


@dataclass(frozen=True)
class TaskDifference:
    """One model minus another on the same items of a task."""

    model: str
    against: str
    task: str
    metric: str
    interval: Interval
    only_model: int | None
    """Items that the first alone got right; None for a metric that is not right or wrong."""
    only_against: int | None
    p_value: float | None
    """McNemar's exact test; None likewise."""


@dataclass(frozen=True)
class Average:
    """Mean over tasks of one model."""

    tasks: tuple[str, ...]
    interval: Interval
    at_floor: tuple[str, ...]
    """Those among them that say nothing."""


@dataclass(frozen=True)
class Rule:
    """Whether a model passes on a task, by the paper's rule and by ours."""

    model: str
    task: str
    paper: bool
    """At least 90 % of the reference's score, or better than two baselines."""
    ours: str
    """ "shown": at least 90 % of what the reference gains over the floor, interval above; "not shown"; "says nothing"
    where the reference itself is at the floor."""


@dataclass(frozen=True)
class Downstream:
    """Scores of all models on all tasks, and what follows from them."""

    suite: str
    window: int
    engine: Engine
    limit: int | None
    models: tuple[str, ...]
    reference: str | None
    """The first of those that were compared against."""
    scores: Mapping[str, tuple[TaskScore, ...]]
    """Model -> its tasks."""
    differences: tuple[TaskDifference, ...]
    averages: Mapping[str, tuple[Average, ...]]
    """Model -> over all tasks that are shares, and over those of them on which the reference is above the floor."""
    rules: tuple[Rule, ...]
    published: Mapping[str, Mapping[str, float]]
    """Printed scores of other models, a share each."""
    published_source: str | None
    notes: tuple[str, ...]
    agreement: Mapping[str, Agreement]
    """Model -> its scores by both engines, where that was asked for."""
    versions: Mapping[str, Any]
    """lm_eval's, of each task."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        plain = asdict(self)
        for name, scores in self.scores.items():
            plain["scores"][name] = [
                {**asdict(each), "floor": each.floor, "at_floor": each.at_floor} for each in scores
            ]
        plain["names"] = short_names(self.models)
        plain["agreement"] = {name: each.to_json() for name, each in self.agreement.items()}
        return plain

    def to_csv(self) -> str:
        """One line for each model and task, printed scores of others included."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(
            [
                "model",
                "task",
                "metric",
                "items",
                "score",
                "stderr",
                "chance",
                "majority",
                "at_floor",
                "paper_rule",
                "our_rule",
            ]
        )
        rules = {(each.model, each.task): each for each in self.rules}
        for name, scores in self.scores.items():
            for each in scores:
                rule = rules.get((name, each.task))
                writer.writerow(
                    [name, each.task, each.metric, each.items, each.score, each.stderr, each.chance, each.majority,
                     each.at_floor, rule.paper if rule else None, rule.ours if rule else None]
                )  # fmt: skip
        for name, printed in self.published.items():
            for task, score in printed.items():
                writer.writerow([f"{name} (published)", task, "", "", score, "", "", "", "", "", ""])
        return text.getvalue()

    def table(self) -> str:
        """Lines for the terminal."""
        short = short_names(self.models)
        first = next(iter(self.scores.values()))
        columns = [("task", [each.task for each in first]), ("metric", [each.metric for each in first])]
        columns.append(("items", [f"{each.items:,}" for each in first]))
        columns.append(("floor", [shown(each.floor, each.metric) for each in first]))
        for name in self.models:
            columns.append((short[name], [_cell(each) for each in self.scores[name]]))
        for name, printed in self.published.items():
            columns.append((f"{name} †", [shown(printed.get(each.task), each.metric) for each in first]))
        lines = [
            f"{self.suite}: windows of {self.window}" + (f", first {self.limit} items of each" if self.limit else "")
        ]
        lines += _aligned(columns)
        lines.append(
            "± is one standard error; * is not distinguishable from the floor: guessing, or one answer for all"
        )
        if self.published:
            lines.append(f"† printed by {self.published_source}")
        for name, averages in self.averages.items():
            lines += [f"{short[name]}: {_average_line(each, averages[0])}" for each in averages]
        for each in self.differences:
            lines.append(f"{short[each.model]} minus {short[each.against]}, {each.task}: {_difference(each)}")
        for name in dict.fromkeys(each.model for each in self.rules):
            mine = [each for each in self.rules if each.model == name]
            lines.append(
                f"{short[name]} passes on {sum(each.paper for each in mine)} of {len(mine)} by the paper's rule, on "
                f"{sum(each.ours == 'shown' for each in mine)} by ours; on "
                f"{sum(each.ours == 'says nothing' for each in mine)} the reference is at the floor"
            )
        lines += [f"{short[name]}: {each.table()}" for name, each in self.agreement.items()]
        lines += [f"note: {each}" for each in self.notes]
        return "\n".join(lines)


def short_names(models: Sequence[str]) -> dict[str, str]:
    """Each model by the end of its path, as much of it as tells them apart."""
    parts = {name: Path(name).parts or (name,) for name in models}
    for count in range(1, max(map(len, parts.values())) + 1):
        short = {name: "/".join(each[-count:]) for name, each in parts.items()}
        if len(set(short.values())) == len(models):
            return short
    return {name: name for name in models}


def shown(value: float | None, metric: str) -> str:
    """A share in per cent, bits per byte as they are."""
    if value is None:
        return ""
    return f"{value:.3f}" if metric in floors.LOWER_IS_BETTER else f"{100 * value:.1f}"


def _cell(score: TaskScore) -> str:
    """A score with its error and its mark."""
    return f"{shown(score.score, score.metric)} ±{shown(score.stderr, score.metric)}{'*' if score.at_floor else ' '}"


def scores_line(scores: Sequence[TaskScore]) -> str:
    """All scores of one model in one line."""
    return (
        ", ".join(f"{each.task} {_cell(each).strip()}" for each in scores) + " (* not distinguishable from the floor)"
    )


def _aligned(columns: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """Columns as lines, the first two to the left and numbers to the right."""
    widths = [max(map(len, [head, *cells])) for head, cells in columns]
    lines = []
    for row in zip(*([head, *cells] for head, cells in columns), strict=True):
        cells = [
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def _average_line(average: Average, whole: Average) -> str:
    """A mean that names the tasks that say nothing, and those that are left where the reference says something."""
    interval = average.interval
    kept = (
        "" if average.tasks == whole.tasks else f" ({', '.join(average.tasks)}; there the reference is above the floor)"
    )
    line = (
        f"mean of {len(average.tasks)} tasks{kept} {100 * interval.mean:.1f} [{100 * interval.low:.1f}, "
        f"{100 * interval.high:.1f}] (95 %)"
    )
    if average.at_floor:
        line += f"; not distinguishable from the floor on {len(average.at_floor)}: {', '.join(average.at_floor)}"
    return line


def _difference(each: TaskDifference) -> str:
    """A paired difference in words."""
    scale, unit = (1.0, " bits per byte") if each.metric in floors.LOWER_IS_BETTER else (100.0, " points")
    digits = 3 if scale == 1 else 1
    interval = each.interval
    line = (
        f"{scale * interval.mean:+.{digits}f} [{scale * interval.low:+.{digits}f}, {scale * interval.high:+.{digits}f}]"
        f"{unit} (95 %, paired)"
    )
    if each.p_value is not None:
        line += f", alone right {each.only_model} and {each.only_against}, McNemar p {each.p_value:.2g}"
    return line
