"""Whether a model folder is what its config says: everything that is wrong with it, found without reading its weights.

Config, index and headers are read; the model is built on device meta, and transformers' own loader says what it would
make of the files (``loading``). Weights are read only when asked for, and where a tied head is stored twice.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from transformers.modeling_utils import PreTrainedModel

from inheritune.errors import SurgeryError
from inheritune.runs import read_json
from inheritune.surgery.anatomy import OTHER_TOWERS, TEXT_CONFIGS, Anatomy, find_layers
from inheritune.surgery.contents import CONFIG, Contents, read_contents
from inheritune.surgery.exceptions import packed_over_depth
from inheritune.surgery.findings import Diagnosis, Finding, in_order, in_words, of_error
from inheritune.surgery.folder import build_config, build_on_meta, limits, quiet, read_config, resolve
from inheritune.surgery.loading import Loading, compare
from inheritune.surgery.mending import (
    Held,
    deeper_depths,
    depth_field,
    held_layers,
    leftovers,
    list_lengths,
    mend,
    prediction_depth,
    prediction_tensors,
    stale_indices,
    stale_prediction,
    text_config,
    without_prediction,
)
from inheritune.surgery.tensor_file import FLOATS, NotFinite, TensorEntry, chunks
from inheritune.surgery.tensor_names import LayerNames, find_names
from inheritune.surgery.token_ids import (
    TABLE,
    TOKENIZER,
    has_tokenizer,
    judge_special_ids,
    judge_vocabulary,
    read_vocabulary,
)

TRAPS = ("dropout", "pdrop", "drop_rate", "drop_path", "layerdrop", "jitter_noise")
"""Parts of the names of fields that make training draw at random."""

OTHER_HEADS = ("summary", "classifier")
"""Parts of the names of fields that are not about a causal LM."""

MENDABLE = frozenset({"depth", "per-layer list", "refused config", "index", "left over", "mtp", "tied head"})
"""Kinds of findings that a repair mends where it is certain how."""

GENERATION = "generation_config.json"

NUMBERED = re.compile(r"^(.*?\.)(\d+)\.")
"""The name of a tensor in a numbered module: what stands before the first number, and the number."""


@dataclass(frozen=True)
class Mend:
    """How a folder is mended for certain.

    Attributes:
        config: that the mended folder gets.
        tensors: that it keeps, by name.
        leading: of those, the ones that keep only their leading part, of this shape (packed over depth).
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, TensorEntry]
    leading: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Examination:
    """A diagnosis, and how the folder is mended where that is certain and there is something to mend."""

    contents: Contents
    diagnosis: Diagnosis
    mend: Mend | None


@dataclass(frozen=True)
class _Judged:
    """What config and tensors have shown together."""

    findings: Sequence[Finding]
    stated: int | None = None
    held: int | None = None
    num_rows: int | None = None
    may_be_infinite: frozenset[str] = frozenset()
    mend: Mend | None = None


@dataclass(frozen=True)
class _Fit:
    """A config, and how the tensors that are kept load under it; ``depth`` where it was set to that of the files."""

    config: Mapping[str, Any]
    tensors: Mapping[str, TensorEntry]
    loading: Loading
    num_rows: int | None
    depth: int | None = None
    leading: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def diagnose(folder: str | Path, *, values: bool = False) -> Diagnosis:
    """Say whether a model folder is what its config says.

    Args:
        folder: of the model, or a hub id.
        values: read every weight too, and look for NaN and infinity.

    Raises:
        SurgeryError: there is no such folder, or it cannot be read.
    """
    return examine(folder, values=values).diagnosis


