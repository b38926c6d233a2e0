import json
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from inheritune.errors import SurgeryError
from inheritune.surgery import tensor_file
from inheritune.surgery.tensor_file import Piece, read_header, sha256, split_shards, write_file


def file_of(path, header, data=b""):
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(content)) + content + data)
    return path


def entry(begin, end, shape=(2,), dtype="U8"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def test_copied_file_has_the_same_tensors(tmp_path):
    tensors = {
        "a": torch.randn(5, 3),
        "b": torch.arange(7, dtype=torch.int64),
        "c": torch.randn(3).to(torch.bfloat16),
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(2.5),
        "flags": torch.tensor([True, False, True]),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    pieces = [Piece(name, value, value.dtype) for name, value in read_header(tmp_path / "a.safetensors").items()]
    hashes = write_file(tmp_path / "b.safetensors", pieces)
    copied = load_file(tmp_path / "b.safetensors")
    assert set(copied) == set(tensors)
    assert all(
        torch.equal(copied[name], tensor) and copied[name].dtype == tensor.dtype for name, tensor in tensors.items()
    )
    assert {name: sha256(value) for name, value in read_header(tmp_path / "b.safetensors").items()} == hashes


def test_tensor_longer_than_a_chunk_is_copied_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_file, "CHUNK_BYTES", 7)
    save_file({"a": torch.randn(100)}, tmp_path / "a.safetensors")
    value = read_header(tmp_path / "a.safetensors")["a"]
    write_file(tmp_path / "b.safetensors", [Piece("new", value, "F32")])
    assert torch.equal(load_file(tmp_path / "b.safetensors")["new"], load_file(tmp_path / "a.safetensors")["a"])


@pytest.mark.parametrize("leading", [(2, 3), (5, 1), (3, 2), (5, 3)])
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_leading_rows_and_columns_are_those_of_the_matrix(leading, dtype, tmp_path):
    matrix = torch.randn(5, 3)
    save_file({"before": torch.ones(3), "a": matrix, "z": torch.ones(3)}, tmp_path / "a.safetensors")
    value = read_header(tmp_path / "a.safetensors")["a"]
    write_file(tmp_path / "b.safetensors", [Piece("a", value, dtype, leading)])
    expected = matrix[: leading[0], : leading[1]].to(tensor_file.FLOATS[dtype])
    assert torch.equal(load_file(tmp_path / "b.safetensors")["a"], expected)


@pytest.mark.parametrize(
    ("header", "data"),
    [
        (b"not json", b""),
        ([], b""),
        ({"a": 3}, b""),
        ({"a": entry(0, 2)}, b"1"),
        ({"a": entry(0, 2)}, b"123"),
        ({"a": entry(0, 2), "b": entry(1, 3)}, b"123"),
        ({"a": entry(0, 2), "b": entry(3, 5)}, b"12345"),
        ({"a": entry(1, 3)}, b"123"),
        ({"a": entry(2, 0)}, b"12"),
        ({"a": entry(0, 2, shape=(3,))}, b"12"),
        ({"a": entry(0, 2, shape=(-1, -2))}, b"12"),
        ({"a": entry(0, 2, shape=(2.0,))}, b"12"),
        ({"a": entry(0, 2, dtype="PICKLE")}, b"12"),
        ({"a": {**entry(0, 2), "data_offsets": [0]}}, b"12"),
        (b'{"a": %b, "a": %b}' % ((json.dumps(entry(0, 2)).encode(),) * 2), b"12"),
    ],
)
def test_header_that_does_not_describe_its_file_is_refused(header, data, tmp_path):
    with pytest.raises(SurgeryError, match=r"x\.safetensors is truncated or damaged"):
        read_header(file_of(tmp_path / "x.safetensors", header, data))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(data=st.data())
def test_damaged_file_gives_entries_inside_it_or_one_error(data, tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.arange(6.0), "b": torch.arange(3)}, path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content)[: data.draw(st.integers(0, len(content)))])
    try:
        entries = read_header(path)
    except SurgeryError:
        return
    assert all(0 <= value.begin <= value.end <= path.stat().st_size for value in entries.values())


@given(sizes=st.lists(st.integers(0, 50), min_size=1), limit=st.integers(1, 60))
def test_shards_hold_every_piece_once_in_order_and_are_within_the_limit(sizes, limit):
    pieces = [
        Piece(str(number), tensor_file.TensorEntry(None, "U8", (size,), 0, size), "U8")
        for number, size in enumerate(sizes)
    ]
    shards = split_shards(pieces, limit)
    assert [piece for shard in shards for piece in shard] == pieces
    assert all(len(shard) == 1 or sum(piece.num_bytes for piece in shard) <= limit for shard in shards)
