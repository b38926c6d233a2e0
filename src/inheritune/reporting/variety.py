"""The generation probe's part of a run's page: what ``eval --probe`` has found, as plain values."""

from collections.abc import Mapping
from typing import Any


def probe_view(probe: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the page shows of the texts that models wrote; None where there are none."""
    models = probe.get("models") or {}
    if not models:
        return None
    ways = [
        {"model": model, "way": way, **{name: each[name] for name in ("distinct_1", "distinct_2", "repetition")}}
        for model, found in models.items()
        for way, each in found.items()
    ]
    texts = [
        {
            "prompt": prompt,
            "written": [
                {"model": model, "way": way, "text": each["texts"][number]}
                for model, found in models.items()
                for way, each in found.items()
            ],
        }
        for number, prompt in enumerate(probe["prompts"])
    ]
    return {"seed": probe["seed"], "temperature": probe["temperature"], "ways": ways, "texts": texts}
