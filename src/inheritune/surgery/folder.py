"""A model on disk: found, checked file by file before anything is built, then loaded whole or not at all.

Never pickle, never remote code; the network only when the reference is a hub id.
"""

import json
import math
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging as transformers_logging

from inheritune.errors import SurgeryError
from inheritune.surgery.tensor_file import MAX_HEADER_BYTES, MAX_HEADER_VALUES, MAX_REASON, TensorEntry, read_header

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

ALIGNMENT = 64
"""Bytes: torch's own. A tensor that lies otherwise in memory, as it does in its file, can be multiplied by other
kernels, so that two models of equal weights round differently (measured: 5e-7 in the logits of a 5-layer ZAYA)."""

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
"""How the names of pickled weights end."""

ADAPTER = "adapter_config.json"

COMPANIONS = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "LICENSE*", "NOTICE*")
"""What lies beside the weights and is opened: by us, by transformers, or to be copied."""

FETCHED = ["*.safetensors", *COMPANIONS]
"""What is fetched from the hub: weights, configs, tokenizer files, licence. No code and no pickle."""

OLD_BUFFERS = (
    r"rotary_emb\.inv_freq$",
    r"(?:^|\.)(?:attn|attention)\.(?:bias|masked_bias|causal_mask)$",
    r"(?:^|\.)position_ids$",
)
"""Buffers that older versions of transformers saved (GPT-2, GPT-J, GPT-Neo, GPT-NeoX, CodeGen, Llama, BERT).

No class computes with them any more; whether a class has a parameter of such a name is asked first.
"""

TAIL = "num_nextn_predict_layers"
"""Config field: how many layers of multi-token prediction are stored behind the last layer (DeepSeek, GLM)."""

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")

MAX_DEPTH = 10_000
"""Layers of a config that is built; no published model has a tenth of it."""


@dataclass(frozen=True)
class Weights:
    """The checked weight files of a folder.

    Attributes:
        folder: where they are.
        files: their names.
        tensors: name -> place.
        stamps: file -> what changes when its content does (``check_unchanged``).
    """

    folder: Path
    files: tuple[str, ...]
    tensors: Mapping[str, TensorEntry]
    stamps: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def resolve(reference: str | Path, revision: str | None = None) -> Path:
    """The local folder of a model: the folder itself, or a snapshot of a hub id.

    Raises:
        SurgeryError: it is neither an existing folder nor a hub id that can be fetched, or a folder with a revision.
    """
    folder = Path(reference)
    name = str(reference)
    if folder.is_dir() and revision is not None:
        raise SurgeryError(
            f"{name} is a local folder, and only a hub id has revisions, not {revision!r}. "
            "Leave the revision out, or name the hub id."
        )
    if folder.is_dir():
        return folder
    if folder.exists():
        raise SurgeryError(f"{name} is a file, and a model is a folder. Name the folder that holds config.json.")
    if isinstance(reference, Path) or not HUB_ID.fullmatch(name) or name.startswith((".", "/")):
        raise SurgeryError(
            f"there is no folder {name!r}, and it is no hub id either (OWNER/NAME). "
            "Check the path, or name a model of the hub."
        )
    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=FETCHED))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise SurgeryError(
            f"there is no folder {name!r}, and as a hub id (revision {revision or 'main'}) it cannot be fetched: "
            f"{reason}. Check the path; for the hub check name, revision, network and `hf auth login`."
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json, checked to name a causal LM that transformers itself knows.

    Raises:
        SurgeryError: no config, not JSON, an unknown or not a causal model type, other weights than
            ``model.safetensors``, or code of its own.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise SurgeryError(f"{folder} has no config.json, so it is not a model folder. Name the folder that holds one.")
    check_entry(folder, path)
    try:
        config = decode_floats(_read_json(path))
    except (ValueError, TypeError, RecursionError, OSError) as error:
        raise SurgeryError(f"{path} is not JSON ({_reason(error)}). Download or copy it again.") from error
    model_type = config.get("model_type") if isinstance(config, dict) else None
    native = (
        isinstance(model_type, str)
        and model_type in CONFIG_MAPPING
        and CONFIG_MAPPING[model_type] in MODEL_FOR_CAUSAL_LM_MAPPING
    )
    if native and config.get("transformers_weights") not in (None, WEIGHTS, INDEX):
        raise SurgeryError(
            f"{path} names {shown(config['transformers_weights'])} as its weights (transformers_weights), and only "
            f"{WEIGHTS} or {INDEX} are read. Rename the file, and take the field out of config.json."
        )
    if native:
        return dict(config)
    if isinstance(config, dict) and config.get("auto_map"):
        raise SurgeryError(
            f"{folder} (model_type {shown(model_type)}) needs remote code: its config names "
            f"{shown(config['auto_map'])} in auto_map, and the installed transformers has no such causal LM of its "
            "own. Code of a model is never run; use a model type that transformers knows, or a newer transformers "
            "(pip install -U transformers)."
        )
    raise SurgeryError(
        f"{path} says model_type {shown(model_type)}, which is no causal LM of the installed transformers. "
        "Name a causal language model, or install a newer transformers (pip install -U transformers)."
    )


def check_files(folder: Path) -> Weights:
    """Check config and safetensors headers; reads no weights.

    Raises:
        SurgeryError: config or weights missing, a shard missing, a file truncated or damaged, weights only as pickle,
            an index that names files outside the folder or disagrees with the shards, a link that leads out of it, a
            pipe or device, an adapter, or a model of remote code.
    """
    read_config(folder)
    for path in sorted(folder.iterdir()):
        if any(fnmatch(path.name, pattern) for pattern in COMPANIONS):
            check_entry(folder, path)
    if (folder / ADAPTER).exists():
        raise SurgeryError(
            f"{folder} holds an adapter ({ADAPTER}), and the model that it changes may lie elsewhere. Merge the "
            "adapter into its model with peft, save that, and name the new folder."
        )
    if (folder / WEIGHTS).is_file():
        return _weights_of(folder, (WEIGHTS,), _check_file(folder, WEIGHTS))
    if not (folder / INDEX).is_file():
        pickled = ", ".join(sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED))
        if pickled:
            raise SurgeryError(
                f"{folder} holds its weights only as pickle ({pickled[:MAX_REASON]}), which can run code and is never "
                "opened. Convert a model you trust: load it with transformers and call save_pretrained on a new folder."
            )
        raise SurgeryError(
            f"{folder} has neither {WEIGHTS} nor {INDEX}. Put the weights there, or name another folder."
        )
    return _check_shards(folder)


