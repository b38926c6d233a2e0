"""The search: score the reference, then inherit, train and decide, deeper each round, until parity is shown.

Everything is kept in the run folder, stage by stage; a search that is called again picks up where it was, and one that
is given a larger budget or more depth goes on from where it ended.
"""

from pathlib import Path

import numpy as np

from inheritune import runs
from inheritune.data.shards import Shards, check_vocabulary
from inheritune.data.split import TOO_FEW_DOCUMENTS
from inheritune.errors import RecipeError
from inheritune.evaluation.statistics import Interval, paired_bootstrap, token_mean
from inheritune.growth.depths import depth_schedule
from inheritune.growth.inputs import find_reference, hold_to_reference
from inheritune.growth.parity import decide
from inheritune.growth.run import Found, Round, Run, Scored, Sums
from inheritune.growth.scoring import embedding_shape, half_scores, score
from inheritune.growth.stages import (
    TRAINING_RECORD,
    begun_depth,
    cost_if_extended,
    make_reference,
    prepare_shards,
    train_round,
    train_scratch,
)
from inheritune.growth.starts import depth_of_config
from inheritune.growth.tasks import ask, check_tasks
from inheritune.recipe import Recipe
from inheritune.surgery.anatomy import anatomy_of_folder
from inheritune.surgery.cut import plan_cut
from inheritune.surgery.folder import build_config, build_on_meta, check_files, read_config
from inheritune.surgery.positions import check_positions
from inheritune.surgery.scores import scores_for
from inheritune.surgery.selection import in_words, is_prefix, parse_selection
from inheritune.training.going_on import read_result
from inheritune.training.plan import LoopResult


def search(run: Run) -> Found:
    """The whole method on one recipe; every finished part is found in the run folder and not done again."""
    recipe = run.recipe
    if recipe.data.token_budget is not None:
        _check_total(recipe, recipe.data.token_budget * recipe.train.passes)
    check_tasks(run)
    begun = _begun_depths(run)
    if recipe.reference.model is not None:
        reference_folder = find_reference(run.folder, recipe.reference.model, recipe.reference.revision)
        trained_tokens = 0
        depths = _depths(recipe, anatomy_of_folder(reference_folder).depth, begun)
        weights = check_files(reference_folder)
        if not (run.folder / "data").exists():  # what cannot be done is refused before anything is prepared
            for depth in depths:
                plan_cut(weights, depth)
    else:
        assert recipe.reference.train is not None
        depths = _depths(recipe, depth_of_config(recipe.reference.train.config), begun)
        reference_folder = make_reference(run)
        trained_tokens = int(runs.read_json(run.stage("reference") / "result.json")["tokens"])
    check_positions(build_on_meta(build_config(read_config(reference_folder))), recipe.data.sequence_length)
    shards = prepare_shards(run, reference_folder)
    hold_to_reference(run.folder, reference_folder, recipe.reference.revision)  # from here on no recipe is exchanged
    check_vocabulary(shards, embedding_shape(reference_folder)[0])
    round_tokens = run.round_tokens(shards)
    _check_total(recipe, round_tokens)
    for warning in shards.manifest["warnings"]:
        run.event(None, "warning", warning)

    run.progress.say(f"scoring the reference on {shards.sequence('decide').num_documents} documents of the decide half")
    reference = score(run, "reference", reference_folder, shards, tokens=trained_tokens)
    watch_nats = token_mean(half_scores(run, "reference", reference_folder, shards, "watch", tokens=trained_tokens))
    run.event(
        "reference",
        "scored",
        f"reference | depth {reference.depth} | {reference.loss_nats:.4f} nats (decide), {watch_nats:.4f} (watch)",
    )
    answers = {"reference": ask(run, "reference", reference_folder, tokens=trained_tokens)}

    finished: list[Round] = []
    stopped_because = f"the deepest child allowed has {depths[-1]} of {reference.depth} layers"
    for number, depth in enumerate(depths, start=1):
        spent = sum(each.loop.spent_tokens for each in finished)
        total = recipe.growth.total_tokens
        if finished and number > len(begun) and total is not None and spent + round_tokens > total:
            stopped_because = f"growth.total_tokens is spent ({spent} of {total})"
            break
        may_extend = number >= len(begun)  # an earlier round was followed by a deeper one and stays as it is
        cost = cost_if_extended(run, f"round-{number}", round_tokens) if may_extend else None
        if cost is not None and total is not None and spent + cost > total:
            why = f"it would have cost {spent + cost} tokens in all, and growth.total_tokens is {total}"
            if read_result(run.stage(f"round-{number}")) is None:
                raise RecipeError(
                    f"round {number} is under way and cannot be given a larger budget: {why}. Raise "
                    "growth.total_tokens, or take the budget back."
                )
            run.event(f"round-{number}", "not extended", f"round {number} keeps the budget that it had: {why}")
            may_extend = False
        finished.append(_round(run, number, depth, reference, watch_nats, shards, finished, may_extend))
        last = finished[-1]
        answers[last.stage] = ask(run, last.stage, last.child.model, tokens=last.loop.tokens)
        if len(reference.decide) < TOO_FEW_DOCUMENTS:
            stopped_because = (
                f"{len(reference.decide)} documents in the decide half are too few for a verdict "
                f"({TOO_FEW_DOCUMENTS} are needed), so there is nothing to grow for"
            )
            break
        if finished[-1].verdict != "not shown" and number >= len(begun):
            stopped_because = f"{finished[-1].verdict} at depth {depth}"
            break
    run.event(None, "search ended", stopped_because)

    baselines: dict[str, tuple[Scored, LoopResult]] = {}
    for name in recipe.baselines:
        spent = sum(each.loop.spent_tokens for each in finished)
        scored, result = train_scratch(run, finished[-1].child, reference, spent, shards, watch_nats)
        baselines[name] = (scored, result.loop)
        stage = scored.model.parent.name
        answers[stage] = ask(run, stage, scored.model, tokens=result.loop.tokens)
    return Found(
        reference=reference,
        reference_watch_nats=watch_nats,
        reference_tokens=_training_tokens(reference_folder),
        shards=shards,
        rounds=finished,
        baselines=baselines,
        stopped_because=stopped_because,
        answers={stage: each for stage, each in answers.items() if each},
    )


