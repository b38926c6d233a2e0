"""The search: score the reference, then inherit, train and decide, deeper each round, until parity is shown.

Everything is kept in the run folder, stage by stage; a search that is called again picks up where it was.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from inheritune import runs
from inheritune.data.shards import Shards, check_vocabulary, prepare, training_texts
from inheritune.data.split import TOO_FEW_DOCUMENTS
from inheritune.data.tokenizer import train_tokenizer
from inheritune.errors import RecipeError
from inheritune.evaluation.statistics import Interval, paired_bootstrap, token_mean
from inheritune.evaluation.token_loss import score_documents
from inheritune.growth.depths import depth_schedule
from inheritune.growth.inputs import find_reference, hold_to_reference
from inheritune.growth.parity import decide
from inheritune.growth.starts import depth_of_config, start_from_config, start_like
from inheritune.machine.head import split_head
from inheritune.machine.probe import MICRO_BATCH_TOKENS, best_device
from inheritune.machine.stop import StopRequest
from inheritune.planning.estimate import estimate_stage
from inheritune.recipe import Recipe
from inheritune.surgery.anatomy import anatomy_of_folder
from inheritune.surgery.cut import plan_cut
from inheritune.surgery.folder import build_config, build_on_meta, check_files, load_model, read_config
from inheritune.surgery.selection import is_prefix, parse_selection
from inheritune.surgery.transplant import inherit
from inheritune.training.gradient import LOGITS_AT_ONCE
from inheritune.training.loop import LoopResult, plan_steps, save_sums
from inheritune.training.sinks import Progress
from inheritune.training.stage import check_positions, train

Sums = npt.NDArray[np.float64]

TRAINING_RECORD = "training.json"
"""In a model's folder: {"tokens": ...}, what it was trained on, where that is known."""


@dataclass(frozen=True)
class Run:
    """A search under way: what was asked, where it is kept, and how it is stopped and shown."""

    recipe: Recipe
    folder: Path
    stop: StopRequest
    progress: Progress

    def event(self, stage: str | None, kind: str, message: str) -> None:
        """Keep a decision, once however often the run is started, and say it."""
        if not runs.has_event(self.folder, stage, kind, message):
            runs.record_event(self.folder, stage, kind, message)
        self.progress.say(message)

    def stage(self, name: str) -> Path:
        """Folder of one stage."""
        return self.folder / "stages" / name


@dataclass(frozen=True)
class Scored:
    """A model with its scores on both validation halves."""

    model: Path
    depth: int
    parameters: int
    decide: Sums
    """float64 (documents, 2): nats, tokens; the half that verdicts are made on."""

    @property
    def loss_nats(self) -> float:
        """Token-weighted loss on the decide half."""
        return token_mean(self.decide)


@dataclass(frozen=True)
class Round:
    """One finished round."""

    stage: str
    child: Scored
    loop: LoopResult
    interval: Interval
    """Child minus target, nats per token."""
    verdict: str


@dataclass(frozen=True)
class Found:
    """What a finished search has found."""

    reference: Scored
    reference_watch_nats: float
    reference_tokens: int | None
    """Tokens that the reference itself was trained on, where that is known."""
    shards: Shards
    rounds: list[Round]
    baselines: dict[str, tuple[Scored, LoopResult]]
    stopped_because: str

    @property
    def child(self) -> Round:
        """The last round: the child of this search."""
        return self.rounds[-1]