def _check_shards(folder: Path) -> Weights:
    path = folder / INDEX
    try:
        files_of = _read_json(path)["weight_map"]
        if not files_of or not isinstance(files_of, dict):
            raise TypeError("weight_map is no mapping from tensors to files")
        shards = sorted(set(files_of.values()))
    except (ValueError, KeyError, TypeError, RecursionError, OSError) as error:
        raise SurgeryError(
            f"{path} is not an index of safetensors shards ({_reason(error)}). Copy it again."
        ) from error
    tensors: dict[str, TensorEntry] = {}
    present = {file.name for file in folder.iterdir()}
    for shard in shards:
        if not isinstance(shard, str) or not is_shard(shard):
            raise SurgeryError(
                f"{path} names {shown(shard)}: a shard must be a .safetensors file of the same folder. "
                "Do not use this model unless you know why; copy the index again."
            )
        if shard not in present:
            raise SurgeryError(f"{folder / shard} is missing, and {INDEX} names it. Download or copy it there.")
        for name, entry in _check_file(folder, shard).items():
            if files_of.get(name) != shard:
                raise SurgeryError(
                    f"{folder / shard} holds {name!r}, which {INDEX} places in {shown(files_of.get(name))}. "
                    "Index and shards are not of one model; copy them again."
                )
            tensors[name] = entry
    absent = sorted(set(files_of) - set(tensors))
    if absent:
        raise SurgeryError(
            f"{path} promises {len(absent)} tensors that no shard holds, the first is {shown(absent[0])}. "
            "Copy the files again."
        )
    return _weights_of(folder, tuple(shards), tensors)


def is_shard(name: str) -> bool:
    """Whether this may be the name of a weight file of the same folder."""
    return name.endswith(".safetensors") and name.isprintable() and "/" not in name and "\\" not in name


def _check_file(folder: Path, name: str) -> dict[str, TensorEntry]:
    """The tensors of a weight file, if it is the folder's own."""
    check_entry(folder, folder / name)
    return read_header(folder / name)


def _weights_of(folder: Path, files: tuple[str, ...], tensors: Mapping[str, TensorEntry]) -> Weights:
    return Weights(folder, files, tensors, {name: _stamp(folder / name) for name in files})


