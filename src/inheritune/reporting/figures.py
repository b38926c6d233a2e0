"""Figures as small SVG strings that take the page's ink colour, so that one drawing serves light and dark.

Colours are of the Okabe-Ito kind and every kind of line also has its own dash or marker, so that no reading depends on
colour. The same values give the same bytes.
"""

import io
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator

MAX_POINTS = 400
INK = "#010203"  # stands for the page's own text colour; replaced by `currentColor` in the SVG
COLOURS = {"child": "#2f86d1", "scratch": "#d9730d", "reference": "#8a7f93"}
RUN_COLOURS = ("#2f86d1", "#d9730d", "#1f9e78", "#b8559a", "#a98600", "#6f7fd8")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (6, 1.5, 1.5, 1.5)), (0, (9, 2)))
SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 8.5,
    "text.parse_math": False,
    "axes.unicode_minus": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "path.simplify": True,
}


@dataclass(frozen=True)
class Curve:
    """One line: ``x`` in tokens or seconds, ``y`` in nats per token; points that are not finite are left out."""

    label: str
    """Its line in the legend; empty for a curve that goes on from one before it."""
    role: str
    """``child``, ``scratch``, ``reference``, or ``run-0``, ``run-1``, ... on a comparison."""
    x: tuple[float, ...]
    y: tuple[float, ...]
    validation: bool = True
    """Watch-half validation losses (bold, with markers) or training losses (thin)."""
    dash: int = 0


@dataclass(frozen=True)
class Mark:
    """A dotted upright line, where layers were added."""

    x: float
    label: str


@dataclass(frozen=True)
class Row:
    """One difference of a forest plot, in nats per token, with its 95 % interval."""

    label: str
    mean: float
    low: float
    high: float
    role: str = "child"


@dataclass(frozen=True)
class Group:
    """Rows on one scale, under one title, with the margin where one applies."""

    title: str
    rows: tuple[Row, ...]
    margin: float | None = field(default=None)


@dataclass(frozen=True)
class LayerLine:
    """One model's values, layer by layer; None where a layer has none."""

    label: str
    values: tuple[float | None, ...]
    first: int = 0
    """Where the axis begins: 0 for layers, and for depths, which begin without a layer."""


@dataclass(frozen=True)
class LayerPanel:
    """One quantity of all models."""

    title: str
    axis: str
    """What the values belong to: ``layer`` or ``layers kept``."""
    lines: tuple[LayerLine, ...]


FAR = 3.0
"""A value so many times as large as every other of its line is written at the upper edge, not drawn to scale."""

TRAIN_POINTS = 40
"""Points of a training curve: means of as many stretches, since single batches are noisy."""


def thin(
    x: Sequence[float], y: Sequence[float], most: int = MAX_POINTS, *, average: bool = False
) -> tuple[list[float], list[float]]:
    """At most ``most`` points of a series: means of equal buckets, or evenly chosen points with first and last kept.

    Points that are not finite are dropped first.
    """
    points = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(a) and math.isfinite(b)]
    if len(points) > most:
        if average:
            edges = [round(i * len(points) / most) for i in range(most + 1)]
            buckets = [points[i:j] for i, j in pairwise(edges)]
            points = [(b[-1][0], sum(value for _, value in b) / len(b)) for b in buckets]
        else:
            points = [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]
    return [a for a, _ in points], [b for _, b in points]