def search(run: Run) -> Found:
    """The whole method on one recipe; every finished part is found in the run folder and not done again."""
    recipe = run.recipe
    if recipe.data.token_budget is not None:
        _check_total(recipe, recipe.data.token_budget * recipe.train.passes)
    if recipe.reference.model is not None:
        reference_folder = find_reference(run.folder, recipe.reference.model, recipe.reference.revision)
        trained_tokens = 0
        depths = _depths(recipe, anatomy_of_folder(reference_folder).depth)
        weights = check_files(reference_folder)
        if not (run.folder / "data").exists():  # what cannot be done is refused before anything is prepared
            for depth in depths:
                plan_cut(weights, depth)
    else:
        assert recipe.reference.train is not None
        depths = _depths(recipe, depth_of_config(recipe.reference.train.config))
        reference_folder = make_reference(run)
        trained_tokens = int(runs.read_json(run.stage("reference") / "result.json")["tokens"])
    check_positions(build_config(read_config(reference_folder)), recipe.data.sequence_length)
    shards = _shards(run, reference_folder)
    hold_to_reference(run.folder, reference_folder, recipe.reference.revision)  # from here on no recipe is exchanged
    check_vocabulary(shards, _embedding_shape(reference_folder)[0])
    documents = shards.sequence("train")
    round_tokens = (recipe.data.token_budget or documents.num_tokens) * recipe.train.passes
    _check_total(recipe, round_tokens)
    for warning in shards.manifest["warnings"]:
        run.event(None, "warning", warning)

    run.progress.say(f"scoring the reference on {shards.sequence('decide').num_documents} documents of the decide half")
    reference = _score(run, "reference", reference_folder, shards, tokens=trained_tokens)
    watch_nats = token_mean(_half(run, "reference", reference_folder, shards, "watch", tokens=trained_tokens))
    run.event(
        "reference",
        "scored",
        f"reference | depth {reference.depth} | {reference.loss_nats:.4f} nats (decide), {watch_nats:.4f} (watch)",
    )

    finished: list[Round] = []
    stopped_because = f"the deepest child allowed has {depths[-1]} of {reference.depth} layers"
    for number, depth in enumerate(depths, start=1):
        spent = round_tokens * len(finished)
        if finished and recipe.growth.total_tokens is not None and spent + round_tokens > recipe.growth.total_tokens:
            stopped_because = f"growth.total_tokens is spent ({spent} of {recipe.growth.total_tokens})"
            break
        finished.append(_round(run, number, depth, reference, watch_nats, shards))
        if len(reference.decide) < TOO_FEW_DOCUMENTS:
            stopped_because = (
                f"{len(reference.decide)} documents in the decide half are too few for a verdict "
                f"({TOO_FEW_DOCUMENTS} are needed), so there is nothing to grow for"
            )
            break
        if finished[-1].verdict != "not shown":
            stopped_because = f"{finished[-1].verdict} at depth {depth}"
            break
    run.event(None, "search ended", stopped_because)

    baselines: dict[str, tuple[Scored, LoopResult]] = {
        name: _scratch(run, finished, shards, watch_nats) for name in recipe.baselines
    }
    return Found(
        reference=reference,
        reference_watch_nats=watch_nats,
        reference_tokens=_training_tokens(reference_folder),
        shards=shards,
        rounds=finished,
        baselines=baselines,
        stopped_because=stopped_because,
    )


def _check_total(recipe: Recipe, round_tokens: int) -> None:
    """Refuse a search that could not pay for its first round."""
    if recipe.growth.total_tokens is not None and round_tokens > recipe.growth.total_tokens:
        raise RecipeError(
            f"growth.total_tokens is {recipe.growth.total_tokens}, and one round takes {round_tokens} "
            "(data.token_budget x train.passes). Raise the one or lower the other."
        )


def _depths(recipe: Recipe, depth: int) -> list[int]:
    """Depths of the rounds; refused where the recipe asks for what a reference of this depth cannot give."""
    layers = parse_selection(recipe.growth.start_depth or recipe.inherit.layers, depth)
    if not is_prefix(layers):
        raise RecipeError(
            f"growth deepens a prefix of the reference, and inherit.layers is {recipe.inherit.layers!r}. "
            "Give a number of layers, or 'half'; other selections are for `inheritune inherit`."
        )
    return depth_schedule(depth, start=len(layers), step=recipe.growth.step, max_depth=recipe.growth.max_depth)