def _stamp(path: Path) -> tuple[int, ...]:
    """Differs once a file's content was replaced or written to; empty where it is gone."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def check_unchanged(weights: Weights) -> None:
    """Refuse what was made of weight files that were changed in the meantime.

    Raises:
        SurgeryError: a file is not the one that was checked; names it.
    """
    for name, stamp in weights.stamps.items():
        if _stamp(weights.folder / name) != stamp:
            raise SurgeryError(
                f"{weights.folder / name} was changed or removed while it was in use, so nothing was kept. Run the "
                "command again when nothing else works on that folder."
            )


def check_entry(folder: Path, path: Path) -> None:
    """Refuse what is neither a regular file nor a folder of them, and a link that leads out of the model's folder.

    A link may lead to another file of the folder and, from a snapshot in the hub's cache, to the blobs of the same
    model. What lies in a folder is looked at likewise.

    Raises:
        SurgeryError: names the file, and where its link leads.
    """
    home = folder.resolve()
    homes = [home]
    if home.parent.name == "snapshots" and home.parent.parent.name.startswith("models--"):
        homes.append(home.parent.parent / "blobs")
    try:
        target = path.resolve(strict=True)
        mode = target.stat().st_mode
    except (OSError, RuntimeError) as error:  # a loop of links is the second
        raise SurgeryError(f"{path} cannot be read ({_reason(error)}). Copy the model again.") from error
    if not any(target.is_relative_to(place) for place in homes):
        raise SurgeryError(
            f"{path} is a link to {target}, outside of the model's folder, and is not followed. "
            "Put the file itself there if you trust it."
        )
    if stat.S_ISDIR(mode) and path.is_symlink():
        raise SurgeryError(f"{path} is a link to a folder, and is not followed. Put the folder itself there.")
    if stat.S_ISDIR(mode) and path.suffix not in (".json", ".safetensors"):
        for inner in sorted(path.iterdir()):
            check_entry(folder, inner)
    elif not stat.S_ISREG(mode):
        raise SurgeryError(f"{path} is no regular file (a pipe, a device or a folder). Copy the model again.")


def _read_json(path: Path) -> Any:
    """The value in a JSON file of bounded size.

    Raises:
        ValueError: it is not JSON, too large, or has a key that cannot be shown.
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    content = path.read_bytes() if size <= MAX_HEADER_BYTES else b""
    num_values = sum(map(content.count, (b",", b"[", b"{")))
    if size > MAX_HEADER_BYTES or num_values > MAX_HEADER_VALUES:
        raise ValueError(f"it has {size} bytes and {num_values} values, which is no model's")
    return json.loads(content.decode(), object_pairs_hook=_with_printable_keys)


def _with_printable_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Keys get into notes and messages; the last of two equal ones counts, as transformers has it."""
    for key, _ in pairs:
        if not key.isprintable() or len(key) > MAX_REASON:
            raise ValueError(f"no name of a field: {key!r}")
    return dict(pairs)


def shown(value: Any) -> str:
    """A value of a file in one short line."""
    shown = repr(value)
    return shown if len(shown) <= MAX_REASON else f"{shown[:MAX_REASON]}..."


def _reason(error: BaseException) -> str:
    """What others say is wrong, in one short line."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= MAX_REASON else f"{words[:MAX_REASON]}..."


def decode_floats(value: Any) -> Any:
    """A JSON value with transformers' spelling of infinity and NaN, ``{"__float__": "Infinity"}``, as floats."""
    if isinstance(value, Mapping):
        if set(value) == {"__float__"}:
            return float(value["__float__"])
        return {key: decode_floats(entry) for key, entry in value.items()}
    return [decode_floats(entry) for entry in value] if isinstance(value, list) else value


def encode_floats(value: Any) -> Any:
    """The reverse of ``decode_floats``: infinity and NaN are not JSON."""
    if isinstance(value, Mapping):
        return {key: encode_floats(entry) for key, entry in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return {"__float__": "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"}
    return [encode_floats(entry) for entry in value] if isinstance(value, list | tuple) else value


def build_config(config: Mapping[str, Any]) -> Any:
    """The transformers config of a config dict; its own validators run.

    Raises:
        SurgeryError: the validators refuse it.
    """
    try:
        return CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))
    except Exception as error:  # validators of 190 classes: no common class of errors
        raise SurgeryError(
            f"the config of model_type {config.get('model_type')!r} is refused by transformers: "
            f"{_reason(error)}. Mend config.json, or use another model."
        ) from error


