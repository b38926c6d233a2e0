"""From the items of all models to scores, differences, means and rules: pure."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from inheritune.evaluation import floors
from inheritune.evaluation.floors import Values
from inheritune.evaluation.harness import Item, Run
from inheritune.evaluation.published import CHILD, REFERENCE
from inheritune.evaluation.scores import Average, Downstream, Rule, TaskDifference, TaskScore
from inheritune.evaluation.statistics import Interval, mcnemar, paired_bootstrap, standard_error, token_mean

KEPT_SHARE = 0.9
"""The paper's "at least 90 % of the reference"; ours is of what the reference gains over the floor."""

BASELINES_TO_BEAT = 2
"""The paper's other way to pass: better than so many baselines."""

NORMAL_95 = 1.959964


def judge(
    found: Mapping[str, Run], metrics: Mapping[str, str], models: list[str], others: list[str], **facts: Any
) -> Downstream:
    """Scores and everything that follows from them; pure."""
    names = list(found)
    values = {
        name: {task: floors.values(run.items[task], metric) for task, metric in metrics.items()}
        for name, run in found.items()
    }
    questions = found[names[0]].items
    floor_values = {task: _floor(questions[task], metric) for task, metric in metrics.items()}
    scores = {
        name: tuple(
            _score(task, metric, values[name][task], questions[task], floor_values[task])
            for task, metric in metrics.items()
        )
        for name in names
    }
    reference = others[0] if others else None
    differences = tuple(
        _compare(name, other, task, metric, values[name][task], values[other][task])
        for name in models
        for other in others
        if name != other
        for task, metric in metrics.items()
    )
    shares = [task for task, metric in metrics.items() if metric not in floors.LOWER_IS_BETTER]
    judged = {each.task: each for each in scores[reference]} if reference else {}
    firm = [task for task in shares if task in judged and not judged[task].at_floor]
    averages = {
        name: tuple(
            _average([each for each in scores[name] if each.task in kept])
            for kept in ([shares, firm] if firm and firm != shares else [shares])
            if len(kept) > 1
        )
        for name in names
    }
    versions: dict[str, Any] = {}
    for run in found.values():
        versions |= run.versions
    baselines = [
        *({each.task: each.score for each in scores[other]} for other in others[1:]),
        *(each for name, each in facts["published"].items() if name not in (REFERENCE, CHILD)),
    ]
    rules = tuple(
        _rule(name, task, values[name][task], values[reference][task], floor_values[task], judged[task], baselines)
        for name in models
        if reference and name != reference
        for task in shares
    )
    return Downstream(
        models=tuple(names), reference=reference, scores=scores, differences=differences, averages=averages,
        rules=rules, versions=versions, **facts,
    )  # fmt: skip


def _floor(items: Sequence[Item], metric: str) -> Values | None:
    """The harder of guessing and one answer for all, item by item."""
    known = [each for each in (floors.chance(items, metric), floors.majority(items, metric)) if each is not None]
    lower = metric in floors.LOWER_IS_BETTER
    return (min if lower else max)(known, key=token_mean) if known else None


def _score(task: str, metric: str, mine: Values, items: Sequence[Item], floor: Values | None) -> TaskScore:
    """One model on one task."""
    guess, same = floors.chance(items, metric), floors.majority(items, metric)
    above = None
    if floor is not None:
        a, b = (floor, mine) if metric in floors.LOWER_IS_BETTER else (mine, floor)
        above = paired_bootstrap(a, b)
    return TaskScore(
        task=task, metric=metric, items=len(items), score=token_mean(mine),
        stderr=standard_error(mine),
        chance=None if guess is None else token_mean(guess), majority=None if same is None else token_mean(same),
        above_floor=above,
    )  # fmt: skip


def _compare(model: str, against: str, task: str, metric: str, mine: Values, theirs: Values) -> TaskDifference:
    """One model minus another."""
    only = None
    if np.isin(np.stack([mine[:, 0], theirs[:, 0]]), (0.0, 1.0)).all() and metric in floors.ACCURACIES:
        only = (int((mine[:, 0] > theirs[:, 0]).sum()), int((mine[:, 0] < theirs[:, 0]).sum()))
    return TaskDifference(
        model=model, against=against, task=task, metric=metric, interval=paired_bootstrap(mine, theirs),
        only_model=only[0] if only else None, only_against=only[1] if only else None,
        p_value=mcnemar(*only) if only else None,
    )  # fmt: skip


def _average(scores: Sequence[TaskScore]) -> Average:
    """Unweighted mean over tasks; its interval from the tasks' standard errors."""
    mean = sum(each.score for each in scores) / len(scores)
    spread = NORMAL_95 * math.sqrt(sum(each.stderr**2 for each in scores)) / len(scores)
    return Average(
        tasks=tuple(each.task for each in scores),
        interval=Interval(mean, mean - spread, mean + spread),
        at_floor=tuple(each.task for each in scores if each.at_floor),
    )


def _rule(
    model: str, task: str, mine: Values, theirs: Values, floor: Values | None, judged: TaskScore,
    baselines: Sequence[Mapping[str, float]],
) -> Rule:  # fmt: skip
    """Both rules on one task."""
    score = token_mean(mine)
    beaten = sum(score > each[task] for each in baselines if task in each)
    paper = score >= KEPT_SHARE * token_mean(theirs) or beaten >= BASELINES_TO_BEAT
    if floor is None or judged.at_floor:
        return Rule(model, task, paper, "says nothing")
    wanted = floor[:, 0] + KEPT_SHARE * (theirs[:, 0] - floor[:, 0])
    rest = paired_bootstrap(mine, np.stack([wanted, mine[:, 1]], axis=1))
    return Rule(model, task, paper, "shown" if rest.low >= 0 else "not shown")