def examine(folder: str | Path, *, values: bool = False) -> Examination:
    """``diagnose``, with what a repair needs to know.

    Raises:
        SurgeryError: there is no such folder, or it cannot be read.
    """
    contents = read_contents(resolve(folder))
    config = contents.config
    with quiet():
        judged = _Judged(()) if config is None else _judge_model(contents)
    findings = [*contents.findings, *judged.findings]
    if config is not None:
        findings += judge_dtype(config, contents.tensors.values())
        findings += judge_training(text_config(config))
    findings += _judge_tokens(contents, judged.num_rows)
    if values:
        findings += judge_values(contents.tensors.values(), judged.may_be_infinite)
    mending = judged.mend
    beyond = [each for each in findings if each.severity == "fault" and each.kind not in MENDABLE]
    if beyond or not any(finding.kind in MENDABLE for finding in findings):
        mending = None
    if mending is not None:
        command = f"inheritune doctor {folder} --repair OUT"
        findings = [
            replace(finding, is_mendable=True, next=command) if finding.kind in MENDABLE else finding
            for finding in findings
        ]
    model_type = None if config is None else config.get("model_type")
    diagnosis = Diagnosis(
        folder=str(folder),
        model_type=model_type if isinstance(model_type, str) else None,
        stated_depth=judged.stated,
        held_depth=judged.held,
        num_tensors=len(contents.tensors),
        num_bytes=sum(entry.num_bytes for entry in contents.tensors.values()),
        findings=in_order(findings),
    )
    return Examination(contents, diagnosis, mending)


def _judge_model(contents: Contents) -> _Judged:
    """Compare config and headers by way of the class, where transformers has one."""
    assert contents.config is not None
    config, tensors = contents.config, contents.tensors
    text = text_config(config)
    name = depth_field(text)
    stated = text[name] if name else None
    try:
        read_config(contents.folder)
    except SurgeryError as error:
        return _judge_unknown(error, stated, name, tensors)
    model, anatomy, refusal = _build(config)
    if anatomy is not None:
        stated, name = anatomy.depth, anatomy.depth_field
    num_rows = None if model is None else _num_rows(model)
    infinite = frozenset() if model is None else limits(model)
    layer_names, held = _held(model, anatomy, text, tensors)
    lists = [] if stated is None else judge_lists(list_lengths(text), stated, prediction_depth(text))
    findings = [] if refusal is None else [of_error("fault", "refused config", CONFIG, refusal)]
    if layer_names is not None and held is not None and stated is not None:
        findings += judge_depth(held, stated, f"{CONFIG}: {name}", layer_names.stem)
    findings += lists
    if stated is not None:
        findings += judge_indices(stale_indices(text, stated))
    judged = _Judged(findings, stated, None if held is None else held.depth, num_rows, infinite)
    if not tensors:
        return judged
    if config.get("quantization_config"):
        what = "quantised: its tensors are the quantiser's, and are not compared with the class one by one"
        note = Finding("note", "quantised", f"{CONFIG}: quantization_config", what, "")
        return replace(judged, findings=[*findings, note])
    try:
        return _judge_tensors(judged, model, name, text, layer_names, held, contents)
    except SurgeryError as error:
        return replace(judged, findings=[*findings, of_error("fault", "tensors", in_words(contents.files), error)])


def _judge_tensors(
    judged: _Judged,
    model: PreTrainedModel | None,
    name: str | None,
    text: Mapping[str, Any],
    layer_names: LayerNames | None,
    held: Held | None,
    contents: Contents,
) -> _Judged:
    """Load the headers under the config, or under the one that they are of; add what comes out.

    Raises:
        SurgeryError: no model has such tensors.
    """
    assert contents.config is not None
    config, tensors, stated = contents.config, contents.tensors, judged.stated
    lists = any(finding.kind == "per-layer list" for finding in judged.findings)
    fit = None
    if model is None or lists or (held is not None and held.depth != stated):
        depths = deeper_depths(text, stated, None if held is None else held.depth)
        fit, reason = (None, None) if name is None else _fit_mended(config, name, depths, tensors)
        if reason is not None:
            judged = replace(judged, findings=[*judged.findings, of_error("note", "mend", CONFIG, reason)])
    if fit is None and model is not None:
        fit = _fit_as_it_is(model, config, text, layer_names, tensors)
    return judged if fit is None else _judge_fit(judged, fit, text, layer_names, contents)