def loss_figure(
    curves: Sequence[Curve],
    *,
    name: str,
    axis: str,
    reference_nats: float | None = None,
    marks: Sequence[Mark] = (),
    description: str = "",
) -> str:
    """Loss against tokens (``axis="tokens"``) or wall time (``axis="seconds"``) as an SVG string.

    The reference's line is ``reference_nats`` on the watch half. The view is fitted to child and baselines: a longer
    reference curve runs on outside, and losses of the first steps may lie above the upper edge.
    """
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(6.6, 3.6), layout="constrained")
        axes = figure.subplots()
        handles: list[Line2D] = []
        for curve in curves:
            x, y = thin(curve.x, curve.y) if curve.validation else thin(curve.x, curve.y, TRAIN_POINTS, average=True)
            if not x:
                continue
            style: dict[str, Any] = {"color": _colour(curve.role), "label": curve.label.lstrip("_")}
            if curve.validation:
                few = len(x) <= 40
                style |= {"lw": 1.7, "ls": DASHES[curve.dash % len(DASHES)], "marker": "o" if few else None, "ms": 2.6}
                lines = axes.plot(x, y, zorder=3, **style)
                handles += lines if curve.label else []
            else:
                axes.plot(x, y, lw=0.7, alpha=0.6, zorder=2, **style)
        if reference_nats is not None and math.isfinite(reference_nats):
            label = f"reference's loss, {reference_nats:.3f}"
            handles.append(axes.axhline(reference_nats, color=INK, lw=1.1, ls=(0, (4, 2)), label=label, zorder=1))
        _view(axes, curves, reference_nats)
        for mark in marks:
            axes.axvline(mark.x, color=INK, lw=0.8, ls=":", alpha=0.8)
            axes.annotate(
                mark.label, (mark.x, 1), xycoords=("data", "axes fraction"), xytext=(3, -8), textcoords="offset points"
            )
        axes.set_ylabel("loss, nats per token")
        unit, divisor = _unit(axes.get_xlim()[1], axis)
        axes.set_xlabel(f"tokens trained on{unit}" if axis == "tokens" else f"wall time{unit}")
        axes.xaxis.set_major_locator(MultipleLocator(_tick_step(axes.get_xlim()[1] / divisor) * divisor))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / divisor:g}"))
        axes.grid(axis="y", color=INK, alpha=0.12, lw=0.6)
        if handles:
            figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
        return _svg(figure, name, description)


def forest_figure(
    groups: Sequence[Group],
    *,
    name: str,
    description: str = "",
    axis: str = "nats per token; left of zero the child is better",
) -> str:
    """Differences with their intervals as an SVG string; each group has its own scale, a zero line and its margin."""
    groups = [group for group in groups if group.rows]
    heights = [len(group.rows) + 1.6 for group in groups]
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(6.6, max(1.0, 0.34 * sum(heights))), layout="constrained")
        grid = figure.subplots(max(1, len(groups)), 1, squeeze=False, height_ratios=heights or [1])
        panels: list[Any] = list(grid[: len(groups), 0])
        for axes, group in zip(panels, groups, strict=True):
            places = list(range(len(group.rows)))[::-1]
            for place, row in zip(places, group.rows, strict=True):
                colour = _colour(row.role)
                axes.plot([row.low, row.high], [place, place], color=colour, lw=2.2, solid_capstyle="butt")
                axes.plot([row.mean], [place], color=colour, marker="s" if row.role == "scratch" else "o", ms=5)
            axes.axvline(0, color=INK, lw=0.9)
            if group.margin is not None:
                axes.axvline(group.margin, color=INK, lw=0.9, ls=(0, (4, 2)))
                axes.annotate(
                    f"margin {group.margin:g}",
                    (group.margin, 1),
                    xycoords=("data", "axes fraction"),
                    xytext=(3, -7),
                    textcoords="offset points",
                )
            axes.set_yticks(places, [row.label for row in group.rows])
            axes.set_ylim(-0.6, len(group.rows) - 0.2)
            axes.margins(x=0.12)
            axes.xaxis.set_major_locator(MaxNLocator(6))
            axes.set_title(group.title, loc="left", fontsize=8.5, fontweight="bold")
            axes.spines["left"].set_visible(False)
            axes.tick_params(axis="y", length=0)
            axes.grid(axis="x", color=INK, alpha=0.12, lw=0.6)
        if groups:
            panels[-1].set_xlabel(axis)
        return _svg(figure, name, description)


def layers_figure(panels: Sequence[LayerPanel], *, name: str, description: str = "") -> str:
    """Quantities by layer, two panels a row, every model with a line of its own colour and dash, as an SVG string."""
    rows = -(-len(panels) // 2)
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(6.6, 2.3 * rows + 0.4), layout="constrained")
        grid = figure.subplots(rows, 2, squeeze=False)
        places: list[Any] = [axes for row in grid for axes in row]
        handles: dict[str, Line2D] = {}
        for axes, panel in zip(places, panels, strict=False):
            for number, line in enumerate(panel.lines):
                points = [(line.first + place, value) for place, value in enumerate(line.values) if value is not None]
                (drawn,) = axes.plot(
                    [x for x, _ in points],
                    [y for _, y in points],
                    color=RUN_COLOURS[number % len(RUN_COLOURS)],
                    ls=DASHES[number % len(DASHES)],
                    marker="os^Dv"[number % 5],
                    ms=2.8,
                    lw=1.4,
                    label=line.label.lstrip("_"),
                )
                handles.setdefault(line.label, drawn)
            _without_far_values(axes, panel.lines)
            axes.set_title(panel.title, loc="left", fontsize=8.5, fontweight="bold")
            axes.set_xlabel(panel.axis)
            axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
            axes.grid(axis="y", color=INK, alpha=0.12, lw=0.6)
        for axes in places[len(panels) :]:
            axes.set_visible(False)
        if handles:
            figure.legend(handles=list(handles.values()), loc="outside lower center", ncols=1, frameon=False)
        return _svg(figure, name, description)


