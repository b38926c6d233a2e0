"""A model from its files with one layer in memory at a time: for models that are larger than the memory.

B batch, T positions, D hidden size, V vocabulary.

The model is built on device meta. What is no layer is loaded at once, each layer just before it runs and let go after
it, by the loader of transformers itself, so that its renamings and conversions (experts stored one by one) are done. An
operation that meets a tensor that is not loaded ends the run: what cannot be done layer by layer is never half done.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.modeling_utils import PreTrainedModel

from inheritune.errors import InherituneError, SurgeryError
from inheritune.surgery.anatomy import Anatomy, find_layers
from inheritune.surgery.folder import Weights, build_config, build_on_meta, quiet, read_config, strangers
from inheritune.surgery.tensor_file import FLOATS, TensorEntry, chunks
from inheritune.surgery.tensor_names import LayerNames, find_names

DTYPES = {
    **FLOATS, "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32,
    "I64": torch.int64, "C64": torch.complex64, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
"""torch's dtypes of those of the file format that a model may be run with."""


HALF = (torch.float16, torch.bfloat16)


class NotByLayer(Exception):  # noqa: N818 (a fact about the model, not an error of the user)
    """This model cannot be run layer by layer; the reason in words."""


class _Memory:
    """Tensors that a layer has left, for the next one: fresh memory costs more than what is done with it."""

    def __init__(self) -> None:
        self._free: dict[tuple[torch.dtype, int], list[Tensor]] = {}
        self._used: list[Tensor] = []

    def take(self, dtype: torch.dtype, count: int) -> Tensor:
        """A flat tensor of this many elements, of any values."""
        left = self._free.get((dtype, count))
        self._used.append(left.pop() if left else torch.empty(count, dtype=dtype))
        return self._used[-1]

    def give_back(self) -> None:
        """What was taken is used no more."""
        for tensor in self._used:
            self._free.setdefault((tensor.dtype, len(tensor)), []).append(tensor)
        self._used.clear()


class _Stored:
    """A tensor in a file that is read when the loader asks for it."""

    def __init__(self, entry: TensorEntry, memory: _Memory) -> None:
        self._entry, self._memory = entry, memory

    def __getitem__(self, _everything: Any) -> Tensor:
        return read_tensor(self._entry, self._memory.take)


