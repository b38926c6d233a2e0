"""Where a model's layers are, found without a table of architectures.

The layer list is the one ``ModuleList`` of the model's decoder whose length is the depth that the config states.

Source: measured on 173 model types of transformers 5.23 (one such list in 161; several, none or parallel ones refused
or told apart by the decoder).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers.modeling_utils import PreTrainedModel

from inheritune.errors import SurgeryError
from inheritune.surgery.exceptions import OBSTACLES
from inheritune.surgery.folder import build_config, build_on_meta, read_config

DEPTH_FIELDS = ("num_hidden_layers", "decoder_layers", "num_decoder_layers", "n_layer", "n_layers", "num_layers")
"""Names of the depth in configs; the first goes through the class's own ``attribute_map``."""

TEXT_CONFIGS = ("text_config", "decoder", "generator")
"""Where composite configs keep the one of their text model."""

OTHER_TOWERS = ("vision", "visual", "audio", "image", "speech", "encoder_model")
"""Words in the path of a layer list that is not the text decoder's."""


@dataclass(frozen=True)
class Anatomy:
    """Where the layers are.

    Attributes:
        path: module path of the layer list, as ``model.layers``.
        depth: number of decoder layers.
        depth_field: the depth's name in the (text) config dict.
        config_path: keys that lead from the config dict to the text config; empty for plain models.
        model_type: as in the config.
    """

    path: str
    depth: int
    depth_field: str
    config_path: tuple[str, ...]
    model_type: str

    def text_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The part of a config dict that describes the decoder (the dict itself for plain models)."""
        for key in self.config_path:
            config = config[key]
        assert isinstance(config, dict)
        return config


def find_layers(model: PreTrainedModel, config: Any = None) -> Anatomy:
    """Find the decoder's layer list.

    Args:
        model: on any device.
        config: the one the model was built from, where the model keeps only the text part of it (the causal LM of a
            wrapper for images or sound); None: the model's own.

    Raises:
        SurgeryError: an encoder-decoder, no layer list of the stated depth, or several that cannot be told apart.
    """
    config = model.config if config is None else config
    name = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise SurgeryError(
            f"{name!r} is an encoder-decoder: it has two stacks of layers, and only causal language models with one "
            "are cut. Name a decoder-only model."
        )
    text, config_path = config, ()
    for key in TEXT_CONFIGS:
        if hasattr(getattr(config, key, None), "model_type"):
            text, config_path = getattr(config, key), (key,)  # type: ignore[assignment]
    mapped = getattr(text, "attribute_map", {}).get(DEPTH_FIELDS[0], DEPTH_FIELDS[0])
    stated: dict[str, int] = {}
    for field in (mapped, *DEPTH_FIELDS):
        value = getattr(text, field, None)
        if type(value) is int and value >= 1:
            stated[field] = value
    for field, depth in stated.items():
        paths = _lists_of_length(model, depth)
        if len(paths) == 1:
            return Anatomy(paths[0], depth, field, config_path, name)
        if len(paths) > 1:
            raise SurgeryError(
                f"{name!r} keeps parallel lists of {depth} modules ({', '.join(paths)}), so no single list is its "
                f"layers. It cannot be cut{_because(text)}; name another model."
            )
    raise SurgeryError(
        f"{name!r} has no list of layers of the depth its config states ({stated or 'none stated'}), so its layers "
        f"cannot be told apart. It cannot be cut{_because(text)}; name another model."
    )


def _because(text: Any) -> str:
    """The known reason why this type cannot be cut, where there is one."""
    obstacle = OBSTACLES.get(text.model_type)
    return f": {obstacle.reason}" if obstacle else ""


def _lists_of_length(model: nn.Module, depth: int) -> list[str]:
    """Paths of the outermost module lists of this length; the decoder's own are preferred."""
    paths = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == depth
        and not any(part.isdecimal() for part in path.split("."))
    ]
    decoders = [path for path in paths if not any(word in path for word in OTHER_TOWERS)]
    found = decoders or paths
    blocks = set(getattr(model, "_no_split_modules", None) or ())  # what the class calls its layers
    layers = [path for path in found if {type(each).__name__ for each in _modules(model, path)} <= blocks]
    return layers if len(found) > 1 and len(layers) == 1 else found


def _modules(model: nn.Module, path: str) -> nn.ModuleList:
    """The list of modules at a path."""
    modules = model.get_submodule(path)
    assert isinstance(modules, nn.ModuleList)
    return modules


def layer_modules(model: nn.Module) -> nn.ModuleList:
    """The decoder's layers, in order."""
    return _modules(model, find_layers(model).path)


def anatomy_of_folder(folder: Path) -> Anatomy:
    """Where the layers of a saved model are; reads only its config, builds it without memory (device meta)."""
    return find_layers(build_on_meta(build_config(read_config(folder))))
