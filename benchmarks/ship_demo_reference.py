"""Turn a run of recipes/demo-reference.yaml into the reference that comes with the package.

    inheritune demo --from-scratch --run-dir runs/demo      # trains runs/demo-reference (about 35 minutes on 2 cores)
    python benchmarks/ship_demo_reference.py runs/demo-reference

Weights become float16 (half the bytes); ``training.json`` records tokens, losses and versions.
"""

import shutil
import sys
from pathlib import Path

import torch

from inheritune import runs
from inheritune.data.shards import Shards
from inheritune.evaluation.statistics import token_mean
from inheritune.evaluation.token_loss import score_documents
from inheritune.surgery.folder import load_model

SHIPPED = Path(__file__).resolve().parents[1] / "src" / "inheritune" / "recipes" / "demo_reference"
SEQUENCE_LENGTH = 256


def decide_loss(model: Path, shards: Shards) -> float:
    documents = shards.sequence("decide")
    chosen = [documents.document(index) for index in range(documents.num_documents)]
    return token_mean(score_documents(load_model(model), chosen, sequence_length=SEQUENCE_LENGTH))


def main() -> None:
    run = Path(sys.argv[1])
    stage = run / "stages" / "reference"
    shards = Shards.open(run / "data")
    model = load_model(stage / "model").to(torch.float16)
    shutil.rmtree(SHIPPED, ignore_errors=True)
    model.save_pretrained(SHIPPED)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(stage / "model" / name, SHIPPED / name)
    result = runs.read_json(stage / "result.json")
    record = {
        "tokens": result["tokens"],
        "steps": result["steps"],
        "recipe": "demo-reference.yaml",
        "command": "inheritune demo --from-scratch",
        "data_sha256": shards.sha256,
        "loss_nats": {"float32": decide_loss(stage / "model", shards), "float16": decide_loss(SHIPPED, shards)},
        **runs.machine_facts(),
    }
    runs.write_json(SHIPPED / "training.json", record)
    size = sum(path.stat().st_size for path in SHIPPED.iterdir())
    print(f"{SHIPPED}: {size / 1e6:.2f} MB, {record['loss_nats']}")


if __name__ == "__main__":
    main()