def make_reference(run: Run) -> Path:
    """Train the reference that the recipe describes, on the run's data; gives its model folder."""
    recipe, making = run.recipe, run.recipe.reference.train
    assert making is not None
    stage = run.stage("reference")
    tokenizer = Path(making.tokenizer) if making.tokenizer else stage / "tokenizer"
    if not making.tokenizer and not (tokenizer / "tokenizer.json").exists():
        run.progress.say("training a tokenizer on the training side of the data")
        vocabulary_size = int(making.config.get("vocab_size", 4096))
        texts = training_texts(_sources(recipe), **_split_settings(recipe), check_stop=run.stop.check)
        train_tokenizer(texts, vocabulary_size, tokenizer)
    shards = _shards(run, tokenizer)
    start = stage / "start"
    if not (stage / "result.json").exists():
        if not (start / "config.json").exists():
            start_from_config(making.config, tokenizer, start, seed=recipe.seed)
        _announce(run, "reference", start, shards, making.passes)
    train(
        start,
        shards,
        stage,
        recipe=recipe.train.model_copy(update={"passes": making.passes}),
        sequence_length=recipe.data.sequence_length,
        token_budget=recipe.data.token_budget,
        seed=recipe.seed,
        name="reference",
        metrics_path=run.folder / "metrics.jsonl",
        stop=run.stop,
        progress=run.progress,
        record_event=lambda kind, message: run.event("reference", kind, message),
    )
    runs.remove_folder(start)
    runs.write_json(stage / "model" / TRAINING_RECORD, {"tokens": runs.read_json(stage / "result.json")["tokens"]})
    return stage / "model"


def _sources(recipe: Recipe) -> list[Any]:
    """The recipe's sources as plain values."""
    return [s if isinstance(s, str) else s.model_dump(exclude_none=True) for s in recipe.data.sources]


def _split_settings(recipe: Recipe) -> dict[str, Any]:
    """How the validation set is chosen."""
    validation = recipe.data.validation
    return {
        "text_field": recipe.data.text_field,
        "validation": validation.fraction,
        "min_documents": validation.min_documents,
    }


def _shards(run: Run, tokenizer: Path) -> Shards:
    """The run's shards, prepared once."""
    recipe = run.recipe
    run.progress.say("preparing data")
    return prepare(
        _sources(recipe),
        run.folder / "data",
        tokenizer=tokenizer,
        token_budget=recipe.data.token_budget,
        seed=recipe.seed,
        max_documents=recipe.data.validation.max_documents,
        document_bytes=recipe.data.validation.document_bytes,
        should_stop=run.stop.check,
        **_split_settings(recipe),
    )


def _half(run: Run, stage: str, model: Path, shards: Shards, half: str, *, tokens: int) -> Sums:
    """Per-document scores of a saved model on one half, computed once and kept."""
    name = f"{tokens}.npy" if half == "watch" else f"{half}-{tokens}.npy"
    path = run.stage(stage) / "validation" / name
    if not path.exists():
        documents = shards.sequence(half)
        network = load_model(model).to(best_device())
        if split_head(network) is None:
            run.event(stage, "note", f"{stage} is scored by the model's own forward: its head cannot be split off")
        sums = score_documents(
            network,
            [documents.document(index) for index in range(documents.num_documents)],
            sequence_length=run.recipe.data.sequence_length,
            check_stop=run.stop.check,
        )
        save_sums(path, sums)
    return np.asarray(np.load(path), dtype=np.float64)


def _score(run: Run, stage: str, model: Path, shards: Shards, *, tokens: int) -> Scored:
    """A saved model with its decide scores: the one look at that half."""
    return Scored(
        model=model,
        depth=anatomy_of_folder(model).depth,
        parameters=_num_parameters(model),
        decide=_half(run, stage, model, shards, "decide", tokens=tokens),
    )


def _num_parameters(folder: Path) -> int:
    """Parameters of a saved model, a tied one counted once."""
    return sum(parameter.numel() for parameter in build_on_meta(build_config(read_config(folder))).parameters())


