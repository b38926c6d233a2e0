"""inheritune eval."""

import json as json_module
from pathlib import Path
from typing import Literal


def evaluate(
    *models: str,
    data: list[str] | None = None,
    suite: str | None = None,
    task: list[str] | None = None,
    against: list[str] | None = None,
    half: str = "decide",
    sequence_length: int | None = None,
    prompt: list[str] | None = None,
    probe: bool = False,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    limit: int | None = None,
    engine: Literal["ours", "harness"] = "ours",
    verify: int = 0,
    published: bool | None = None,
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Score models on text or tasks, or see them write: inheritune eval CHILD --data SHARDS --against REFERENCE

    Args:
        models: Folders or hub ids.
        data: Folder of shards, or files, folders and globs of text; may be given several times. With --suite or --task,
            the folder of the tasks' rows (read from the hub without it).
        suite: Downstream tasks: paper (its nine, and MMLU with five examples), fineweb, or signal (for small models).
        task: A downstream task by name, or a .jsonl file of prompts; may be given several times.
        against: Models to compare with, the reference first; may be given several times.
        half: Of the shards' validation set, decide or watch.
        sequence_length: Window in tokens; 1024 (tasks: 2048), or the fewest positions of the models, by default.
        prompt: Text to continue; may be given several times.
        probe: Let all models continue the same fixed prompts (or yours), greedily and sampled, and measure repetition.
        max_new_tokens: Length of a continuation.
        temperature: 0 takes the likeliest token; above 0 samples (the probe does so at 0.8 unless told otherwise).
        seed: Of the sampling.
        limit: The first so many items of each task, to try things out.
        engine: Whose forward pass tasks are scored with: ours, or lm_eval's own (harness).
        verify: Items of each task that both engines score, to be compared.
        published: Put the paper's printed scores beside; it does so for the suite paper by default.
        out: Folder for downstream.json and downstream.csv, and probe.json; RUN/evaluation puts them into that run's
            report.
        json: Print JSON.
    """
    from inheritune.errors import RecipeError

    if not models:
        raise RecipeError("no model named. Write: inheritune eval MODEL --data SHARDS_OR_TEXT")
    if suite and task:
        raise RecipeError("--suite names tasks already. Give it, or --task.")
    if not (data or suite or task or prompt or probe):
        raise RecipeError(
            "nothing to do: give --data SHARDS_OR_TEXT to score, --suite signal for tasks, --prompt TEXT to see it "
            "write, or --probe for fixed prompts."
        )
    printed = {}
    if suite or task:
        if data and len(data) > 1:
            raise RecipeError(
                f"tasks read their rows from one folder, and {len(data)} are named. Name one with --data."
            )
        from inheritune.cli.scoring import show_progress
        from inheritune.evaluation.downstream import evaluate_tasks

        with show_progress() as progress:
            found = evaluate_tasks(
                models, suite=suite or task or "", data=data[0] if data else None, against=against or [],
                window=sequence_length, engine=engine, verify=verify, limit=limit, with_published=published, out=out,
                progress=progress,
            )  # fmt: skip
        printed["downstream"] = found.to_json()
        if not json:
            print(found.table())
            if out:
                print(f"\nwritten to {out}")
    elif data:
        from inheritune.evaluation.compare import evaluate_loss

        evaluation = evaluate_loss(models, data=data, against=against or [], half=half, sequence_length=sequence_length)
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
        if out:
            from inheritune.runs import write_json

            write_json(out / "probe.json", written.to_json())
        if not json:
            print(written.table())
            if out:
                print(f"\nwritten to {out / 'probe.json'}")
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