def _judge_fit(
    judged: _Judged, fit: _Fit, text: Mapping[str, Any], layer_names: LayerNames | None, contents: Contents
) -> _Judged:
    """Add what the loader has to say, and how to mend the folder where everything then fits."""
    tensors = contents.tensors
    fit = replace(fit, loading=_without_towers(fit, layer_names))
    findings = [*judged.findings, *judge_loading(fit.loading, fit.depth)]
    twice = {pair: _same_bytes(tensors[pair[0]], tensors[pair[1]]) for pair in fit.loading.tied_twice}
    findings += [judge_tied(copy, source, is_same=is_same) for (copy, source), is_same in twice.items()]
    depth = fit.depth or judged.stated
    predicting = [] if layer_names is None or depth is None else prediction_tensors(tensors, layer_names, depth)
    stale = [] if predicting else stale_prediction(text)
    if stale:
        what = "states multi-token prediction layers, and the files hold none: programs that look for them fail"
        findings.append(Finding("warning", "mtp", f"{CONFIG}: {', '.join(stale)}", what, "Set it to 0 (lists: to [])."))
    mending = None
    if fit.loading.is_exact and contents.are_whole and all(twice.values()):
        copies = {copy for copy, _ in twice}
        kept = {name: entry for name, entry in fit.tensors.items() if name not in copies}
        mending = Mend(without_prediction(fit.config) if stale else fit.config, kept, fit.leading)
    return replace(
        judged,
        findings=findings,
        held=fit.depth or judged.held,
        num_rows=judged.num_rows or fit.num_rows,
        mend=mending,
    )


def _without_towers(fit: _Fit, layer_names: LayerNames | None) -> Loading:
    """The same account, where a model that sees or hears is read as its text model alone: it leaves the rest unread."""
    towers = [
        name
        for name, part in fit.config.items()
        if name not in TEXT_CONFIGS and isinstance(part, Mapping) and part.get("model_type")
    ]
    if not towers or fit.loading.missing or layer_names is None:
        return fit.loading
    outside = tuple(name for name in fit.loading.unexpected if layer_names.index(name) is None)
    others = tuple(name for name in fit.loading.unexpected if name not in set(outside))
    return replace(fit.loading, unexpected=others, unread=(*fit.loading.unread, *outside))


def _build(config: Mapping[str, Any]) -> tuple[PreTrainedModel | None, Anatomy | None, SurgeryError | None]:
    """The config's model on device meta and where its layers are, or why transformers refuses it."""
    try:
        model = build_on_meta(build_config(config))
    except SurgeryError as error:
        return None, None, error
    try:
        return model, find_layers(model), None
    except SurgeryError:  # looped or nested stacks: compared as a whole, without a depth
        return model, None, None


def _num_rows(model: PreTrainedModel) -> int | None:
    """Rows of the embedding; None for classes that do not say which of their modules it is, so that ids go unjudged."""
    try:
        return int(model.get_input_embeddings().weight.shape[0])
    except (AttributeError, NotImplementedError, IndexError):
        return None


def _held(
    model: PreTrainedModel | None, anatomy: Anatomy | None, text: Mapping[str, Any], tensors: Collection[str]
) -> tuple[LayerNames | None, Held | None]:
    """How the files spell the layers, and which ones they hold; None where that cannot be told."""
    if model is None or anatomy is None:
        return None, None
    try:
        layer_names = find_names(tensors, anatomy)
    except SurgeryError:
        return None, None
    ignored = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    behind = {
        index
        for name in tensors
        if (index := layer_names.index(name)) is not None
        and index >= anatomy.depth
        and any(re.search(pattern, layer_names.module_name(name)) for pattern in ignored)
    }
    return layer_names, held_layers(tensors, layer_names, anatomy.depth, max(prediction_depth(text), len(behind)))


def _fit_as_it_is(
    model: PreTrainedModel,
    config: Mapping[str, Any],
    text: Mapping[str, Any],
    layer_names: LayerNames | None,
    tensors: Mapping[str, TensorEntry],
) -> _Fit:
    """How the tensors load under the config; those of prediction layers that it states may be left over."""
    num_rows = _num_rows(model)
    loading = compare(model, tensors)
    if loading.unexpected and layer_names is not None and prediction_depth(text):
        depth = find_layers(model).depth
        behind = set(prediction_tensors(tensors, layer_names, depth))
        others = {name: entry for name, entry in tensors.items() if name not in behind}
        without = compare(build_on_meta(build_config(config)), others)
        if without.is_exact:
            loading = replace(without, unread=tuple(sorted(behind)))
    return _Fit(config, tensors, loading, num_rows)


