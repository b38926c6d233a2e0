"""The verdict of a run in three plain sentences, for the page and for the terminal. Pure functions on ``summary``."""

from collections.abc import Mapping
from typing import Any

from inheritune.data.split import TOO_FEW_DOCUMENTS
from inheritune.reporting.record import pick
from inheritune.reporting.wording import count, difference, duration, exact, interval, known, nats, seeds, share

MARKS = {"better": "better", "parity": "parity", "not shown": "not shown"}


def verdict_mark(summary: Mapping[str, Any]) -> str:
    """``better``, ``parity``, ``not shown``, or ``unfinished`` where the run has not come to its end."""
    if summary.get("state") != "done":
        return "unfinished"
    return MARKS.get(str(summary.get("verdict")), "not shown")


def verdict_sentences(summary: Mapping[str, Any]) -> list[str]:
    """Three sentences: parity or not; what was kept at what cost; what inheriting was worth.

    Args:
        summary: the content of ``summary.json``; keys may be missing (an unfinished run), losses are nats per token.

    Returns:
        Three sentences of plain text (not HTML), each with its units and intervals.
    """
    return [_parity(summary), _size(summary), _scratch(summary)]


def gap_closed(summary: Mapping[str, Any]) -> float | None:
    """Part of the gap to the reference before training that training closed, on the watch half; None if unknown."""
    given = summary.get("gap_closed")
    if known(given):
        return float(given)  # type: ignore[arg-type]
    start, end = pick(summary, "child.start_watch_loss_nats"), pick(summary, "child.watch_loss_nats")
    target = pick(summary, "reference.watch_loss_nats")
    if not (known(start) and known(end) and known(target)) or start <= target:
        return None
    return float((start - end) / (start - target))


def _parity(summary: Mapping[str, Any]) -> str:
    against = pick(summary, "against.reference")
    verdict = summary.get("verdict")
    unfinished = summary.get("state") != "done"
    begin = "The run has not come to its end, so this is not the last word. " if unfinished else ""
    target = summary.get("target")
    other, other_nats = "reference", pick(summary, "reference.loss_nats")
    if known(target):
        against, other, other_nats = pick(summary, "against.target"), "target", target
    losses = (
        f"the child's validation loss is {nats(pick(summary, 'child.loss_nats'))} nats per token, "
        f"the {other}'s {nats(other_nats)}"
    )
    if not isinstance(against, Mapping) or not known(against.get("high")) or verdict not in MARKS:
        if unfinished:
            return "The run has not come to its end: there is no verdict yet; the same command, typed again, goes on."
        return f"No verdict: {losses}, and no interval of the difference was recorded."
    margin = summary.get("margin")
    proof = (
        f"the difference is {difference(against.get('mean'))} (95 % interval {interval(against)}, "
        f"{seeds(against.get('seeds'))})"
    )
    documents = pick(summary, "validation.documents")
    if known(documents) and documents < TOO_FEW_DOCUMENTS:
        return (
            f"{begin}No verdict: {losses}; {proof}, over {documents} documents, where {TOO_FEW_DOCUMENTS} are needed."
        )
    limit = f"{margin:g} nats" if known(margin) else "a margin that was not recorded"
    if verdict == "better":
        return f"{begin}Better than the {other}: {losses}; {proof}, and the whole interval is at or below zero."
    if verdict == "parity":
        return f"{begin}Parity with the {other}: {losses}; {proof}, and the whole interval is within {limit}."
    if known(margin) and against["high"] <= margin:
        return f"{begin}Parity is not shown: {losses}; {proof}, but the run was given no verdict (see the warnings)."
    return f"{begin}Parity is not shown: {losses}; {proof}, which reaches beyond the margin of {limit}."


def _size(summary: Mapping[str, Any]) -> str:
    child, reference = summary.get("child"), summary.get("reference")
    if not isinstance(child, Mapping) or not known(child.get("depth")):
        return "No child has been decided on yet, so there is no size to report."
    parameters, whole = child.get("parameters"), pick(reference, "parameters")
    part = f" ({share(parameters / whole)})" if known(parameters) and known(whole) and whole > 0 else ""
    rounds = summary.get("rounds") or []
    cost = f"trained on {count(child.get('tokens'))} tokens in {duration(child.get('elapsed_s'))}"
    if isinstance(rounds, list) and len(rounds) > 1:
        total = pick(rounds[-1], "tokens_total")
        cost = (
            f"found in {len(rounds)} rounds that cost {count(total)} tokens and {duration(search_seconds(rounds))} "
            f"(the last round: {count(pick(rounds[-1], 'tokens'))} tokens)"
        )
    return (
        f"The child has {exact(child['depth'])} of {exact(pick(reference, 'depth'))} layers and {count(parameters)} of "
        f"{count(whole)} parameters{part}, {cost}."
    )


def search_seconds(rounds: list[Any]) -> float | None:
    """Training time of all rounds in seconds; None where one was not recorded."""
    times = [pick(part, "elapsed_s") for part in rounds]
    return sum(times) if all(known(time) for time in times) else None


def _scratch(summary: Mapping[str, Any]) -> str:
    against = pick(summary, "against.scratch")
    if not isinstance(against, Mapping) or not (known(against.get("high")) and known(against.get("low"))):
        return "There is no finished baseline from scratch, so this run cannot say what inheriting was worth."
    proof = (
        f"(child minus scratch {difference(against.get('mean'))} nats per token, 95 % interval {interval(against)}, "
        f"{seeds(against.get('seeds'))})"
    )
    twin = "the same-size child from scratch, given as many tokens as the whole search"
    if against["high"] < 0:
        return f"It is better than {twin} {proof}."
    if against["low"] > 0:
        return f"It is worse than {twin} {proof}."
    return f"It cannot be told apart from {twin} {proof}."
