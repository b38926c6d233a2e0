"""What the panels of one run's page show, as plain values for the template."""

import shlex
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from markupsafe import Markup

from inheritune.reporting.downstream import downstream_view
from inheritune.reporting.figures import Curve, Group, Mark, Row, forest_figure, loss_figure
from inheritune.reporting.layers import analysis_view
from inheritune.reporting.record import ANALYSIS, DOWNSTREAM, PROBE, RunRecord, left_out, pick
from inheritune.reporting.variety import probe_view
from inheritune.reporting.verdict import gap_closed, verdict_mark, verdict_sentences
from inheritune.reporting.wording import facts, known, layer_ranges

TIME_KEYS = {"tokens": "tokens", "seconds": "elapsed_s"}


def run_view(record: RunRecord) -> dict[str, Any]:
    """Every value of the page of one run."""
    summary, notes = record.summary, list(record.notes)
    return {
        "name": record.name,
        "mark": verdict_mark(summary),
        "sentences": verdict_sentences(summary),
        "summary": summary,
        "pick": pick,
        "minus_reference": minus_reference,
        "made_here": record.made_reference,
        "rescore": rescore_command(record),
        "notes": notes,  # the parts below may add to them
        "progress": progress(record),
        "figure_tokens": _loss(record, "tokens"),
        "figure_time": _loss(record, "seconds"),
        "figure_forest": forest(record),
        "rounds": [part for part in summary.get("rounds") or [] if isinstance(part, Mapping)],
        "baselines": baselines(summary),
        "losses": losses(summary),
        "speeds": speeds(record),
        "gap_closed": gap_closed(summary),
        "samples": [part for part in summary.get("samples") or [] if isinstance(part, Mapping)],
        "validation": _mapping(summary.get("validation")),
        "warnings": pick(summary, "validation.warnings") or [],
        "data": facts(_mapping(record.provenance.get("data"))),
        "provenance": provenance(record),
        "certificate": certificate(record.certificate),
        "analysis": _whole(analysis_view, record.analysis, record.folder / ANALYSIS, notes),
        "downstream": _whole(downstream_view, record.downstream, record.folder / DOWNSTREAM, notes),
        "written": _whole(probe_view, record.written, record.folder / PROBE, notes),
        "probes": {stage: facts(dict(probe)) for stage, probe in record.probes.items()},
        "events": record.events,
        "command": command_line(record.provenance.get("command")),
        "recipe": record.recipe_text,
    }


def _whole(
    view: Callable[[Mapping[str, Any]], dict[str, Any] | None], value: Mapping[str, Any], path: Path, notes: list[str]
) -> dict[str, Any] | None:
    """The view of another verb's file; a file that is not what that verb writes is left out and named in ``notes``."""
    try:
        return view(value)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        notes.append(left_out(path))
        return None