def build_on_meta(config: Any, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The model of a config without memory for its weights (device meta), in its own dtype or in this one.

    Raises:
        SurgeryError: the class cannot be built from this config.
    """
    depth = getattr(config.get_text_config(decoder=True), "num_hidden_layers", None)
    if type(depth) is int and depth > MAX_DEPTH:
        raise SurgeryError(
            f"the config of {config.model_type!r} states {depth} layers, and at most {MAX_DEPTH} are built. "
            "Mend config.json, or name another model."
        )
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                config, trust_remote_code=False, **({} if dtype is None else {"dtype": dtype})
            )
    except Exception as error:  # constructors of 190 classes: no common class of errors
        raise SurgeryError(
            f"a {config.model_type!r} of this config cannot be built: {_reason(error)}. "
            "Choose another depth, or another model."
        ) from error
    return model


def unread_patterns(model: PreTrainedModel) -> list[str]:
    """Patterns of the tensors in files that this class has no place for and does without.

    They are what the class itself declares, its buffers that are not saved any more, and ``OLD_BUFFERS``.
    """
    front, saved = f"{model.base_model_prefix}.", set(model.state_dict())
    computed = [name.removeprefix(front) for name, _ in model.named_buffers() if name not in saved]
    declared = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    return [*sorted(declared), *OLD_BUFFERS, *(f"^(?:{re.escape(front)})?{re.escape(name)}$" for name in computed)]


def strangers(names: Iterable[str], model: PreTrainedModel) -> list[str]:
    """Those of a file's left-over tensors that neither ``unread_patterns`` nor prediction layers account for."""
    unread = re.compile("|".join(unread_patterns(model)))
    return sorted(name for name in names if not unread.search(name) and not _is_of_tail(name, model.config))


def _is_of_tail(name: str, config: Any) -> bool:
    """Whether a tensor belongs to the prediction layers that the config states behind its last layer."""
    text = config.get_text_config(decoder=True)
    num_layers = getattr(text, TAIL, None)
    index = next((int(part) for part in name.split(".") if part.isdecimal()), -1)
    return type(num_layers) is int and 0 <= index - text.num_hidden_layers < num_layers


def module_names(model: PreTrainedModel, names: Iterable[str]) -> dict[str, str]:
    """Name of a tensor in files -> the name under which transformers loads it (of several, the first)."""
    transforms = get_model_conversion_mapping(model)
    renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
    converters = [each for each in transforms if isinstance(each, WeightConverter)]
    own = model.state_dict()
    return {
        name: rename_source_key(name, renamings, converters, model.base_model_prefix, own)[0]
        for name in sorted(names, key=dot_natural_key)
    }


def limits(model: torch.nn.Module) -> frozenset[str]:
    """Last part of the names of scalar buffers: limits (as Gemma 4's clamps) that may be infinite, as no weight may."""
    return frozenset(name.rpartition(".")[2] for name, buffer in model.named_buffers() if buffer.dim() == 0)


def load_model(folder: Path, dtype: torch.dtype = torch.float32, *, all_are_read: bool = True) -> PreTrainedModel:
    """Load a causal LM from its folder in eval mode, on the CPU, with every tensor from the file.

    Args:
        folder: of the model.
        dtype: that its tensors are to have.
        all_are_read: refuse files that hold a tensor for which the class has no place. Left over may be what it does
            not read (``unread_patterns``), and prediction layers. A text model out of one that sees leaves a tower.

    Raises:
        SurgeryError: a file is damaged, or a tensor is missing, unexpected or of another shape.
    """
    check_files(folder)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with quiet():
            model, info = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
    except Exception as error:  # loaders of 190 classes: no common class of errors
        raise SurgeryError(
            f"{folder} cannot be loaded: {_reason(error)}. Check that config.json belongs to the weights."
        ) from error
    info["unexpected_keys"] = strangers(info["unexpected_keys"], model) if all_are_read else ()
    faults = [
        f"{len(keys)} {kind.replace('_keys', '')} (first: {min(map(str, keys))})"
        for kind, keys in sorted(info.items())
        if keys and kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
    ]
    if faults:
        raise SurgeryError(
            f"the weights of {folder} are not those of its config: {'; '.join(faults)} tensors. "
            "Check that config.json belongs to the weights, and that num_hidden_layers is the depth of the file."
        )
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone()
    loaded: PreTrainedModel = model.eval()
    return loaded


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bar and no load report of transformers: what is wrong is said by our own error."""
    shown, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if shown:
            transformers_logging.enable_progress_bar()
