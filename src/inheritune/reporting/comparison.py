"""What a comparison of several run folders shows, as plain values for the template."""

import math
from collections.abc import Sequence
from typing import Any

import yaml
from markupsafe import Markup

from inheritune.errors import RecipeError
from inheritune.reporting.figures import Curve, Group, forest_figure, loss_figure
from inheritune.reporting.panels import curves, difference_row
from inheritune.reporting.record import RunRecord, pick
from inheritune.reporting.verdict import gap_closed, verdict_mark, verdict_sentences
from inheritune.reporting.wording import facts, known


def comparison_view(records: Sequence[RunRecord]) -> dict[str, Any]:
    """Every value of the comparison page."""
    labels = unique_labels(records)
    return {
        "runs": [
            {
                "label": label,
                "record": record,
                "summary": record.summary,
                "mark": verdict_mark(record.summary),
                "sentences": verdict_sentences(record.summary),
                "gap_closed": gap_closed(record.summary),
                "notes": record.notes,
            }
            for label, record in zip(labels, records, strict=True)
        ],
        "pick": pick,
        "cautions": cautions(records),
        "figure_tokens": _losses(records, labels),
        "figure_forest": _forest(records, labels),
        "labels": labels,
        "recipe_rows": recipe_differences(records),
    }


def unique_labels(records: Sequence[RunRecord]) -> list[str]:
    """The runs' names; where two are equal, the folder's name is added, then a number."""
    labels: list[str] = []
    names = [record.name for record in records]
    for record, name in zip(records, names, strict=True):
        folder = record.folder.resolve().name
        label = name if names.count(name) == 1 else f"{name} ({folder})"
        number = 2
        base = label
        while label in labels:
            label, number = f"{base} {number}", number + 1
        labels.append(label)
    return labels


def cautions(records: Sequence[RunRecord]) -> list[str]:
    """What makes numbers of these runs hard to compare: other validation documents, another reference."""
    found = []
    for path, what, why in (
        ("validation.sha256", "validation documents", "their losses do not compare"),
        ("reference.path", "reference", "differences to the reference have different targets"),
    ):
        values = {str(pick(record.summary, path)) for record in records if pick(record.summary, path)}
        missing = sum(not pick(record.summary, path) for record in records)
        if len(values) > 1:
            found.append(f"The runs do not share their {what} ({len(values)} different): {why}.")
        if missing:
            runs = f"{missing} run{'s' if missing > 1 else ''}"
            found.append(f"{runs} did not record the {what}: whether the numbers compare is unknown.")
    return found


def recipe_differences(records: Sequence[RunRecord]) -> list[tuple[str, list[str]]]:
    """Recipe keys whose value is not the same in every run, with the value of each run."""
    tables = []
    for record in records:
        try:
            value = yaml.safe_load(record.recipe_text)
        except yaml.YAMLError as error:
            raise RecipeError(
                f"cannot read {str(record.folder / 'recipe.yaml')!r}: {error}. "
                "Restore the file from a copy, or leave this run folder out of the comparison."
            ) from error
        tables.append(dict(facts(value)) if isinstance(value, dict) else {})
    keys = dict.fromkeys(key for table in tables for key in table)
    rows = [(key, [table.get(key, "-") for table in tables]) for key in keys if key != "run_dir"]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _losses(records: Sequence[RunRecord], labels: Sequence[str]) -> Markup | None:
    """The child's watch loss of every run; the rounds of one run follow one another."""
    drawn = []
    targets = set()
    for number, (record, label) in enumerate(zip(records, labels, strict=True)):
        rounds = [curve for curve in curves(record, "tokens")[0] if curve.role == "child" and curve.validation]
        for part, curve in enumerate(curve for curve in rounds if curve.x):
            drawn.append(Curve("" if part else label, f"run-{number}", curve.x, curve.y, True, number))
        target = pick(record.summary, "reference.watch_loss_nats")
        if known(target):
            targets.add(float(target))
    if not drawn:
        return None
    same = len(targets) > 0 and max(targets) - min(targets) < 1e-6 and math.isfinite(max(targets))
    return Markup(
        loss_figure(
            drawn,
            name="loss-runs",
            axis="tokens",
            reference_nats=max(targets) if same else None,
            description="The child's loss on the watch half against tokens, one line for each run",
        )
    )


def _forest(records: Sequence[RunRecord], labels: Sequence[str]) -> Markup | None:
    margins = {record.summary.get("margin") for record in records if known(record.summary.get("margin"))}
    pairs = list(enumerate(zip(records, labels, strict=True)))
    groups = [
        Group(
            f"child minus {other}",
            tuple(
                filter(
                    None,
                    (
                        difference_row(label, pick(record.summary, f"against.{other}"), f"run-{number}")
                        for number, (record, label) in pairs
                    ),
                )
            ),
            margins.copy().pop() if other == "reference" and len(margins) == 1 else None,
        )
        for other in ("reference", "scratch")
    ]
    if not any(group.rows for group in groups):
        return None
    return Markup(forest_figure(groups, name="forest-runs", description="Differences in loss with 95 % intervals"))
