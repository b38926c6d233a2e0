"""The tasks' part of a run's page: what ``eval --suite`` has found, as plain values and one figure."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from inheritune.reporting.figures import Group, Row, forest_figure

BITS = "bits_per_byte"
"""The one metric of the tables that is no share."""


def downstream_view(downstream: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the page shows of downstream scores; None where there are none."""
    scores = downstream.get("scores") or {}
    if not scores:
        return None
    names = downstream.get("names") or {}
    printed = downstream.get("published") or {}
    models = list(scores)
    differences = [_difference(each, names) for each in downstream.get("differences") or ()]
    return {
        "suite": downstream.get("suite"),
        "window": downstream.get("window"),
        "limit": downstream.get("limit"),
        "engine": downstream.get("engine"),
        "columns": [names.get(model, model) for model in models],
        "printed": list(printed),
        "source": downstream.get("published_source"),
        "rows": [
            {
                "task": each["task"],
                "metric": each["metric"],
                "number": each["items"],  # a template would take "items" for the mapping's method
                "floor": _shown(each["floor"], each["metric"]),
                "cells": [_cell(scores[model][place]) for model in models],
                "printed": [_shown(printed[name].get(each["task"]), each["metric"]) for name in printed],
            }
            for place, each in enumerate(scores[models[0]])
        ],
        "averages": [
            {"name": names.get(model, model), **_average(each, averages[0])}
            for model, averages in (downstream.get("averages") or {}).items()
            for each in averages
        ],
        "differences": differences,
        "rules": _rules(downstream.get("rules") or (), names),
        "notes": downstream.get("notes") or [],
        "figure": _figure(downstream.get("differences") or (), names),
    }


def _shown(value: Any, metric: str) -> str:
    """A share in per cent, bits per byte as they are."""
    if value is None:
        return ""
    return f"{value:.3f}" if metric == BITS else f"{100 * value:.1f}"


def _cell(score: Mapping[str, Any]) -> dict[str, Any]:
    """A score with its error, and whether it says anything."""
    return {
        "score": _shown(score["score"], score["metric"]),
        "error": _shown(score["stderr"], score["metric"]),
        "at_floor": bool(score["at_floor"]),
    }


def _average(average: Mapping[str, Any], whole: Mapping[str, Any]) -> dict[str, Any]:
    """A mean over tasks; they are named where they are not all."""
    low, mean, high = (100 * average["interval"][name] for name in ("low", "mean", "high"))
    kept = [] if average["tasks"] == whole["tasks"] else average["tasks"]
    return {
        "tasks": len(average["tasks"]), "kept": kept, "low": low, "mean": mean, "high": high,
        "at_floor": average["at_floor"],
    }  # fmt: skip


def _scale(metric: str) -> float:
    """Points of a share, bits as they are."""
    return 1.0 if metric == BITS else 100.0


def _difference(each: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """A paired difference as words."""
    scale, digits = _scale(each["metric"]), 3 if each["metric"] == BITS else 1
    mean, low, high = (f"{scale * each['interval'][name]:+.{digits}f}" for name in ("mean", "low", "high"))
    return {
        "model": names.get(each["model"], each["model"]),
        "against": names.get(each["against"], each["against"]),
        "task": each["task"],
        "interval": f"{mean} [{low}, {high}]" + (" bits per byte" if each["metric"] == BITS else ""),
        "alone": None if each["only_model"] is None else f"{each['only_model']}, {each['only_against']}",
        "p_value": each["p_value"],
    }


def _rules(rules: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> list[dict[str, Any]]:
    """Who passes where, by both rules."""
    return [
        {
            "name": names.get(model, model),
            "tasks": len(mine := [each for each in rules if each["model"] == model]),
            "paper": [each["task"] for each in mine if each["paper"]],
            "ours": [each["task"] for each in mine if each["ours"] == "shown"],
            "nothing": [each["task"] for each in mine if each["ours"] == "says nothing"],
        }
        for model in dict.fromkeys(each["model"] for each in rules)
    ]


def _figure(differences: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> Markup | None:
    """Differences in points with their intervals; None where there are none."""
    shares = [each for each in differences if each["metric"] != BITS]
    pairs = dict.fromkeys((each["model"], each["against"]) for each in shares)
    groups = [
        Group(
            f"{names.get(model, model)} minus {names.get(against, against)}",
            tuple(
                Row(each["task"], *(100 * each["interval"][name] for name in ("mean", "low", "high")))
                for each in shares
                if (each["model"], each["against"]) == (model, against)
            ),
        )
        for model, against in pairs
    ]
    if not groups:
        return None
    return Markup(  # the figure escapes what it is given
        forest_figure(
            groups, name="tasks", description="Differences on tasks with 95 % intervals",
            axis="percentage points; right of zero the first is better",
        )
    )  # fmt: skip
