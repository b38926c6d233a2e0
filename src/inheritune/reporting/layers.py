"""The layers' part of a run's page: what ``analyze`` has found, as plain values and one figure."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from inheritune.reporting.figures import LayerLine, LayerPanel, layers_figure


def analysis_view(analysis: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the page shows of an analysis; None where there is none."""
    models = [each for each in analysis.get("models") or [] if isinstance(each, Mapping)]
    if not models:
        return None
    panels = [panel for panel in _panels(models, analysis.get("energy")) if any(line.values for line in panel.lines)]
    names = ", ".join(str(each.get("model")) for each in models)
    return {
        "models": [_model(each) for each in models],
        "stretches": analysis.get("sequences"),
        "stretch_tokens": analysis.get("sequence_tokens"),
        "energy": analysis.get("energy"),
        "lazy_below": analysis.get("lazy_below"),
        "figure": Markup(  # the figure escapes what it is given
            layers_figure(panels, name="layers", description=f"rank, mass, loss and cost by layer of {names}")
        ),
    }


def _model(model: Mapping[str, Any]) -> dict[str, Any]:
    """One model's lines of the page."""
    attention = model.get("attention")
    lazy, strictly, without = (
        [each["layer"] for each in attention or () if condition(each)]
        for condition in (
            lambda each: each["lazy"],
            lambda each: each["strictly_lazy"],
            lambda each: not each["ranks"],
        )
    )
    return {
        "name": str(model.get("model")),
        "depth": model.get("depth"),
        "documents": model.get("documents"),
        "tokens": model.get("tokens"),
        "loss_nats": model.get("loss_nats"),
        "attention": attention is not None,
        "lazy": lazy,
        "strictly_lazy": strictly,
        "without_attention": without,
        "costs": list(enumerate(model.get("costs") or [])),
        "influence": model.get("influence") or [],
        "suggestion": model.get("suggestion"),
    }


def _panels(models: Sequence[Mapping[str, Any]], energy: Any) -> list[LayerPanel]:
    """The four quantities of all models."""

    def lines(values_of: Any, first: int = 0) -> tuple[LayerLine, ...]:
        return tuple(LayerLine(str(each.get("model")), tuple(values_of(each) or ()), first) for each in models)

    def of_attention(name: str) -> Any:
        return lambda model: [each[name] for each in model.get("attention") or ()]

    return [
        LayerPanel("attention: largest rank of a head", "layer", lines(of_attention("max_rank"))),
        LayerPanel(f"attention: columns that hold {energy}", "layer", lines(of_attention("mean_mass"))),
        LayerPanel("loss of the first layers, nats", "layers kept", lines(lambda model: model.get("prefix_nats"))),
        LayerPanel(
            "loss without a layer, above its own, nats",
            "layer",
            lines(lambda model: [each["mean"] for each in model.get("costs") or ()]),
        ),
    ]
