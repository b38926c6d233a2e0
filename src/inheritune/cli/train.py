"""inheritune train."""

from inheritune.cli.overrides import Overrides, parse_overrides


def train(
    model: str,
    shards: str,
    out: str,
    /,
    *overrides: Overrides,
    sequence_length: int = 1024,
    token_budget: str | None = None,
    seed: int = 0,
    teacher: str | None = None,
    fresh: bool = False,
) -> None:
    """Train a model folder on shards: inheritune train CHILD SHARDS OUT --peak-lr 2e-4

    Any key of the recipe's train part can be given as --key VALUE. Run it again to go on after a stop.

    Args:
        model: Folder or hub id to start from.
        shards: Folder made by `inheritune prepare`.
        out: Folder of the stage; the trained model is OUT/model.
        sequence_length: Tokens per row.
        token_budget: Tokens of one pass; all by default.
        seed: Of the order of documents.
        teacher: Folder or hub id of the model to distil from (--distill-weight 0.5).
        fresh: Start over.
    """
    from inheritune.cli.quantities import quantity
    from inheritune.recipe import train_recipe

    recipe = train_recipe(parse_overrides(overrides))

    from inheritune.training.sinks import Terminal
    from inheritune.training.stage import train as train_stage

    terminal = Terminal()
    try:
        result = train_stage(
            model,
            shards,
            out,
            recipe=recipe,
            resume=not fresh,
            sequence_length=sequence_length,
            token_budget=None if token_budget is None else quantity(token_budget, "--token-budget"),
            seed=seed,
            teacher=teacher,
            progress=terminal,
            record_event=lambda kind, message: terminal.say(f"{kind}: {message}"),
        )
    finally:
        terminal.close()
    print(f"watch loss {result.loop.start_watch_nats:.4f} -> {result.loop.watch_nats:.4f} nats")
    print(f"model  {result.model}")
    if result.average:
        print(f"average of the weights, watch loss {result.loop.average_watch_nats:.4f} nats: {result.average}")
