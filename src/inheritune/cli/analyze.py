"""inheritune analyze."""

import json as json_module
from pathlib import Path


def analyze(
    *models: str,
    data: list[str] | None = None,
    against: str | None = None,
    out: Path | None = None,
    half: str = "watch",
    sequences: int = 100,
    length: int = 100,
    energy: float = 0.90,
    documents: int = 200,
    attention: bool = True,
    depth: bool = True,
    seed: int = 0,
    json: bool = False,
) -> None:
    """See which layers work and which are lazy: inheritune analyze CHILD --data SHARDS --against REFERENCE

    Args:
        models: Folders or hub ids.
        data: Folder of shards, or files, folders and globs of text; may be given several times.
        against: A model to hold them against; it is analysed, too.
        out: Folder for analysis.json and tables; RUN/analysis puts them into that run's report.
        half: Of the shards' validation set, watch or decide.
        sequences: Random stretches of text that attention is looked at on.
        length: Their tokens.
        energy: Share that rank and mass must hold.
        documents: Losses are measured on the first so many.
        attention: Measure rank and mass of attention.
        depth: Measure losses at every depth and without each layer.
        seed: Of the stretches.
        json: Print JSON.
    """
    from inheritune.errors import RecipeError

    if not models:
        raise RecipeError("no model named. Write: inheritune analyze MODEL --data SHARDS_OR_TEXT")
    if not data:
        raise RecipeError("no text named to analyse on. Add --data SHARDS_OR_TEXT.")
    if not (attention or depth):
        raise RecipeError("nothing to do: --no-attention and --no-depth leave nothing to measure. Take one out.")
    from inheritune.analysis.analyze import analyze as look

    found = look(
        models, data=data, against=against, out=out, half=half, sequences=sequences, length=length, energy=energy,
        documents=documents, attention=attention, depth=depth, seed=seed,
    )  # fmt: skip
    print(json_module.dumps(found.to_json(), indent=2, ensure_ascii=False) if json else found.table())
    if out and not json:
        print(f"\nwritten to {out}")
