"""What a finished search leaves behind: ``summary.json``, ``model/``, samples. Everything is read back from the run
folder or from what ``rounds.search`` has found; nothing is computed twice."""

import math
from typing import Any

from inheritune import runs
from inheritune.data.split import TOO_FEW_DOCUMENTS
from inheritune.data.tokenizer import open_tokenizer
from inheritune.evaluation.generation import write
from inheritune.evaluation.statistics import Interval, paired_bootstrap
from inheritune.growth.run import Found, Round, Run, Scored
from inheritune.growth.tasks import judge_tasks

PROMPT_TOKENS = 24
"""Tokens of a validation document that are given as the prompt of a sample."""

SAMPLE_TOKENS = 64
"""Tokens that each model writes."""

NUM_SAMPLES = 3


def record(run: Run, found: Found) -> dict[str, Any]:
    """Write the final child and the summary; returns the summary."""
    runs.link_folder(found.child.child.model, run.folder / "model")
    summary = {**_verdict(run, found), **_models(run, found), **_validation(found)}
    summary["samples"] = _samples(found)
    judge_tasks(run, found.answers, found.child.stage)
    runs.write_json(run.folder / "summary.json", summary)
    return summary


def _verdict(run: Run, found: Found) -> dict[str, Any]:
    """Verdict, intervals and what would be tried next."""
    child, growth = found.child, run.recipe.growth
    others = {"reference": found.reference} | {name: scored for name, (scored, _) in found.baselines.items()}
    against = {
        name: _with_seeds(paired_bootstrap(child.child.decide, other.decide, seed=run.recipe.seed))
        for name, other in others.items()
    }
    if growth.target != "reference":
        against["target"] = _with_seeds(child.interval)
    start_gap = child.loop.start_watch_nats - found.reference_watch_nats
    end_gap = child.loop.watch_nats - found.reference_watch_nats
    return {
        "format": 1,
        "name": run.folder.name,
        "state": "done",
        "verdict": child.verdict,
        "parity": child.verdict != "not shown",
        "margin": growth.margin,
        "target": growth.target,
        "against": against,
        "gap_closed": 1 - end_gap / start_gap if start_gap > 0 else None,
        "stopped_because": found.stopped_because,
        "advice": _advice(found),
    }


def _minus_reference(run: Run, found: Found, each: Round) -> Interval:
    """A round's child minus the reference; a round's own interval is to the target, which may be a number."""
    if run.recipe.growth.target == "reference":
        return each.interval
    return paired_bootstrap(each.child.decide, found.reference.decide, seed=run.recipe.seed)


def _with_seeds(interval: Interval) -> dict[str, Any]:
    """An interval over documents; the training itself was done with one seed."""
    return {**interval.to_json(), "seeds": 1}


def _advice(found: Found) -> str | None:
    """What would be tried next where parity is not shown."""
    child = found.child
    if child.verdict != "not shown":
        return None
    deeper = (
        f"a deeper child (growth.max_depth above {child.child.depth}, the reference has {found.reference.depth})"
        if child.child.depth < found.reference.depth
        else None
    )
    if len(found.reference.decide) < TOO_FEW_DOCUMENTS:
        return (
            f"Next: more validation documents; {len(found.reference.decide)} in the decide half are too few for a "
            "verdict (raise data.validation.min_documents, or add documents)."
        )
    wide = child.interval.high - child.interval.low > 2 * abs(child.interval.mean)
    options = [
        "more tokens per round (data.token_budget or train.passes)",
        deeper,
        "more validation documents, since the interval is wider than the gap" if wide else None,
    ]
    return "Next: " + "; ".join(option for option in options if option) + "."


