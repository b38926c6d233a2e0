"""inheritune eval."""

import json as json_module


def evaluate(
    *models: str,
    data: list[str] | None = None,
    against: list[str] | None = None,
    half: str = "decide",
    sequence_length: int | None = None,
    prompt: list[str] | None = None,
    probe: bool = False,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    json: bool = False,
) -> None:
    """Score models on text, or see them write: inheritune eval CHILD --data SHARDS --against REFERENCE

    Args:
        models: Folders or hub ids.
        data: Folder of shards, or files, folders and globs of text; may be given several times.
        against: Models to compare with, paired over documents; may be given several times.
        half: Of the shards' validation set, decide or watch.
        sequence_length: Window in tokens; 1024, or the fewest positions of the models, by default.
        prompt: Text to continue; may be given several times.
        probe: Let all models continue the same fixed prompts (or yours), greedily and sampled, and measure repetition.
        max_new_tokens: Length of a continuation.
        temperature: 0 takes the likeliest token; above 0 samples (the probe does so at 0.8 unless told otherwise).
        seed: Of the sampling.
        json: Print JSON.
    """
    from inheritune.errors import RecipeError

    if not models:
        raise RecipeError("no model named. Write: inheritune eval MODEL --data SHARDS_OR_TEXT")
    if not data and not prompt and not probe:
        raise RecipeError(
            "nothing to do: give --data SHARDS_OR_TEXT to score, --prompt TEXT to see it write, or --probe for fixed "
            "prompts."
        )
    printed = {}
    if data:
        from inheritune.evaluation.compare import evaluate as score

        evaluation = score(models, data=data, against=against or [], half=half, sequence_length=sequence_length)
        printed["evaluation"] = evaluation.to_json()
        if not json:
            print(evaluation.table())
    if probe:
        from inheritune.evaluation import variety

        written = variety.probe(
            [*models, *(against or [])],
            prompts=prompt or variety.PROMPTS,
            max_new_tokens=max_new_tokens,
            temperature=temperature or variety.SAMPLING_TEMPERATURE,
            seed=seed,
        )
        printed["probe"] = written.to_json()
        if not json:
            print(written.table())
    elif prompt:
        from inheritune.evaluation.generation import write

        for model in [*models, *(against or [])]:
            texts = write(model, prompt, max_new_tokens=max_new_tokens, seed=seed, temperature=temperature)
            printed.setdefault("written", {})[model] = texts
            if not json:
                for start, text in zip(prompt, texts, strict=True):
                    print(f"\n{model}:\n{start}{text}")
    if json:
        print(json_module.dumps(printed, indent=2, ensure_ascii=False))