def _round(run: Run, number: int, depth: int, reference: Scored, reference_watch_nats: float, shards: Shards) -> Round:
    """Inherit a prefix anew, train it, look once at the decide half."""
    recipe, name = run.recipe, f"round-{number}"
    stage = run.stage(name)
    start = stage / "start"
    if not (stage / "result.json").exists():
        if not (start / "certificate.json").exists():
            certificate = inherit(reference.model, start, layers=depth)
            run.event(
                name,
                "inherited",
                f"round {number} | inherited layers 0 to {depth - 1} of {reference.depth} | certificate "
                f"{certificate.kind}, largest difference {certificate.max_abs_difference}",
            )
        _announce(run, f"round {number} | depth {depth}", start, shards, recipe.train.passes)
    result = train(
        start,
        shards,
        stage,
        recipe=recipe.train,
        sequence_length=recipe.data.sequence_length,
        token_budget=recipe.data.token_budget,
        seed=recipe.seed,
        name=name,
        label=f"round {number} | depth {depth}",
        metrics_path=run.folder / "metrics.jsonl",
        target_nats=reference_watch_nats if recipe.growth.target == "reference" else recipe.growth.target,
        stop=run.stop,
        progress=run.progress,
        record_event=lambda kind, message: run.event(name, kind, message),
    )
    runs.remove_folder(start)
    child = _score(run, name, result.model, shards, tokens=result.loop.tokens)
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


def _scratch(run: Run, finished: list[Round], shards: Shards, reference_watch_nats: float) -> tuple[Scored, LoopResult]:
    """A model of the child's size from its own initialiser, with as many steps as all rounds together."""
    recipe, last = run.recipe, finished[-1]
    stage = run.stage("scratch")
    start = stage / "start"
    if not (stage / "result.json").exists():
        if not (start / "config.json").exists():
            start_like(last.child.model, start, seed=recipe.seed)
        _announce(run, f"scratch | depth {last.child.depth}", start, shards, recipe.train.passes, len(finished))
    result = train(
        start,
        shards,
        stage,
        recipe=recipe.train,
        rounds=len(finished),
        sequence_length=recipe.data.sequence_length,
        token_budget=recipe.data.token_budget,
        seed=recipe.seed,
        name="scratch",
        label=f"scratch | depth {last.child.depth}",
        metrics_path=run.folder / "metrics.jsonl",
        target_nats=reference_watch_nats,
        stop=run.stop,
        progress=run.progress,
        record_event=lambda kind, message: run.event("scratch", kind, message),
    )
    runs.remove_folder(start)
    scored = _score(run, "scratch", result.model, shards, tokens=result.loop.tokens)
    return scored, result.loop


def _announce(run: Run, label: str, start: Path, shards: Shards, passes: int, rounds: int = 1) -> None:
    """The one line before a stage: parameters, steps, disk, expected memory."""
    recipe = run.recipe
    length = recipe.data.sequence_length
    tokens = (recipe.data.token_budget or shards.sequence("train").num_tokens) * passes
    steps, batch_sequences = plan_steps(tokens, batch_tokens=recipe.train.batch_tokens, sequence_length=length)
    micro_batch = recipe.train.micro_batch
    micro_batch_tokens = (
        max(length, MICRO_BATCH_TOKENS[best_device()]) if micro_batch == "auto" else micro_batch * length
    )
    vocabulary_size, hidden_size = _embedding_shape(start)
    estimate = estimate_stage(
        parameters=_num_parameters(start),
        depth=anatomy_of_folder(start).depth,
        hidden_size=hidden_size,
        steps=steps * rounds,
        batch_tokens=batch_sequences * length,
        micro_batch_tokens=min(micro_batch_tokens, batch_sequences * length),
        keep_checkpoints=recipe.train.keep_checkpoints,
        logits_at_once=min(LOGITS_AT_ONCE, micro_batch_tokens * vocabulary_size),
    )
    run.progress.say(estimate.line(label))


def _embedding_shape(folder: Path) -> tuple[int, int]:
    """Rows and width of a saved model's input embedding; reads only its config."""
    rows, width = build_on_meta(build_config(read_config(folder))).get_input_embeddings().weight.shape
    return int(rows), int(width)


def _training_tokens(reference_folder: Path) -> int | None:
    """Tokens the reference itself was trained on, from the record in its folder."""
    record = reference_folder / TRAINING_RECORD
    return int(runs.read_json(record)["tokens"]) if record.exists() else None