def _fit_mended(
    config: Mapping[str, Any], depth_name: str, depths: Sequence[int], tensors: Mapping[str, TensorEntry]
) -> tuple[_Fit | None, SurgeryError | None]:
    """How the tensors load under a config that is cut to their depth, or why no such config can be made."""
    first = reason = None
    for deeper in depths:
        try:
            mended, layer_names, model = mend(config, depth_name, deeper, tensors)
        except SurgeryError as error:
            reason = reason or error
            continue
        behind = leftovers(tensors, layer_names, mended.depth, model)
        num_rows = _num_rows(model)
        kept = {name: entry for name, entry in tensors.items() if name not in behind}
        loading = compare(model, kept)
        leading = {
            name: here
            for name, (there, here) in loading.misshapen.items()
            if name in kept and packed_over_depth(name, there, deeper, mended.depth) == here
        }
        if leading:
            cut = {name: replace(entry, shape=leading.get(name, entry.shape)) for name, entry in kept.items()}
            loading = compare(build_on_meta(build_config(mended.config)), cut)
        fit = _Fit(mended.config, kept, loading, num_rows, mended.depth, leading)
        if loading.is_exact:
            return fit, None
        first = first or fit
    return first, None if first else reason


def _judge_unknown(error: SurgeryError, stated: int | None, name: str | None, tensors: Iterable[str]) -> _Judged:
    """What can be said without a class: whether the files hold as many numbered modules as the config states."""
    findings = [of_error("fault", "model type", f"{CONFIG}: model_type", error)]
    stem, depth = count_numbered(tensors)
    if stated is not None and depth and depth != stated:
        what = f"says {stated}, and the files hold {depth} numbered modules ({stem}0 to {depth - 1})"
        advice = "If these are the layers, set it to their number."
        findings.append(Finding("warning", "depth", f"{CONFIG}: {name}", what, advice))
    return _Judged(findings, stated, depth or None)


def count_numbered(names: Iterable[str]) -> tuple[str, int]:
    """The name in front of the numbers of most tensors, and how many numbers there are from 0 on without a hole."""
    indices: dict[str, list[int]] = {}
    for match in filter(None, map(NUMBERED.match, names)):
        if not any(word in match[1] for word in OTHER_TOWERS):
            indices.setdefault(match[1], []).append(int(match[2]))
    if not indices:
        return "", 0
    stem = max(indices, key=lambda stem: len(indices[stem]))
    found = set(indices[stem])
    return stem, next(index for index in range(len(found) + 1) if index not in found)


def judge_depth(held: Held, stated: int, where: str, stem: str) -> list[Finding]:
    """The depth that the config states against the layers that the files hold.

    Args:
        held: the layers of the files.
        stated: layers of the config.
        where: the config's field.
        stem: what stands before a layer's number in the files.
    """
    behind = [index for index in held.beyond if index < stated]
    if behind:
        what = (
            f"the layers 0 to {held.depth - 1} are there, layer {held.depth} is not, and layer {behind[0]} is again"
            if held.depth
            else f"layer 0 is not there, and layer {behind[0]} is"
        )
        return [Finding("fault", "layers", f"{stem}{held.depth}.*", what, "Copy the missing weight files again.")]
    if held.depth == stated:
        return []
    files = f"the files hold {held.depth} ({stem}0 to {held.depth - 1})" if held.depth else "the files hold none"
    effect = (
        f"transformers would fill {stated - held.depth} layers with random numbers"
        if held.depth < stated
        else f"transformers would drop the last {held.depth - stated}"
    )
    advice = "Cut the reference anew: inheritune inherit REFERENCE CHILD --layers " + str(min(held.depth, stated) or 1)
    return [Finding("fault", "depth", where, f"says {stated} layers, and {files}: {effect}", advice)]


