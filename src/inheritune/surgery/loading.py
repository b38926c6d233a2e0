"""What transformers would make of the tensors in a model's files, asked of transformers itself; no weight is read.

The tensors of the headers stand on device meta, without memory, and go through the loader's own renaming, stacking and
splitting. So files that spell or lay out their tensors otherwise than the class does (GPT-2 without its front, experts
one by one) are compared as they would be loaded, without a table of architectures.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import PreTrainedModel

from inheritune.errors import SurgeryError
from inheritune.surgery.folder import module_names, quiet, unread_patterns
from inheritune.surgery.layer_stream import load_into
from inheritune.surgery.tensor_file import TensorEntry

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Loading:
    """How the tensors of files and of a model agree; in the model's names, but for ``tied_twice`` and ``unpublished``.

    Attributes:
        missing: tensors that transformers would fill at random.
        unexpected: tensors that it would drop.
        unread: tensors that it drops as the class itself has it (old buffers, prediction layers).
        misshapen: tensor -> its shape in the files, its shape in the model.
        failed: tensor -> why it cannot be put together from the files.
        tied_twice: tied tensors that the files hold twice, as (the copy, what it is tied to), in the files' names.
        unpublished: file names that are the class's own where published files, and save_pretrained, have others.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    unread: tuple[str, ...]
    misshapen: Mapping[str, tuple[Shape, Shape]]
    failed: Mapping[str, str]
    tied_twice: tuple[tuple[str, str], ...]
    unpublished: tuple[str, ...]

    @property
    def is_exact(self) -> bool:
        """Whether every tensor has its place and every place its tensor."""
        return not (self.missing or self.unexpected or self.misshapen or self.failed)


def compare(model: PreTrainedModel, tensors: Mapping[str, TensorEntry]) -> Loading:
    """Let transformers load the headers' tensors into a model on device meta, which is used up by it.

    Raises:
        SurgeryError: there are tensors that nothing can hold.

    Source: ``_load_pretrained_model`` and ``_finalize_model_loading`` of transformers 5.23, without the steps that
    allocate memory.
    """
    places = model.state_dict()
    unread = re.compile("|".join(unread_patterns(model)))
    published = set(revert_weight_conversion(model, places))
    files_of = {module: name for name, module in module_names(model, tensors).items()}
    try:
        stand_ins = {name: torch.empty(entry.shape, device="meta") for name, entry in tensors.items()}
    except RuntimeError as error:  # empty, and yet with a dimension beyond all memory
        raise SurgeryError(
            f"there are tensors of a shape that torch refuses ({error}). Copy the files again."
        ) from error
    with quiet():
        info = load_into(model, stand_ins, "meta")
        found = set(places) - info.missing_keys
        tied_twice = sorted(
            (files_of[copy], files_of[source])
            for copy, source in model.all_tied_weights_keys.items()
            if copy in found and source in found and copy in files_of and source in files_of
        )
        model.tie_weights(missing_keys=info.missing_keys, recompute_mapping=False)
        left_out = set(info.unexpected_keys)
        model._adjust_missing_and_unexpected_keys(info)
    unexpected = {name for name in info.unexpected_keys if not unread.search(name)}
    return Loading(
        missing=tuple(sorted(info.missing_keys - set(info.conversion_errors))),
        unexpected=tuple(sorted(unexpected)),
        unread=tuple(sorted(left_out - unexpected)),
        misshapen={name: (tuple(there), tuple(here)) for name, there, here in sorted(info.mismatched_keys)},
        failed={name: _last_line(text) for name, text in sorted(info.conversion_errors.items())},
        tied_twice=tuple(tied_twice),
        unpublished=tuple(sorted((set(tensors) & set(places)) - published)),
    )


def _last_line(text: str) -> str:
    """What a conversion error says, without the traceback that stands before it."""
    return text.strip().splitlines()[-1]