def _check_total(recipe: Recipe, round_tokens: int) -> None:
    """Refuse a search that could not pay for its first round."""
    if recipe.growth.total_tokens is not None and round_tokens > recipe.growth.total_tokens:
        raise RecipeError(
            f"growth.total_tokens is {recipe.growth.total_tokens}, and one round takes {round_tokens} "
            "(data.token_budget x train.passes). Raise the one or lower the other."
        )


def _begun_depths(run: Run) -> list[int]:
    """Depths of the rounds that an earlier start has begun, in order."""
    depths: list[int] = []
    while (depth := begun_depth(run, f"round-{len(depths) + 1}")) is not None:
        depths.append(depth)
    return depths


def _depths(recipe: Recipe, depth: int, begun: list[int]) -> list[int]:
    """Depths of the rounds; refused where the recipe asks for what a reference of this depth cannot give."""
    asked = recipe.growth.start_depth or recipe.inherit.layers
    layers = parse_selection(asked, depth, scores_for(asked))
    if not is_prefix(layers):
        raise RecipeError(
            f"growth deepens a prefix of the reference, and inherit.layers is {recipe.inherit.layers!r}: the layers "
            f"{in_words(layers)} of {depth}. Give a number of layers, or 'half'; other selections are for "
            "`inheritune inherit`."
        )
    return depth_schedule(
        depth, start=len(layers), step=recipe.growth.step, max_depth=recipe.growth.max_depth, begun=begun
    )


def _round(
    run: Run,
    number: int,
    depth: int,
    reference: Scored,
    reference_watch_nats: float,
    shards: Shards,
    finished: list[Round],
    may_extend: bool,
) -> Round:
    """Make a child of this depth, train it, look once at the decide half."""
    recipe, name = run.recipe, f"round-{number}"
    result = train_round(
        run,
        number,
        depth,
        reference,
        shards,
        before=finished[-1] if finished else None,
        target_nats=reference_watch_nats if recipe.growth.target == "reference" else recipe.growth.target,
        may_extend=may_extend,
    )
    child = score(run, name, result.model, shards, tokens=result.loop.tokens)
    interval = paired_bootstrap(child.decide, _target_sums(recipe, reference, child), seed=recipe.seed)
    verdict = _verdict(interval, recipe, num_documents=len(child.decide))
    run.event(
        name,
        "decided",
        f"round {number} | depth {depth} | {child.loss_nats:.4f} nats | target {_target(recipe, reference):.4f} | "
        f"gap {interval.mean:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}] | {verdict}",
    )
    return Round(stage=name, child=child, loop=result.loop, interval=interval, verdict=verdict)


def _target(recipe: Recipe, reference: Scored) -> float:
    """The loss to be matched, nats per token on the decide half."""
    return reference.loss_nats if recipe.growth.target == "reference" else float(recipe.growth.target)


def _target_sums(recipe: Recipe, reference: Scored, child: Scored) -> Sums:
    """What the child is paired with: the reference's scores, or the given loss on every token."""
    if recipe.growth.target == "reference":
        return reference.decide
    tokens = child.decide[:, 1]
    return np.stack([float(recipe.growth.target) * tokens, tokens], axis=1)


def _verdict(interval: Interval, recipe: Recipe, *, num_documents: int) -> str:
    """Law 4; under 30 documents nothing is shown, whatever the numbers say."""
    return decide(interval, recipe.growth.margin) if num_documents >= TOO_FEW_DOCUMENTS else "not shown"


def _training_tokens(reference_folder: Path) -> int | None:
    """Tokens the reference itself was trained on, from the record in its folder."""
    record = reference_folder / TRAINING_RECORD
    return int(runs.read_json(record)["tokens"]) if record.exists() else None
