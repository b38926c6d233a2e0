"""Saved models with their scores, each computed once and kept in the run folder."""

from pathlib import Path

import numpy as np

from inheritune.data.shards import Shards
from inheritune.evaluation.token_loss import score_documents
from inheritune.growth.run import Run, Scored, Sums
from inheritune.machine.head import split_head
from inheritune.machine.probe import best_device
from inheritune.surgery.anatomy import anatomy_of_folder
from inheritune.surgery.folder import build_config, build_on_meta, load_model, read_config
from inheritune.training.loop import save_sums


def half_scores(run: Run, stage: str, model: Path, shards: Shards, half: str, *, tokens: int) -> Sums:
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


def score(run: Run, stage: str, model: Path, shards: Shards, *, tokens: int) -> Scored:
    """A saved model with its decide scores: the one look at that half."""
    return Scored(
        model=model,
        depth=anatomy_of_folder(model).depth,
        parameters=num_parameters(model),
        decide=half_scores(run, stage, model, shards, "decide", tokens=tokens),
    )


def num_parameters(folder: Path) -> int:
    """Parameters of a saved model, a tied one counted once."""
    return sum(parameter.numel() for parameter in build_on_meta(build_config(read_config(folder))).parameters())


def embedding_shape(folder: Path) -> tuple[int, int]:
    """Rows and width of a saved model's input embedding; reads only its config."""
    rows, width = build_on_meta(build_config(read_config(folder))).get_input_embeddings().weight.shape
    return int(rows), int(width)