def _mapping(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def stage_depths(summary: Mapping[str, Any]) -> dict[str, int]:
    """Depth in layers by stage name, as far as the summary knows it."""
    depths: dict[str, int] = {}
    for number, part in enumerate(summary.get("rounds") or [], start=1):
        if known(pick(part, "depth")):
            depths[str(pick(part, "stage") or f"round-{number}")] = int(part["depth"])
    for name, part in baselines(summary).items():
        if known(pick(part, "depth")):
            depths[str(pick(part, "stage") or name)] = int(part["depth"])
    return depths


def baselines(summary: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Baselines of the summary by name."""
    return {name: part for name, part in _mapping(summary.get("baselines")).items() if isinstance(part, Mapping)}


def role_of(stage: str) -> str:
    """Whose curve a stage's is: ``reference``, ``child`` (the rounds) or ``scratch`` (every baseline)."""
    return "reference" if stage == "reference" else "child" if stage.startswith("round-") else "scratch"


def curves(record: RunRecord, axis: str) -> tuple[list[Curve], list[Mark]]:
    """Loss curves of every stage and the growth marks; the rounds of the search follow one another on the axis."""
    key, depths = TIME_KEYS[axis], stage_depths(record.summary)
    drawn: list[Curve] = []
    marks: list[Mark] = []
    offset, rounds, others = 0.0, 0, 0
    for stage in record.stages():
        role = role_of(stage)
        depth = f", {depths[stage]} layers" if stage in depths else ""
        start = offset if role == "child" else 0.0
        if role == "child" and rounds:
            marks.append(Mark(start, f"grown to {depths[stage]} layers" if stage in depths else stage))
        end = start
        for kind in ("train", "validation"):
            lines = [
                line
                for line in record.stage_lines(stage, kind)
                if known(line.get(key)) and known(line.get("loss_nats"))
            ]
            x = tuple(start + line[key] for line in lines)
            end = max((end, *x))
            dash = rounds if role == "child" else others
            y = tuple(line["loss_nats"] for line in lines)
            drawn.append(Curve(f"{stage}{depth}", role, x, y, kind == "validation", dash))
        if role == "child":
            offset, rounds = end, rounds + 1
        else:
            others += 1
    return drawn, marks


def _loss(record: RunRecord, axis: str) -> Markup | None:
    drawn, marks = curves(record, axis)
    if not any(curve.x for curve in drawn):
        return None
    target = pick(record.summary, "reference.watch_loss_nats")
    return Markup(
        loss_figure(
            drawn,
            name=f"loss-{axis}",
            axis=axis,
            reference_nats=target if known(target) else None,
            marks=marks,
            description=f"Loss against {axis} for every stage, with the reference's loss as a line",
        )
    )


def difference_row(label: str, value: Any, role: str = "child") -> Row | None:
    """A forest row from ``{mean, low, high}``, or None where a number is missing."""
    if not isinstance(value, Mapping) or not all(known(value.get(key)) for key in ("mean", "low", "high")):
        return None
    return Row(label, value["mean"], value["low"], value["high"], role)


def minus_reference(summary: Mapping[str, Any], part: Any) -> Any:
    """A round's child minus the reference; its ``interval`` is to the target, which may be a number instead."""
    recorded = pick(part, "minus_reference")
    return recorded if recorded or known(summary.get("target")) else pick(part, "interval")


def forest(record: RunRecord) -> Markup | None:
    """Differences of the child (and of every round) to reference, target and baselines."""
    summary = record.summary
    margin = summary.get("margin") if known(summary.get("margin")) else None
    has_number = known(summary.get("target"))  # the loss to match is a number, and the margin is about that
    rows, final = [], pick(summary, "child.stage")
    for number, part in enumerate(summary.get("rounds") or [], start=1):
        stage = str(pick(part, "stage") or f"round-{number}")
        if stage != final:
            rows.append(difference_row(f"{stage}, {pick(part, 'depth')} layers", minus_reference(summary, part)))
    depth = pick(summary, "child.depth")
    rows.append(
        difference_row(f"child, {depth} layers" if known(depth) else "child", pick(summary, "against.reference"))
    )
    others = [
        difference_row(f"child minus {name}", value, "scratch")
        for name, value in _mapping(summary.get("against")).items()
        if name not in ("reference", "target")
    ]
    target = difference_row("child minus target", pick(summary, "against.target"))
    groups = [
        Group("child minus reference", tuple(filter(None, rows)), None if has_number else margin),
        Group("child minus target", tuple(filter(None, [target])), margin),
        Group("child minus baseline", tuple(filter(None, others))),
    ]
    if not any(group.rows for group in groups):
        return None
    return Markup(
        forest_figure(groups, name="forest", description="Differences in loss with 95 % intervals, zero and margin")
    )


def rescore_command(record: RunRecord) -> str | None:
    """The command that scores child and reference as the run did; the window is part of a loss."""
    reference, length = pick(record.summary, "reference.path"), pick(record.recipe, "data.sequence_length")
    if not record.finished or not reference or not length:
        return None
    words = ["inheritune", "eval", str(record.folder / "model"), "--data", str(record.folder / "data")]
    return shlex.join([*words, "--against", str(reference), "--sequence-length", str(length)])


def losses(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row for reference, child and every baseline: depth, parameters, losses, bits per byte."""
    parts = {"reference": summary.get("reference"), "child": summary.get("child"), **baselines(summary)}
    return [
        {
            "who": name,
            "depth": part.get("depth"),
            "parameters": part.get("parameters"),
            "start_nats": part.get("start_watch_loss_nats"),
            "watch_nats": part.get("watch_loss_nats"),
            "loss_nats": part.get("loss_nats"),
            "bits_per_byte": pick(summary, f"validation.bits_per_byte.{name}"),
            "tokens": part.get("training_tokens") if name == "reference" else part.get("tokens"),
            "elapsed_s": part.get("elapsed_s"),
            "layers": layer_ranges(part.get("layers")) if part.get("layers") else None,
        }
        for name, part in parts.items()
        if isinstance(part, Mapping)
    ]


def speeds(record: RunRecord) -> list[dict[str, Any]]:
    """Per stage: tokens, wall time, and of its steps the median speed, peak memory and energy, from the metrics."""
    rows = []
    for stage in record.stages():
        lines = [line for line in record.metrics if line.get("stage") == stage]
        steps = [line for line in lines if line.get("kind") == "train"]
        energy = [line["energy_j"] for line in steps if known(line.get("energy_j"))]
        rows.append(
            {
                "stage": stage,
                "tokens": _largest(lines, "tokens"),
                "elapsed_s": _largest(lines, "elapsed_s"),
                **{key: _median(steps, key) for key in ("tokens_per_s", "flops_per_s", "utilisation")},
                "memory_bytes": _largest(steps, "memory_bytes"),
                "energy_j": sum(energy) if energy and len(energy) == len(steps) else None,
            }
        )
    return rows


def _median(lines: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [line[key] for line in lines if known(line.get(key))]
    return statistics.median(values) if values else None


def _largest(lines: Sequence[Mapping[str, Any]], key: str) -> Any:
    return max((line[key] for line in lines if known(line.get(key))), default=None)


def progress(record: RunRecord) -> dict[str, Any] | None:
    """Where an unfinished run stands: its last stage, tokens and watch loss; None for a finished run."""
    if record.finished or not record.stages():
        return None
    stage = str(record.metrics[-1].get("stage"))
    lines = [line for line in record.metrics if line.get("stage") == stage]
    checks = [line for line in record.stage_lines(stage, "validation") if known(line.get("loss_nats"))]
    return {
        "stage": stage,
        "tokens": _largest(lines, "tokens"),
        "elapsed_s": _largest(lines, "elapsed_s"),
        "watch_nats": checks[-1]["loss_nats"] if checks else None,
    }


def provenance(record: RunRecord) -> list[tuple[str, str]]:
    """Rows of what made the run, without the command (shown apart) and the data (its own panel)."""
    kept = {key: value for key, value in record.provenance.items() if key not in ("command", "data")}
    validation_hash = pick(record.summary, "validation.sha256")
    rows = facts(kept) if kept else []
    return [*rows, ("validation.sha256", str(validation_hash))] if validation_hash else rows


def certificate(value: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The certificate of the inheritance in rows; the tensors are counted by how they were made."""
    if not value:
        return []
    tensors = _mapping(value.get("tensors"))
    made: dict[str, int] = {}
    for tensor in tensors.values():
        op = str(pick(tensor, "op"))
        made[op] = made.get(op, 0) + 1
    rows = facts({key: value.get(key) for key in ("kind", "reference", "max_abs_difference")})
    rows.append(("layers kept (from 0)", layer_ranges(value.get("layers"))))
    if tensors:
        rows.append(("tensors", ", ".join(f"{number} {op}" for op, number in sorted(made.items()))))
    return rows


def command_line(command: Any) -> str:
    """The command as it can be pasted into a shell, without the program's folder; empty where not recorded."""
    if isinstance(command, list) and command:
        program, *words = map(str, command)
        name = PurePath(program).name
        starts = {"__main__.py": ["python", "-m", "inheritune"], "inheritune": ["inheritune"]}
        return shlex.join([*starts.get(name, [program]), *words])
    return str(command) if command else ""
