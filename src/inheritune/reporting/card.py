"""The model card of a child: README.md in its folder, made from the run folder alone. Nothing is fetched or sent."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import ModelCard, ModelCardData

from inheritune.errors import RecipeError
from inheritune.reporting import wording
from inheritune.reporting.panels import losses
from inheritune.reporting.record import RunRecord, pick, read_run
from inheritune.reporting.verdict import search_seconds, verdict_sentences
from inheritune.runs import write_text

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def write_card(model_folder: Path, run_dir: Path) -> Path:
    """Write the model card ``README.md`` into a child's folder and return its path.

    Args:
        model_folder: the child's Hugging Face folder.
        run_dir: the run folder it came from; every word of the card is taken from there.

    Raises:
        RecipeError: ``run_dir`` is no run folder, or ``model_folder`` holds no model.
    """
    record = read_run(run_dir)
    if not (model_folder / "config.json").is_file():
        raise RecipeError(
            f"cannot write a model card into {str(model_folder)!r}: there is no config.json, so it is no model folder. "
            f"Name the child's folder, for instance {str(run_dir / 'model')!r}"
        )
    card = model_card(record, has_tokenizer=any((model_folder / name).is_file() for name in TOKENIZER_FILES))
    target = model_folder / "README.md"
    write_text(target, str(card) + "\n")
    return target


def hub_id(record: RunRecord) -> tuple[str, str | None] | None:
    """The reference's id on the model hub with its revision, or None where it is a folder or the run made it.

    A path like ``models/llama`` has the shape of an id, so more is asked for: a recorded revision, or that the model
    was read from the hub's cache (``models--OWNER--NAME/snapshots/REVISION``).
    """
    path = str(pick(record.provenance, "reference.path") or pick(record.summary, "reference.path") or "")
    model = pick(record.recipe, "reference.model")
    revision = pick(record.provenance, "reference.revision")
    for name in (model, path):
        if not isinstance(name, str) or not HUB_ID.fullmatch(name):
            continue
        cached = re.search(rf"models--{re.escape(name.replace('/', '--'))}/snapshots/(\w+)", path)
        if cached:
            return name, cached.group(1)
        if revision and name == path:
            return name, str(revision)
    return None


def model_card(record: RunRecord, *, has_tokenizer: bool) -> ModelCard:
    """The card of a run's child as a value; pure apart from reading the template."""
    summary, base = record.summary, hub_id(record)
    data = ModelCardData(
        base_model=base[0] if base else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["inheritune", "pruned"],
    )
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=False,  # Markdown, not HTML
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for word in ("count", "nats", "difference", "perplexity", "seeds", "interval"):
        environment.filters[word] = getattr(wording, word)
    environment.filters["cell"] = table_cell
    against = summary.get("against")
    text = environment.get_template("card.md.j2").render(
        card_data=data.to_yaml(),
        name=heading(record),
        intro=_intro(record, base),
        sentences=verdict_sentences(summary),
        made=_made(record),
        losses=losses(summary),
        differences=[
            (name, value)
            for name, value in (against.items() if isinstance(against, Mapping) else ())
            if isinstance(value, Mapping)
        ],
        made_reference=record.made_reference,
        data=wording.facts(dict(record.provenance["data"])) if record.provenance.get("data") else [],
        one_seed=pick(summary, "against.reference.seeds") == 1,
        has_tokenizer=has_tokenizer,
        recipe=record.recipe_text.strip(),
    )
    return ModelCard(text)


def heading(record: RunRecord) -> str:
    """The run's name on one line, as a Markdown heading can hold it."""
    return " ".join(record.name.split())


def table_cell(text: str) -> str:
    """Text that stays inside one cell of a Markdown table and starts no HTML."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _intro(record: RunRecord, base: tuple[str, str | None] | None) -> str:
    path = pick(record.provenance, "reference.path") or pick(record.summary, "reference.path")
    if record.made_reference:
        kind, depth = pick(record.recipe, "reference.train.config.model_type"), pick(record.summary, "reference.depth")
        tokens = wording.count(pick(record.summary, "reference.training_tokens"))
        source = f"a {table_cell(str(kind))} model of {depth} layers that the same run trained on {tokens} tokens"
    elif base:
        source = f"[{base[0]}](https://huggingface.co/{base[0]}) (revision `{base[1]}`)"
    elif path:
        source = f"the reference `{table_cell(Path(str(path)).name)}`, a local folder"
    else:
        source = "a reference that was not recorded"
    return f"A small base language model that inherits its first layers from {source}, made with `inheritune`."


def _made(record: RunRecord) -> list[tuple[str, str]]:
    summary, proof = record.summary, record.certificate
    rounds = summary.get("rounds") or []
    layers = pick(summary, "child.layers") or proof.get("layers")
    recipe = record.recipe
    hashes = wording.facts(pick(record.provenance, "reference.sha256") or [])
    hashes = [row for row in hashes if row[1] != "none"]
    mode = pick(recipe, "growth.mode")
    rows = [
        ("inherited layers (from 0)", wording.layer_ranges(layers)),
        ("depth", f"{pick(summary, 'child.depth')} of {pick(summary, 'reference.depth')} layers"),
        (
            "growth",
            f"{len(rounds)} round{'' if len(rounds) == 1 else 's'}, mode {mode or 'not recorded'}",
        ),
        ("tokens, last round", wording.exact(pick(rounds[-1], "tokens") if rounds else pick(summary, "child.tokens"))),
        ("tokens, whole search", wording.exact(pick(rounds[-1], "tokens_total") if rounds else None)),
        ("tokens of the reference's own training", wording.exact(pick(summary, "reference.training_tokens"))),
        ("training time, whole search", wording.duration(search_seconds(rounds) if rounds else None)),
        (
            "loss after inheritance, before training (watch half)",
            _with_unit(pick(summary, "child.start_watch_loss_nats")),
        ),
        ("sequence length", f"{pick(recipe, 'data.sequence_length') or 'not recorded'} tokens"),
        ("certificate", str(proof.get("kind") or "not recorded")),
        ("sha256 of the reference", ", ".join(" ".join(row).strip() for row in hashes) or "not recorded"),
    ]
    return [(key, text) for key, text in rows if "not recorded" not in text or key.startswith(("inherited", "tokens"))]


def _with_unit(loss_nats: Any) -> str:
    return f"{wording.nats(loss_nats)} nats per token" if wording.known(loss_nats) else wording.UNKNOWN