def _models(run: Run, found: Found) -> dict[str, Any]:
    """Reference, child, baselines and rounds."""
    child = found.child
    return {
        "reference": {
            "path": str(found.reference.model),
            **_size_and_loss(found.reference),
            "watch_loss_nats": found.reference_watch_nats,
            "training_tokens": found.reference_tokens,
        },
        "child": {
            "path": "model",
            **_size_and_loss(child.child),
            "tokens": sum(each.loop.spent_tokens for each in found.rounds),
            "elapsed_s": sum(each.loop.spent_s for each in found.rounds),
            "stage": child.stage,
            "layers": list(range(child.child.depth)),
            "start_watch_loss_nats": child.loop.start_watch_nats,
            "watch_loss_nats": child.loop.watch_nats,
            "peak_memory_bytes": child.loop.peak_memory_bytes,
        },
        "baselines": {
            name: {
                **_size_and_loss(scored),
                "tokens": loop.spent_tokens,
                "elapsed_s": loop.spent_s,
                "stage": scored.model.parent.name,
                "watch_loss_nats": loop.watch_nats,
            }
            for name, (scored, loop) in found.baselines.items()
        },
        "rounds": [
            {
                "stage": each.stage,
                "depth": each.child.depth,
                "parameters": each.child.parameters,
                "tokens": each.loop.tokens,
                "spent_tokens": each.loop.spent_tokens,
                "tokens_total": sum(earlier.loop.spent_tokens for earlier in found.rounds[: index + 1]),
                "elapsed_s": each.loop.spent_s,
                "loss_nats": each.child.loss_nats,
                "start_watch_loss_nats": each.loop.start_watch_nats,
                "watch_loss_nats": each.loop.watch_nats,
                "open_watch_loss_nats": each.loop.open_watch_nats,
                "average_watch_loss_nats": each.loop.average_watch_nats,
                "bump_nats": _bump(found.rounds, index),
                "skipped_steps": each.loop.skipped,
                "interval": each.interval.to_json(),
                "minus_reference": _minus_reference(run, found, each).to_json(),
                "verdict": each.verdict,
            }
            for index, each in enumerate(found.rounds)
        ],
    }


def _bump(rounds: list[Round], index: int) -> float | None:
    """How far the watch loss before a round's training lies above that of the child before it; None for the first.

    Where growth goes on from before a cool-down, the child before it is the one that was grown, not yet cooled.
    """
    if index == 0:
        return None
    before = rounds[index - 1].loop
    child_before = before.watch_nats if before.open_watch_nats is None else before.open_watch_nats
    return rounds[index].loop.start_watch_nats - child_before


def _size_and_loss(scored: Scored) -> dict[str, Any]:
    """Depth, parameters and decide loss."""
    return {"depth": scored.depth, "parameters": scored.parameters, "loss_nats": scored.loss_nats}


def _validation(found: Found) -> dict[str, Any]:
    """The validation set, and every loss in bits per byte of it."""
    decide, watch = found.shards.sequence("decide"), found.shards.sequence("watch")
    tokens = int(found.reference.decide[:, 1].sum())
    losses = {"reference": found.reference, "child": found.child.child}
    losses |= {name: scored for name, (scored, _) in found.baselines.items()}
    return {
        "validation": {
            "documents": decide.num_documents,
            "tokens": tokens,
            "bytes": decide.num_bytes,
            "sha256": found.shards.validation_sha256,
            "watch_documents": watch.num_documents,
            "watch_tokens": watch.num_tokens - watch.num_documents,
            "warnings": found.shards.manifest["warnings"],
            "bits_per_byte": {
                name: scored.loss_nats * tokens / (decide.num_bytes * math.log(2)) for name, scored in losses.items()
            },
        }
    }


def _samples(found: Found) -> list[dict[str, str]]:
    """The first watch documents' openings, continued greedily by reference and child."""
    watch = found.shards.sequence("watch")
    tokenizer = open_tokenizer(found.child.child.model)
    prompts = [
        tokenizer.decode(watch.document(index)[1 : 1 + PROMPT_TOKENS].tolist())
        for index in range(min(NUM_SAMPLES, watch.num_documents))
    ]
    texts = {
        name: write(folder, prompts, max_new_tokens=SAMPLE_TOKENS)
        for name, folder in {"reference": found.reference.model, "child": found.child.child.model}.items()
    }
    return [
        {"prompt": prompt, "reference": reference, "child": child}
        for prompt, reference, child in zip(prompts, texts["reference"], texts["child"], strict=True)
    ]


def provenance(run: Run, command: list[str], started: str) -> dict[str, Any]:
    """What made this run: command, versions, machine and seeds; hashes are added when they are known."""
    return {
        "command": command,
        "started": started,
        "finished": None,
        **runs.machine_facts(),
        "seeds": {"data": run.recipe.seed, "model": run.recipe.seed, "bootstrap": run.recipe.seed},
    }


def provenance_of_inputs(run: Run, found: Found) -> dict[str, Any]:
    """Hash and size of the data, and when the run ended; the reference is recorded where it is found."""
    manifest = found.shards.manifest
    return {
        "finished": runs.now_utc(),
        "data": {
            "sha256": found.shards.sha256,
            "tokens": found.shards.sequence("train").num_tokens,
            "documents": found.shards.sequence("train").num_documents,
            "domains": manifest["splits"]["train"]["domains"],
        },
    }