def judge_lists(lengths: Mapping[str, int], stated: int, num_predicting: int) -> list[Finding]:
    """Per-layer lists of another length than the depth (prediction layers may have entries too).

    Args:
        lengths: list -> its entries.
        stated: layers of the config.
        num_predicting: prediction layers of the config.
    """
    return [
        Finding(
            "fault",
            "per-layer list",
            f"{CONFIG}: {name}",
            f"has {length} entries, one for each layer, and the config states {stated} layers",
            f"Cut or extend it to {stated} entries, as the layers are.",
        )
        for name, length in lengths.items()
        if length not in (stated, stated + num_predicting)
    ]


def judge_indices(stale: Mapping[str, Sequence[int]]) -> list[Finding]:
    """Fields that speak of layers which a model of this depth does not have."""
    return [
        Finding(
            "warning",
            "layer index",
            f"{CONFIG}: {name}",
            f"speaks of layer {indices[0]}{' and further ones' if len(indices) > 1 else ''}, which is not there",
            "Remove these entries: they are left over from a deeper model.",
        )
        for name, indices in stale.items()
    ]


def judge_loading(loading: Loading, depth: int | None) -> list[Finding]:
    """What transformers would fill at random, drop or refuse.

    Args:
        loading: its own account.
        depth: to which the config was set for it; None for the config as it is.
    """
    under = "" if depth is None else f" (with the config cut to {depth} layers)"
    findings = []
    if loading.missing:
        what = f"{_count(loading.missing)} in no file, which transformers would fill with random numbers{under}"
        is_head = any(word in name for name in loading.missing for word in ("lm_head", "embed_out"))
        advice = "If the head is the embedding, set tie_word_embeddings to true; else c" if is_head else "C"
        findings.append(
            Finding("fault", "missing", in_words(loading.missing), what, f"{advice}opy the missing weights again.")
        )
    if loading.unexpected:
        what = f"{_count(loading.unexpected)} without a place in the model, which transformers would drop{under}"
        advice = "Check that config.json belongs to these weights."
        findings.append(Finding("fault", "extra", in_words(loading.unexpected), what, advice))
    for name, (there, here) in list(loading.misshapen.items())[:1]:
        more = f" (and {len(loading.misshapen) - 1} more)" if len(loading.misshapen) > 1 else ""
        what = f"is {list(there)} in the files and {list(here)} in the model{more}{under}"
        findings.append(Finding("fault", "shape", name, what, "Check that config.json belongs to these weights."))
    for name, reason in list(loading.failed.items())[:1]:
        more = f" (and {len(loading.failed) - 1} more)" if len(loading.failed) > 1 else ""
        what = f"cannot be put together from the files: {reason}{more}{under}"
        findings.append(Finding("fault", "missing", name, what, "Copy the missing weights again."))
    if loading.unread:
        kinds = "old buffers, prediction layers, or towers for images and sound"
        what = f"{_count(loading.unread)} that this class does not read: {kinds}"
        findings.append(Finding("note", "unread", in_words(loading.unread), what, ""))
    if loading.unpublished:
        what = f"{_count(loading.unpublished)} named as in transformers' classes, and not as in published files"
        advice = "For other programs, load it with transformers and call save_pretrained on a new folder."
        findings.append(Finding("warning", "layout", in_words(loading.unpublished), what, advice))
    return findings


def _count(names: Sequence[str]) -> str:
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''}"


def judge_tied(copy: str, source: str, *, is_same: bool) -> Finding:
    """A tied tensor that the files hold twice.

    Args:
        copy: file tensor that is tied.
        source: file tensor that it is tied to.
        is_same: whether both have the same bytes.
    """
    if is_same:
        what = f"the same bytes as {source}, to which the config ties it: written twice, and harmless"
        return Finding("warning", "tied head", copy, what, "Nothing, or drop it to save its bytes.")
    what = f"other values than {source}, to which the config ties it: some programs use them, others drop them"
    advice = "If the head is one of its own, set tie_word_embeddings to false; else drop it from the files."
    return Finding("fault", "untied head", copy, what, advice)