def read_tensor(entry: TensorEntry, take: Callable[[torch.dtype, int], Tensor]) -> Tensor:
    """The tensor's values: half precision as float32, everything else in its own dtype.

    Args:
        entry: where it is.
        take: gives a flat tensor of a dtype and a number of elements.

    Raises:
        NotByLayer: torch has no such dtype, or none that a model is run with.
        SurgeryError: the file ends before the tensor does.
    """
    if entry.dtype not in DTYPES:
        raise NotByLayer(f"tensor {entry.name!r} has the dtype {entry.dtype}")
    stored = DTYPES[entry.dtype]
    flat = take(torch.float32 if stored in HALF else stored, entry.num_bytes // stored.itemsize)
    place, rest = 0, bytearray()
    for chunk in chunks(entry):
        rest += chunk
        count = len(rest) // stored.itemsize
        if count:
            flat[place : place + count].copy_(torch.frombuffer(rest, dtype=stored, count=count))
            place, rest = place + count, bytearray(rest[count * stored.itemsize :])
    return flat.reshape(entry.shape)


class _Watch(TorchDispatchMode):
    """Refuses every operation on a tensor that is not loaded, but while a layer is loaded."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.is_open = False

    @contextmanager
    def opened(self) -> Iterator[None]:
        self.is_open = True
        try:
            yield
        finally:
            self.is_open = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.is_open and any(isinstance(each, Tensor) and each.is_meta for each in tree_leaves((args, kwargs))):
            raise NotByLayer(f"{func} meets a tensor that is not loaded")
        return func(*args, **(kwargs or {}))


class Reached(Exception):  # noqa: N818 (the end of the way, not an error)
    """The last layer that was asked for has run."""


class LayerStream:
    """A causal language model in eval mode, float32, on the CPU, whose layers come from the files one by one."""

    def __init__(self, weights: Weights, *, attention: str | None = None) -> None:
        """Build it on device meta; reads no weights.

        Args:
            weights: the model's files.
            attention: name of the attention that transformers builds it with; None: its own choice.

        Raises:
            SurgeryError: it cannot be built, or its layers are not in its files.
        """
        self._weights = weights
        config = build_config(read_config(weights.folder))
        if attention is not None:
            config._attn_implementation = attention
        self.model = build_on_meta(config, torch.float32).eval()
        self.anatomy: Anatomy = find_layers(self.model)
        self._names: LayerNames = find_names(weights.tensors, self.anatomy)

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder's layers, in order."""
        layers = self.model.get_submodule(self.anatomy.path)
        assert isinstance(layers, nn.ModuleList)
        return layers

    def entries(self, layer: int | None) -> dict[str, TensorEntry]:
        """The file's tensors of one layer; None: those of no layer."""
        return {name: entry for name, entry in self._weights.tensors.items() if self._names.index(name) == layer}

    def in_memory(self, num_layers: int, *, head: bool) -> list[TensorEntry]:
        """What is in memory at the same time: what is no layer, and the largest layer."""
        layers = (list(self.entries(index).values()) for index in range(num_layers))
        largest = max(layers, key=lambda entries: sum(entry.num_bytes for entry in entries))
        return [*self._outside(head).values(), *largest]

    def check(self, *, all_are_read: bool) -> None:
        """Check that transformers finds every tensor of the model in these files; reads only headers.

        Args:
            all_are_read: and that it reads every tensor of the files.

        Raises:
            NotByLayer: the loader of the installed transformers cannot be asked in this way.
            SurgeryError: a tensor is missing, of another shape, or not read.
        """
        shapes = {name: (entry.dtype, entry.shape) for name, entry in self._weights.tensors.items()}
        check_tensors(self.model, shapes, str(self._weights.folder), all_are_read=all_are_read)

    def run(
        self, ids_BT: Tensor, num_layers: int, *, head: bool, keep: bool = True
    ) -> tuple[list[Tensor], Tensor | None]:
        """Call the model on tokens.

        Args:
            ids_BT: int64 (B, T).
            num_layers: so many first layers run.
            head: whether what comes behind the layers runs, too.
            keep: whether the hidden states are kept and given back.

        Returns:
            The hidden state after each layer, float32 (B, T, D), empty where they are not kept; the logits (B, T, V),
            or None without the head.

        Raises:
            NotByLayer: a tensor is not in the files under a name that the loader knows, or is used out of turn.
            SurgeryError: a file ends before a tensor does.
        """
        watch, memory = _Watch(), _Memory()
        states: dict[int, Tensor] = {}
        handles: list[Any] = []
        logits = None
        with _failures_in_words():
            try:
                with quiet():
                    told = self._load(self._outside(head), _Memory())
                    self._fill_buffers(told.missing_keys)
                for index, layer in enumerate(self.layers[:num_layers]):
                    last = index == num_layers - 1 and not head
                    handles += self._hooks(index, layer, watch, memory, states, last, keep)
                with watch, torch.no_grad():
                    logits = self.model(
                        input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT), use_cache=False
                    ).logits
            except Reached:
                pass
            finally:
                for handle in handles:
                    handle.remove()
                _let_go(self.model)
        if sorted(states) != list(range(num_layers)):
            raise NotByLayer(f"of its layers {sorted(states)} have run")
        return [states[index] for index in range(num_layers)], logits

    def _outside(self, head: bool) -> dict[str, TensorEntry]:
        """What is no layer; without an output head of its own where that is not to run."""
        entries = self.entries(None)
        module = self.model.get_output_embeddings()
        if head or module is None:
            return entries
        paths = [path for path, each in self.model.named_modules() if each is module]
        own = {f"{path}.{name}" for path in paths for name, _ in module.named_parameters()}
        own -= set(self.model.all_tied_weights_keys) | set(self.model.all_tied_weights_keys.values())
        return {name: entry for name, entry in entries.items() if self._names.module_name(name) not in own}

    def _hooks(
        self,
        index: int,
        layer: nn.Module,
        watch: _Watch,
        memory: _Memory,
        states: dict[int, Tensor],
        last: bool,
        keep: bool,
    ) -> list[Any]:
        """What loads a layer before it runs, keeps what comes out of it, and lets it go."""
        entries = self.entries(index)

        def load(_module: nn.Module, _inputs: Any) -> None:
            with watch.opened(), quiet():
                self._load(entries, memory)
                absent = [name for name, tensor in _tensors(layer) if tensor.is_meta]
            if absent:
                raise NotByLayer(f"{absent[0]!r} of layer {index} is not in its files")

        def let_go(_module: nn.Module, _inputs: Any, output: Any) -> None:
            state_BTD = output if isinstance(output, Tensor) else output[0]
            states[index] = state_BTD.detach().clone() if keep else state_BTD.new_empty(0)
            with watch.opened():
                _let_go(layer)
            memory.give_back()
            if last:
                raise Reached

        return [layer.register_forward_pre_hook(load), layer.register_forward_hook(let_go)]

    def _load(self, entries: Mapping[str, TensorEntry], memory: _Memory) -> Any:
        """Put the files' tensors into the model, as ``from_pretrained`` does."""
        return load_into(self.model, {name: _Stored(entry, memory) for name, entry in entries.items()}, "cpu")

    def _fill_buffers(self, absent: Iterable[str]) -> None:
        """Ties, and what is computed and never saved (rotary frequencies), as ``from_pretrained`` makes them."""
        model: Any = self.model
        model.tie_weights(missing_keys=set(absent), recompute_mapping=False)
        model._move_missing_keys_from_meta_to_device(set(), {"": "cpu"}, None, None)
        for module in model.modules():
            module.__dict__.pop("_is_hf_initialized", None)
        model.initialize_weights()


