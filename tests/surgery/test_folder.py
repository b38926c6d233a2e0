import json
import os
import pickle
import signal
import struct

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from inheritune.cli import main
from inheritune.data.tokenizer import open_tokenizer
from inheritune.errors import DataError, SurgeryError
from inheritune.surgery.cut import plan_cut
from inheritune.surgery.folder import check_entry, check_files, limits, load_model, resolve
from inheritune.surgery.transplant import inherit

INDEX = "model.safetensors.index.json"


def test_existing_folder_is_itself(tmp_path):
    assert resolve(tmp_path) == tmp_path
    assert resolve(str(tmp_path)) == tmp_path


def test_folder_has_no_revision(tmp_path):
    with pytest.raises(SurgeryError, match="only a hub id has revisions"):
        resolve(tmp_path, "main")


@pytest.mark.parametrize("reference", ["./absent", "/absent/model", "a/b/c", "with space"])
def test_path_that_does_not_exist_and_is_no_hub_id_is_refused_without_a_network(reference, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_a, **_k: pytest.fail("network"))
    with pytest.raises(SurgeryError, match=r"no folder .* no hub id either"):
        resolve(reference)


def test_file_is_no_model(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(SurgeryError, match="is a file"):
        resolve(tmp_path / "model.safetensors")


def test_hub_failure_says_both_readings(monkeypatch):
    def fail(*_arguments, **_settings):
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(SurgeryError, match=r"no folder 'owner/model'.*as a hub id \(revision v1\).*no connection"):
        resolve("owner/model", "v1")


def test_hub_id_fetches_no_code_and_no_pickle(tmp_path, monkeypatch):
    asked = {}

    def fetch(name, **settings):
        asked.update(settings, name=name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert resolve("owner/model", "v1") == tmp_path
    assert asked["name"] == "owner/model" and asked["revision"] == "v1"
    assert not {"*", "*.py", "*.bin", "*.pt"} & set(asked["allow_patterns"])


def test_checked_tensors_are_those_of_the_file(save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference", max_shard_size="20KB")
    weights = check_files(folder)
    assert len(weights.files) > 2
    expected = {name: tensor for file in weights.files for name, tensor in load_file(folder / file).items()}
    assert set(weights.tensors) == set(expected)
    for name, entry in weights.tensors.items():
        raw = entry.file.read_bytes()[entry.begin : entry.end]
        assert torch.equal(torch.frombuffer(bytearray(raw), dtype=torch.float32), expected[name].flatten())
        assert entry.shape == tuple(expected[name].shape) and entry.dtype == "F32"


def test_folder_without_config_is_refused(save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference")
    (folder / "config.json").unlink()
    with pytest.raises(SurgeryError, match=r"no config\.json"):
        check_files(folder)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[1]",
        "null",
        pytest.param("[" * 100_000, id="nested"),
        '{"a": {"__float__": []}}',
        '{"model_type": ["llama"]}',
        '{"model_type": "never_seen"}',
        '{"model_type": "bert_no"}',
    ],
)
def test_config_that_names_no_causal_model_is_refused(content, save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference")
    (folder / "config.json").write_text(content)
    with pytest.raises(SurgeryError, match=r"config\.json"):
        check_files(folder)


def test_model_of_remote_code_is_refused_by_name(save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference")
    config = {"model_type": "their_own", "auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_own.py").write_text("raise SystemExit('remote code was run')")
    with pytest.raises(SurgeryError, match=r"'their_own'.*remote code"):
        load_model(folder)


def test_own_code_beside_a_known_model_type_is_not_run(save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "modeling_own.Config", "AutoModelForCausalLM": "modeling_own.Own"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_own.py").write_text("raise SystemExit('remote code was run')")
    assert type(load_model(folder)).__name__ == "LlamaForCausalLM"


def test_pickled_weights_are_refused_with_the_way_to_convert_them(save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(SurgeryError, match=r"pickle \(pytorch_model\.bin\).*save_pretrained"):
        check_files(folder)


def test_folder_without_weights_is_refused(save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference")
    (folder / "model.safetensors").unlink()
    with pytest.raises(SurgeryError, match=r"neither model\.safetensors nor"):
        check_files(folder)


def test_missing_shard_is_named(save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference", max_shard_size="20KB")
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(SurgeryError, match=f"{shard.name} is missing"):
        check_files(folder)


@pytest.mark.parametrize(
    "shard",
    [
        "../other.safetensors",
        "/etc/passwd",
        "sub/model.safetensors",
        "weights.bin",
        3,
        "x" * 300 + ".safetensors",
        "..\\other.safetensors",
    ],
)
def test_index_that_leaves_the_folder_is_refused(shard, save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference", max_shard_size="20KB")
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = shard
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(SurgeryError, match="index"):
        check_files(folder)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "{}",
        '{"weight_map": 3}',
        '{"weight_map": {}}',
        '{"weight_map": [["a", "b"]]}',
        "[]",
        pytest.param("[" * 100_000, id="nested"),
        '{"weight_map": {"a": []}}',
    ],
)
def test_index_that_is_none_is_refused(content, save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference", max_shard_size="20KB")
    (folder / INDEX).write_text(content)
    with pytest.raises(SurgeryError, match="not an index"):
        check_files(folder)


def test_index_that_disagrees_with_its_shards_is_refused(save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference", max_shard_size="20KB")
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.ghost.weight"] = index["weight_map"]["model.norm.weight"]
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(SurgeryError, match=r"model\.ghost\.weight"):
        check_files(folder)


def test_loaded_model_is_the_saved_one_in_eval_mode(family, build_model, save_reference, tmp_path):
    folder = save_reference(family, tmp_path / "reference")
    model = load_model(folder)
    assert not model.training
    expected = build_model(family).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("fault", ["missing", "unexpected", "mismatched"])
def test_model_with_a_wrong_tensor_is_not_loaded(fault, save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference")
    tensors = load_file(folder / "model.safetensors")
    norm = tensors["model.norm.weight"]
    if fault == "missing":
        del tensors["model.norm.weight"]
    elif fault == "unexpected":
        tensors["model.extra.weight"] = norm.clone()
    else:
        tensors["model.norm.weight"] = torch.ones(len(norm) + 1)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SurgeryError, match=str(tmp_path)):
        load_model(folder)


WEIGHTS = "model.safetensors"


@pytest.mark.reliability("R16")
def test_weights_cut_anywhere_are_refused_by_name_and_nothing_is_loaded_or_written(save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference")
    content = (folder / WEIGHTS).read_bytes()
    header_end = 8 + struct.unpack("<Q", content[:8])[0]
    lengths = {0, 1, 7, 8, 9, header_end - 1, header_end, header_end + 1, len(content) - 1}
    for length in sorted(lengths | set(np.linspace(0, len(content) - 1, 24, dtype=int).tolist())):
        (folder / WEIGHTS).write_bytes(content[:length])
        with pytest.raises(SurgeryError, match=rf"{folder / WEIGHTS} is truncated or damaged"):
            load_model(folder)
        with pytest.raises(SurgeryError, match=rf"{folder / WEIGHTS} is truncated or damaged"):
            inherit(folder, tmp_path / "child", layers=2)
    assert [path.name for path in tmp_path.iterdir()] == ["reference"]


@pytest.mark.reliability("R16")
@pytest.mark.parametrize("fault", ["length", "overlap", "outside", "trailing", "not json", "swapped"])
def test_damaged_shard_is_refused_by_name(fault, save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference", max_shard_size="20KB")
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    content = shard.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    second = sorted(set(header) - {"__metadata__"}, key=lambda name: header[name]["data_offsets"])[1]
    if fault == "overlap":
        begin, end = header[second]["data_offsets"]
        header[second]["data_offsets"] = [begin - 4, end - 4]
    if fault == "outside":
        header[second]["data_offsets"] = [len(data), len(data) + header[second]["data_offsets"][1]]
    encoded = b"{]" if fault == "not json" else json.dumps(header).encode()
    stated = 2**63 if fault == "length" else len(encoded)
    trailing = b"more" if fault == "trailing" else b""
    shard.write_bytes(struct.pack("<Q", stated) + encoded + data + trailing)
    if fault == "swapped":
        other = sorted(folder.glob("model-*.safetensors"))[0]
        shard.write_bytes(other.read_bytes())
    with pytest.raises(SurgeryError, match=shard.name):
        load_model(folder)


class Planter:
    """Unpickled, it makes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


PICKLES = (
    "pytorch_model.bin",
    "model.pt",
    "training_args.bin",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "a.pkl",
)


@pytest.mark.reliability("R17")
def test_pickles_beside_the_weights_are_neither_opened_nor_handed_on(save_reference, tmp_path):
    folder, marker = save_reference("llama", tmp_path / "reference"), tmp_path / "marker"
    names = {*PICKLES, ".metadata", "tokenizer.pkl", "vocab.pkl"}
    for name in names:
        (folder / name).write_bytes(pickle.dumps(Planter(marker)))
    load_model(folder)
    open_tokenizer(folder)
    inherit(folder, tmp_path / "child", layers=2)
    assert not marker.exists()
    assert {path.name for path in (tmp_path / "child").iterdir()}.isdisjoint(names)
    pickle.loads((folder / "optimizer.pt").read_bytes()).close()
    assert marker.exists()  # the pickles are harmful ones


@pytest.mark.reliability("R17")
@pytest.mark.parametrize("name", [*PICKLES, "model.ckpt", WEIGHTS, "pytorch_model-00001-of-00001.bin"])
def test_weights_that_are_only_a_pickle_are_refused_unopened(name, save_reference, tmp_path):
    folder, marker = save_reference("llama", tmp_path / "reference"), tmp_path / "marker"
    (folder / WEIGHTS).unlink()
    (folder / name).write_bytes(pickle.dumps(Planter(marker)))
    if name.startswith("pytorch_model-"):
        index = {"metadata": {}, "weight_map": {"model.norm.weight": name}}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    for act in (load_model, lambda reference: inherit(reference, tmp_path / "child", layers=2)):
        with pytest.raises(SurgeryError, match=rf"only as pickle \({name}\)|{WEIGHTS} is truncated or damaged"):
            act(folder)
    assert not marker.exists()
    assert not (tmp_path / "child").exists()


@pytest.mark.reliability("R17")
@pytest.mark.parametrize("model_type", ["their_own", "llama"])
def test_code_of_a_model_or_tokenizer_is_never_imported(model_type, save_reference, tmp_path):
    folder, marker = save_reference("llama", tmp_path / "reference"), tmp_path / "marker"
    for name in ("modeling_own.py", "configuration_own.py", "tokenization_own.py"):
        (folder / name).write_text(f"open({str(marker)!r}, 'w')\nclass Own: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = model_type
    config["auto_map"] = {"AutoConfig": "configuration_own.Own", "AutoModelForCausalLM": "modeling_own.Own"}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["tokenization_own.Own", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    with pytest.raises(DataError, match="cannot be used as a fast tokenizer"):
        open_tokenizer(folder)
    if model_type == "llama":  # transformers' own class is used
        load_model(folder)
        inherit(folder, tmp_path / "child", layers=2)
        assert not list((tmp_path / "child").glob("*.py"))
    else:
        for act in (load_model, lambda reference: inherit(reference, tmp_path / "child", layers=2)):
            with pytest.raises(SurgeryError, match=r"needs remote code.*never run"):
                act(folder)
    assert not marker.exists()


def test_only_scalar_buffers_are_limits():
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(torch.tensor(1.0))
    module.inner = torch.nn.Module()
    module.inner.register_buffer("input_min", torch.tensor(-float("inf")))
    module.inner.register_buffer("mask", torch.zeros(3))
    assert limits(module) == {"input_min"}


def refused(act, *words, within_s=5.0):
    """The act is refused in one short printable line that holds the words, and does not hang."""

    def interrupt(*_arguments):
        raise TimeoutError(f"still at work after {within_s} s")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, within_s)
    try:
        with pytest.raises(SurgeryError) as error:
            act()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    said = str(error.value)
    assert said.isprintable() and len(said) < 1500, said
    assert all(word in said for word in words), said


COPIED = ("config.json", "generation_config.json", "tokenizer.json", "LICENSE", "model.safetensors")


@pytest.mark.reliability("R17")
@pytest.mark.parametrize("name", COPIED)
def test_link_out_of_the_folder_is_refused_by_name_and_nothing_is_written(name, save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference")
    (folder / "LICENSE").write_text("do what you like\n")
    (tmp_path / "elsewhere").mkdir()
    (folder / name).rename(tmp_path / "elsewhere" / name)
    (folder / name).symlink_to(tmp_path / "elsewhere" / name)
    for act in (check_files, load_model, lambda reference: inherit(reference, tmp_path / "child", layers=2)):
        refused(lambda act=act: act(folder), name, f"link to {tmp_path / 'elsewhere' / name}")
    assert not (tmp_path / "child").exists()


@pytest.mark.reliability("R17")
def test_link_out_of_the_folder_in_a_folder_that_is_copied_is_refused(save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference")
    (tmp_path / "secret").write_text("secret")
    (folder / "chat_templates").mkdir()
    (folder / "chat_templates" / "tool.jinja").symlink_to(tmp_path / "secret")
    refused(lambda: inherit(folder, tmp_path / "child", layers=2), "tool.jinja", "link to")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["reference", "secret"]


def test_link_within_the_folder_is_followed(save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference")
    (folder / WEIGHTS).rename(folder / "weights.safetensors")
    (folder / WEIGHTS).symlink_to("weights.safetensors")
    (tmp_path / "name").symlink_to(folder)
    for reference in (folder, tmp_path / "name"):
        assert inherit(reference, tmp_path / "child", layers=2).max_abs_difference == 0.0


def in_hub_cache(folder, cache):
    """The folder as the hub's cache keeps it: links from a snapshot to blobs; gives the snapshot."""
    repository = cache / "models--owner--model"
    snapshot = repository / "snapshots" / "1234abcd"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(repository / "blobs" / f"{number:040x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number:040x}")
    return snapshot


def test_snapshot_of_the_hub_links_to_the_blobs_of_its_own_model_only(save_reference, tmp_path):
    snapshot = in_hub_cache(save_reference("llama", tmp_path / "reference"), tmp_path / "hub")
    assert inherit(snapshot, tmp_path / "child", layers=2).max_abs_difference == 0.0
    assert not any(path.is_symlink() for path in (tmp_path / "child").iterdir())
    other = tmp_path / "hub" / "models--owner--other" / "blobs"
    other.mkdir(parents=True)
    (snapshot / WEIGHTS).resolve().rename(other / "weights")
    (snapshot / WEIGHTS).unlink()
    (snapshot / WEIGHTS).symlink_to(other / "weights")
    refused(lambda: inherit(snapshot, tmp_path / "other", layers=2), WEIGHTS, "link to")


def test_blobs_beside_a_folder_that_is_no_snapshot_are_not_followed(save_reference, tmp_path):
    snapshot = in_hub_cache(save_reference("llama", tmp_path / "reference"), tmp_path / "hub")
    folder = snapshot.parent.parent.with_name("owner--model")
    snapshot.parent.parent.rename(folder)
    refused(lambda: check_files(folder / "snapshots" / "1234abcd"), "link to")


@pytest.mark.reliability("R17")
@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "nothing", "loop"])
@pytest.mark.parametrize("name", COPIED)
def test_what_is_no_file_is_refused_and_not_waited_for(name, kind, save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference")
    (folder / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(folder / name)
    elif kind == "folder":
        (folder / name).mkdir()
    else:
        (folder / name).symlink_to({"device": "/dev/zero", "nothing": "absent", "loop": name}[kind])
    if (name, kind) == ("LICENSE", "folder"):  # as some have it
        assert inherit(folder, tmp_path / "child", layers=2).max_abs_difference == 0.0
        return
    for act in (check_files, load_model, lambda reference: inherit(reference, tmp_path / "child", layers=2)):
        refused(lambda act=act: act(folder), str(folder))
    assert not (tmp_path / "child").exists()


def test_shard_that_is_a_pipe_is_refused_and_not_waited_for(save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference", max_shard_size="20KB")
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    os.mkfifo(shard)
    refused(lambda: check_files(folder), shard.name)


def test_weights_that_nobody_reads_may_be_links(save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference")
    (folder / "consolidated.safetensors").symlink_to("/absent/consolidated.safetensors")
    check_files(folder)


def test_adapter_is_refused_since_its_model_lies_elsewhere(save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "other")}))
    refused(lambda: check_files(folder), "adapter_config.json", "Merge the adapter")


@pytest.mark.parametrize("name", ["other.safetensors", "../other.safetensors", 3, ["model.safetensors"]])
def test_config_that_names_other_weights_is_refused(name, save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference")
    save_file(load_file(folder / WEIGHTS), folder / "other.safetensors", metadata={"format": "pt"})
    alter(folder, transformers_weights=name)
    refused(lambda: check_files(folder), "transformers_weights")
    alter(folder, transformers_weights=WEIGHTS)
    assert inherit(folder, tmp_path / "child", layers=2).max_abs_difference == 0.0


def alter(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))


@pytest.mark.parametrize("depth", [10_001, 10**9, 10**18])
def test_config_of_a_billion_layers_is_refused_before_they_are_built(depth, save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference")
    alter(folder, num_hidden_layers=depth)
    refused(lambda: inherit(folder, tmp_path / "child", layers=2), f"states {depth} layers")


@pytest.mark.parametrize("name", ["config.json", INDEX])
@pytest.mark.parametrize("content", [b"[" + b"0," * 2_100_000 + b"0]", b" " * 100_000_001], ids=["values", "bytes"])
def test_json_without_end_is_refused_unparsed(name, content, save_reference, tmp_path, monkeypatch):
    folder = save_reference("llama", tmp_path / "reference", max_shard_size="20KB")
    (folder / name).write_bytes(content)
    refused(lambda: check_files(folder), str(folder / name), "which is no model's")


ESCAPES = "\x1b]0;owned\x07\x1b[2J\x00\n\r\x9b31m\u202e\ud800"
"""A new title, a cleared screen, NUL, new lines, a colour, text from right to left, half a letter."""


@pytest.mark.reliability("R17")
@pytest.mark.parametrize("place", ["tensor", "shard", "index", "field", "model_type", "auto_map", "value"])
def test_escape_codes_of_a_file_never_reach_the_terminal(place, save_reference, tmp_path, capsys):
    folder = save_reference(
        "llama", tmp_path / "reference", max_shard_size="20KB" if place in ("shard", "index") else "5GB"
    )
    if place == "tensor":
        header = {ESCAPES: {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}
        encoded = json.dumps(header).encode()
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(encoded)) + encoded + b"12")
    elif place in ("shard", "index"):
        index = json.loads((folder / INDEX).read_text())
        index["weight_map"] |= {"a": f"{ESCAPES}.safetensors"} if place == "shard" else {ESCAPES: "model.safetensors"}
        (folder / INDEX).write_text(json.dumps(index))
    elif place == "field":
        alter(folder, **{ESCAPES: [1, 2, 3, 4]})
    elif place == "value":
        alter(folder, hidden_act=ESCAPES)
    elif place == "model_type":
        alter(folder, model_type=ESCAPES)
    else:
        alter(folder, model_type="their_own", auto_map={ESCAPES: ESCAPES})
    capsys.readouterr()  # what saving the reference has said
    with pytest.raises(SystemExit) as end:
        main(["inherit", str(folder), str(tmp_path / "child"), "--layers", "2"])
    said = capsys.readouterr().err
    assert end.value.code == 3
    assert said.startswith("error: ") and said.endswith("\n") and said[:-1].isprintable(), said
    assert not (tmp_path / "child").exists()


def test_map_of_code_that_is_none_is_refused_too(save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference")
    for auto_map in (True, 3, "text", [1, "a", None], {"a": {"b": "x" * 10_000}}):
        alter(folder, model_type="their_own", auto_map=auto_map)
        refused(lambda: check_files(folder), "remote code")


def test_link_to_a_folder_is_not_followed(save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference")
    (folder / "LICENSES").mkdir()
    (folder / "LICENSES" / "again").symlink_to(folder / "LICENSES")
    with pytest.raises(SurgeryError, match="is a link to a folder"):
        check_entry(folder, folder / "LICENSES")


@pytest.mark.parametrize(
    "fields",
    [
        {"num_kv_shared_layers": "3"},
        {"hybrid_override_pattern": 5},
        {"local_layer_ids": [[1]]},
        {"attention_types": ["local"]},
        {"pruned_heads": {"x": [0]}},
    ],
)
def test_field_of_another_kind_than_its_class_has_is_one_clear_line(fields, save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))
    with pytest.raises(SurgeryError):
        plan_cut(check_files(folder), 2)
