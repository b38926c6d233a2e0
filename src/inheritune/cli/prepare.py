"""inheritune prepare."""


def prepare(
    *sources: str,
    out: str,
    tokenizer: str,
    token_budget: str | None = None,
    validation: str = "5%",
    min_documents: int = 200,
    text_field: str = "text",
    seed: int = 0,
) -> None:
    """Turn text into shards: inheritune prepare TEXT... --out SHARDS --tokenizer MODEL --token-budget 1B

    Args:
        sources: Files, folders or globs (.txt, .jsonl, .parquet, also .zst).
        out: Folder to make.
        tokenizer: Folder of the reference, or of its tokenizer.
        token_budget: Training tokens drawn at random, such as 1B; all by default.
        validation: Part of the documents.
        min_documents: The fewest validation documents.
        text_field: Field with the text.
        seed: Of the choice of documents.
    """
    from inheritune.cli.quantities import fraction, quantity
    from inheritune.data.shards import prepare as make
    from inheritune.errors import RecipeError
    from inheritune.machine.stop import stop_on_signals
    from inheritune.units import format_bytes, format_count

    if not sources:
        raise RecipeError("no text named. Write: inheritune prepare TEXT... --out SHARDS --tokenizer MODEL")
    with stop_on_signals() as stop:
        shards = make(
            list(sources),
            out,
            tokenizer=tokenizer,
            token_budget=None if token_budget is None else quantity(token_budget, "--token-budget"),
            validation=fraction(validation, "--validation"),
            min_documents=min_documents,
            text_field=text_field,
            seed=seed,
            should_stop=stop.check,
        )
    for split in ("train", "watch", "decide"):
        documents = shards.sequence(split)
        print(
            f"{split:<7} {documents.num_documents} documents, {format_count(documents.num_tokens)} tokens, "
            f"{format_bytes(documents.num_bytes)}"
        )
    for warning in shards.manifest["warnings"]:
        print(f"warning: {warning}")