def _let_go(module: nn.Module) -> None:
    """Give the memory of every parameter back; buffers, which are small and may have been computed, stay."""
    for each in module.modules():
        for name, tensor in each._parameters.items():
            if tensor is not None and not tensor.is_meta:
                empty = torch.empty_like(tensor, device="meta")
                each._parameters[name] = nn.Parameter(empty, requires_grad=tensor.requires_grad)


def _tensors(module: nn.Module) -> Iterable[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def check_tensors(
    model: PreTrainedModel, tensors: Mapping[str, tuple[str, Sequence[int]]], where: str, *, all_are_read: bool
) -> None:
    """Check that transformers finds every tensor of a model among these; no values are needed.

    Args:
        model: on device meta; its tensors are replaced.
        tensors: name in files -> dtype in the words of the format, shape.
        where: what is at fault otherwise, for the message.
        all_are_read: and that it reads every one of them.

    Raises:
        NotByLayer: the loader of the installed transformers cannot be asked in this way.
        SurgeryError: a tensor is missing, of another shape, or not read.
    """
    with _failures_in_words(), quiet():
        stand_ins = {
            name: torch.empty(tuple(shape), dtype=DTYPES[dtype], device="meta")
            for name, (dtype, shape) in tensors.items()
        }
        told = load_into(model, stand_ins, "meta")
        loader: Any = model
        loader.tie_weights(missing_keys=told.missing_keys, recompute_mapping=False)
        loader._adjust_missing_and_unexpected_keys(told)
    faults = {"missing": told.missing_keys, "mismatched": told.mismatched_keys}
    if all_are_read:
        faults["unexpected"] = strangers(told.unexpected_keys, model)
    said = [f"{len(keys)} {kind} (first: {min(map(str, keys))})" for kind, keys in faults.items() if keys]
    if said:
        raise SurgeryError(
            f"the weights of {where} are not those of its config: {'; '.join(said)} tensors. "
            "Check that config.json belongs to the weights, and that num_hidden_layers is the depth of the file."
        )
    if told.conversion_errors:
        raise NotByLayer("the loader cannot convert its tensors without their values")


def load_into(model: PreTrainedModel, tensors: Mapping[str, Any], device: str) -> Any:
    """Hand tensors to the loader of transformers; gives what it says of missing, unexpected and misshapen ones.

    Source: ``PreTrainedModel._load_pretrained_model`` of transformers 5.23, which does the same with all tensors.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig

    config = LoadStateDictConfig(
        dtype=torch.float32,
        dtype_plan=model._get_dtype_plan(torch.float32),
        device_map={"": device},
        weight_mapping=get_model_conversion_mapping(model),
    )
    told, _ = convert_and_load_state_dict_in_model(model, dict(tensors), config)
    return told


@contextmanager
def _failures_in_words() -> Iterator[None]:
    """The loader's own failures are reasons not to go layer by layer; damaged files stay errors."""
    try:
        yield
    except (NotByLayer, Reached, InherituneError):
        raise
    except Exception as error:  # internals of another library: no common class of errors
        raise NotByLayer(f"{type(error).__name__}: {' '.join(str(error).split())}") from error