def _same_bytes(one: TensorEntry, other: TensorEntry) -> bool:
    """Whether two tensors are the same; reads them up to the first difference."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return all(left == right for left, right in zip_longest(chunks(one), chunks(other)))


def judge_dtype(config: Mapping[str, Any], entries: Iterable[TensorEntry]) -> list[Finding]:
    """Whether most floating bytes have the dtype that the config states; transformers converts to it on loading."""
    stated = config.get("dtype") or config.get("torch_dtype")
    num_bytes: dict[str, int] = {}
    for entry in entries:
        if entry.dtype in FLOATS:
            num_bytes[entry.dtype] = num_bytes.get(entry.dtype, 0) + entry.num_bytes
    if not num_bytes or not isinstance(stated, str) or config.get("quantization_config"):
        return []
    held = str(FLOATS[max(num_bytes, key=lambda dtype: num_bytes[dtype])]).removeprefix("torch.")
    if held == stated.removeprefix("torch."):
        return []
    what = f"says {stated}, and most of the weights are {held}: transformers converts them when it loads them"
    return [Finding("warning", "dtype", f"{CONFIG}: dtype", what, f"Set it to {held}, or convert the weights.")]


def judge_training(text: Mapping[str, Any]) -> list[Finding]:
    """Fields that make training draw at random, as configs of another age have them."""
    traps = {
        name: value
        for name, value in text.items()
        if type(value) in (int, float)
        and value > 0
        and any(part in name for part in TRAPS)
        and not any(part in name for part in OTHER_HEADS)
    }
    findings = []
    for skips in (True, False):
        named = [f"{name} {value}" for name, value in traps.items() if ("layerdrop" in name) is skips]
        if named:
            what = "whole layers are skipped at random in training" if skips else "training drops values at random"
            where = f"{CONFIG}: {', '.join(name.split()[0] for name in named)}"
            advice = "Nothing for `inheritune train`, which sets them itself; for other trainers set them to 0."
            findings.append(Finding("warning", "training", where, f"{what} ({', '.join(named)})", advice))
    return findings


def _judge_tokens(contents: Contents, num_rows: int | None) -> list[Finding]:
    """Tokenizer and special tokens against the embedding."""
    findings = []
    vocabulary = None
    try:
        vocabulary = read_vocabulary(contents.folder, contents.names)
    except ValueError as error:
        where = next(name for name in (TOKENIZER, TABLE) if name in contents.names)
        findings.append(Finding("fault", "tokenizer", where, f"cannot be read ({error})", "Copy it again."))
    else:
        if vocabulary is None and not has_tokenizer(contents.names):
            what = "no tokenizer: the model can be loaded, and no text can be given to it"
            advice = "Copy the tokenizer files of the model that it comes from."
            findings.append(Finding("warning", "tokenizer", TOKENIZER, what, advice))
    if vocabulary is not None and num_rows is not None:
        findings += judge_vocabulary(vocabulary, num_rows)
    if contents.config is not None:
        findings += judge_special_ids(CONFIG, text_config(contents.config), num_rows, vocabulary)
    if GENERATION in contents.names:
        try:
            generation = dict(read_json(contents.folder / GENERATION))
            findings += judge_special_ids(GENERATION, generation, num_rows, vocabulary)
        except (ValueError, TypeError, RecursionError, OSError) as error:
            findings.append(Finding("fault", "config", GENERATION, f"is not JSON ({error})", "Copy it again."))
    return findings


def judge_values(entries: Iterable[TensorEntry], may_be_infinite: frozenset[str]) -> list[Finding]:
    """Read every weight and name those with NaN or infinite values.

    Args:
        entries: of the files.
        may_be_infinite: last part of the names of tensors in which they are no fault.
    """
    findings = []
    for entry in entries:
        if entry.name.rpartition(".")[2] in may_be_infinite:
            continue
        not_finite = NotFinite(entry.dtype)
        for content in chunks(entry):
            not_finite.add(content)
        if not_finite.count:
            what = f"{not_finite.count} of {not_finite.num_values} values are NaN or infinite"
            advice = "Download or copy the file again; if the model is so, it cannot be used."
            findings.append(Finding("fault", "values", f"{entry.file.name}: {entry.name}", what, advice))
    return findings