def _without_far_values(axes: Any, lines: Sequence[LayerLine]) -> None:
    """Fit the view to all values but single ones far above the rest, whose size is written where they leave it."""
    far, near = [], []
    for line in lines:
        known = sorted((value, place) for place, value in enumerate(line.values) if value is not None)
        if len(known) > 2 and known[-1][0] > FAR * max(abs(known[0][0]), abs(known[-2][0])):
            value, place = known.pop()
            far.append((line.first + place, value))
        near += [value for value, _ in known]
    if not far:
        return
    span = (max(near) - min(near)) or 1.0
    axes.set_ylim(min(near) - 0.08 * span, max(near) + 0.25 * span)
    for number, (x, value) in enumerate(far):
        text = f"\u2191 {value:.3g}"
        axes.annotate(text, (x, 1), xycoords=("data", "axes fraction"), xytext=(4, -9 - 10 * number),
                      textcoords="offset points")  # fmt: skip


def _colour(role: str) -> str:
    if role.startswith("run-"):
        return RUN_COLOURS[int(role[4:]) % len(RUN_COLOURS)]
    return COLOURS[role]


def _unit(right: float, axis: str) -> tuple[str, float]:
    """The unit in words, as the axis' label ends with it, and what a value is divided by."""
    if axis == "tokens":
        units = [("", 1.0), (", thousands", 1e3), (", millions", 1e6), (", billions", 1e9), (", trillions", 1e12)]
    else:
        units = [(", seconds", 1.0), (", minutes", 60.0), (", hours", 3600.0), (", days", 86400.0)]
    return [unit for unit in units if unit[1] == 1.0 or right >= 2 * unit[1]][-1]


def _tick_step(right: float) -> float:
    """A round step that gives four to eight ticks up to ``right``."""
    power = 10.0 ** math.floor(math.log10(right)) if right > 0 else 1.0
    return next((factor * power for factor in (0.1, 0.2, 0.25, 0.5, 1.0) if right / (factor * power) <= 8), 2.0 * power)


def _view(axes: Any, curves: Sequence[Curve], reference_nats: float | None) -> None:
    """Fit the axes to the child and the baselines, without the steep first steps of a random model."""
    shown = [curve for curve in curves if curve.role != "reference"] or list(curves)
    right = max((x for curve in shown for x in curve.x if math.isfinite(x)), default=0.0)
    if right > 0:
        axes.set_xlim(-0.015 * right, 1.03 * right)
    low, high = [], []
    for curve in shown:
        _, y = thin(curve.x, curve.y, average=not curve.validation)
        if y and curve.validation:
            low.append(min(y))
            high.append(max(y[len(y) // 5 if curve.role == "scratch" else 1 :] or y))
        elif y:
            low.append(sorted(y)[len(y) // 50])
            high.append(sorted(y)[(len(y) - 1) * 4 // 5])
    if reference_nats is not None and math.isfinite(reference_nats):
        low.append(reference_nats)
        high.append(reference_nats)
    if low:
        span = max(high) - min(low) or 0.1
        axes.set_ylim(min(low) - 0.06 * span, max(high) + 0.12 * span)


def _svg(figure: Figure, name: str, description: str) -> str:
    """The figure as SVG for inlining: no prolog, no metadata, ids of its own, the page's ink."""
    target = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with warnings.catch_warnings(), matplotlib.rc_context({"svg.hashsalt": name}):
        # The browser draws the letters; matplotlib's own font only measures them and need not have every sign.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")
        figure.savefig(target, format="svg", transparent=True, metadata=nothing)
    text = target.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text)
    text = text.replace(INK, "currentColor")
    text = re.sub(r"<svg [^>]*>", lambda match: _opening(match.group(0), description), text, count=1)
    return re.sub(r"\n\s*", "\n", text).strip()


def _opening(tag: str, description: str) -> str:
    box = re.search(r'viewBox="[^"]*"', tag)
    if box is None:
        raise ValueError(f"matplotlib wrote an SVG without a viewBox: {tag}")
    label = description.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {spaces} {box.group(0)} role="img" aria-label="{label}">'
