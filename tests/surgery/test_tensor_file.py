import json
import random
import struct
import time
import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from inheritune.errors import SurgeryError
from inheritune.runs import file_sha256
from inheritune.surgery import tensor_file
from inheritune.surgery.tensor_file import (
    NotFinite,
    Piece,
    Run,
    read_header,
    runs_of,
    sha256_of_file,
    split_shards,
    write_file,
)


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
    write_file(tmp_path / "b.safetensors", pieces)
    copied = load_file(tmp_path / "b.safetensors")
    assert set(copied) == set(tensors)
    assert all(
        torch.equal(copied[name], tensor) and copied[name].dtype == tensor.dtype for name, tensor in tensors.items()
    )


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


@pytest.mark.reliability("R16")
@pytest.mark.parametrize(
    ("header", "data"),
    [
        (b"not json", b""),
        (b"", b""),
        (b"\x80\x04\x95", b""),
        (b"\xff\xfe{\x00}\x00", b""),
        (b"\xef\xbb\xbf{}", b""),
        pytest.param(b"[" * 100_000, b"", id="nested"),
        (b'{"a": NaN}', b""),
        pytest.param(b'{"a": ' + b"9" * 5000 + b"}", b"", id="digits"),
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
        ({"a": {**entry(0, 2), "data_offsets": "02"}}, b"12"),
        ({"a": {**entry(0, 2), "shape": "2"}}, b"12"),
        ({"a": {**entry(0, 1), "shape": ""}}, b"1"),
        ({"a": {**entry(0, 1), "shape": {}}}, b"1"),
        ({"a": {**entry(0, 2), "data_offsets": {"0": 0, "2": 2}}}, b"12"),
        ({"a": {**entry(0, 2), "more": 0}}, b"12"),
        (b" " + json.dumps({"a": entry(0, 2)}).encode(), b"12"),
        ({"a\x00b": entry(0, 2)}, b"12"),
        ({"\x1b[2J": entry(0, 2)}, b"12"),
        ({"\u202e": entry(0, 2)}, b"12"),
        ({"a" * 1001: entry(0, 2)}, b"12"),
        ({"a": entry(0, 2), "b": entry(0, 2)}, b"12"),
        ({"a": entry(10**6, 10**6 + 2)}, b"12"),
        ({"a": entry(0, 2**63, shape=(2**63,))}, b"12"),
        ({"a": entry(0, 2**62, shape=(2**62,))}, b"12"),
        ({"a": entry(-2, 0)}, b"12"),
        ({"a": entry(True, 2, shape=(1,))}, b"12"),
        ({"a": entry(0, 2, shape=[1] * 100 + [2])}, b"12"),
        ({"a": entry(0, 2, shape=[2**62] * 10_000)}, b"12"),
        ({"a": entry(0, 2, dtype=["U8"])}, b"12"),
        ({"\ud800": entry(0, 2)}, b"12"),
        ({"__metadata__": {"a": 3}, "a": entry(0, 2)}, b"12"),
        ({"__metadata__": "pt", "a": entry(0, 2)}, b"12"),
        (b'{"a": %b, "a": %b}' % ((json.dumps(entry(0, 2)).encode(),) * 2), b"12"),
    ],
)
def test_header_that_does_not_describe_its_file_is_refused(header, data, tmp_path):
    with pytest.raises(SurgeryError, match=r"x\.safetensors is truncated or damaged"):
        read_header(file_of(tmp_path / "x.safetensors", header, data))


@pytest.mark.reliability("R16")
@pytest.mark.parametrize("length", [0, 1, 38, 100_000_001, 2**31, 2**63, 2**64 - 1])
def test_header_length_that_is_none_is_refused(length, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b'{"__metadata__": {"format": "pt"}}   ')
    with pytest.raises(SurgeryError, match=rf"x\.safetensors is truncated or damaged: .*reads {length}"):
        read_header(path)


@pytest.mark.reliability("R16")
@pytest.mark.parametrize("part", [b'"t":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},', b"[],", b"{},", b'"":0,'])
def test_header_of_millions_of_values_is_refused_unparsed(part, tmp_path):
    path = tmp_path / "x.safetensors"
    times = 95_000_000 // len(part)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", times * len(part) + 1) + b"{" + part * times)
    tracemalloc.start()
    begin = time.monotonic()
    with pytest.raises(SurgeryError, match=r"values, at most 2000000 are read"):
        read_header(path)
    assert time.monotonic() - begin < 10.0
    assert tracemalloc.get_traced_memory()[1] < 110_000_000  # the header's own bytes, once
    tracemalloc.stop()


@pytest.mark.reliability("R16")
def test_largest_header_that_is_read_takes_seconds_and_less_than_a_gigabyte(tmp_path, full):
    if not full:
        pytest.skip("the long form alone")
    header = {f"model.layers.{number}.mlp.experts.weight": entry(0, 0, shape=[0, 1]) for number in range(180_000)}
    path = file_of(tmp_path / "x.safetensors", header)
    tracemalloc.start()
    begin = time.monotonic()
    assert len(read_header(path)) == 180_000
    print(f"{time.monotonic() - begin:.1f} s, {tracemalloc.get_traced_memory()[1] / 1e6:.0f} MB")
    assert time.monotonic() - begin < 60.0
    assert tracemalloc.get_traced_memory()[1] < 10**9
    tracemalloc.stop()


@pytest.mark.reliability("R16")
def test_what_is_said_of_a_damaged_header_is_short(tmp_path):
    path = file_of(tmp_path / "x.safetensors", {"a": entry(0, 2, shape=[2.5] * 60), "b" * 10_000: 3}, b"12")
    with pytest.raises(SurgeryError) as refused:
        read_header(path)
    assert len(str(refused.value)) < 600 + len(str(path))


def test_file_that_cannot_be_read_is_refused_by_name(tmp_path):
    for path in (tmp_path, tmp_path / "absent.safetensors"):
        with pytest.raises(SurgeryError, match=f"{path} cannot be read"):
            read_header(path)


@pytest.mark.reliability("R16")
@pytest.mark.parametrize("dtype", ["F32", "F64"])
@pytest.mark.parametrize("leading", [None, (4, 2), (3, 5)])
def test_file_that_shrinks_while_it_is_copied_is_refused_by_name(dtype, leading, tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.randn(4, 5)}, path)
    value = read_header(path)["a"]
    path.write_bytes(path.read_bytes()[: value.begin + 17])
    with pytest.raises(SurgeryError, match=r"a\.safetensors is truncated or damaged: it ended"):
        write_file(tmp_path / "b.safetensors", [Piece("a", value, dtype, leading)])


def test_constant_is_zeros_of_its_own_shape(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_file, "CHUNK_BYTES", 7)
    save_file({"a": torch.randn(3)}, tmp_path / "a.safetensors")
    value = read_header(tmp_path / "a.safetensors")["a"]
    pieces = [Piece("zero", None, "F32", (3, 2)), Piece("a", value, "F32"), Piece("half", None, "F16", (5,))]
    write_file(tmp_path / "b.safetensors", pieces)
    found = load_file(tmp_path / "b.safetensors")
    assert torch.equal(found["zero"], torch.zeros(3, 2)) and torch.equal(found["half"], torch.zeros(5).half())
    assert torch.equal(found["a"], load_file(tmp_path / "a.safetensors")["a"])


@given(data=st.data())
def test_ranges_to_copy_cover_every_piece_once_and_neighbours_are_one(data):
    files = [Path("a"), Path("b")]
    pieces, expected = [], []
    for number in range(data.draw(st.integers(1, 12))):
        file, size = data.draw(st.sampled_from(files)), data.draw(st.integers(0, 9))
        begin = data.draw(st.integers(0, 20))
        if data.draw(st.booleans()) and pieces and pieces[-1].source:
            file, begin = pieces[-1].source.file, pieces[-1].source.end
        source = tensor_file.TensorEntry(file, "U8", (size,), begin, begin + size)
        pieces.append(Piece(str(number), source if data.draw(st.integers(0, 4)) else None, "U8", (size,)))
    for piece in pieces:
        source = piece.source
        expected += [(source.file, source.begin + place) if source else None for place in range(piece.num_bytes)]
    at, found = 100, []
    todo = runs_of(pieces, at)
    for part in todo:
        if isinstance(part, Piece):
            assert part.source is None
            found += [None] * part.num_bytes
        else:
            assert part.at == at + len(found)
            found += [(part.file, part.begin + place) for place in range(part.num_bytes)]
    assert found == expected
    for one, other in pairwise(todo):
        if isinstance(one, Run) and isinstance(other, Run):
            assert (one.file, one.begin + one.num_bytes) != (other.file, other.begin)


def test_pieces_that_lie_side_by_side_are_copied_by_one_call(tmp_path, monkeypatch):
    tensors = {f"{number:02}": torch.randn(7) for number in range(20)}
    save_file(tensors, tmp_path / "a.safetensors")
    pieces = [Piece(f"new.{name}", value, "F32") for name, value in read_header(tmp_path / "a.safetensors").items()]
    calls, copy = [], tensor_file.copy_range
    monkeypatch.setattr(tensor_file, "copy_range", lambda *arguments: calls.append(arguments) or copy(*arguments))
    write_file(tmp_path / "b.safetensors", pieces[::-1])
    write_file(tmp_path / "c.safetensors", [piece for piece in pieces if piece.name != "new.10"])
    assert [num_bytes for *_, num_bytes in calls] == [20 * 28, 10 * 28, 9 * 28]
    found = load_file(tmp_path / "b.safetensors")
    assert all(torch.equal(found[f"new.{name}"], tensor) for name, tensor in tensors.items())


def test_conversion_of_a_large_tensor_holds_a_few_chunks_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_file, "CHUNK_BYTES", 2**16)
    save_file({"a": torch.randn(2**21)}, tmp_path / "a.safetensors")
    value = read_header(tmp_path / "a.safetensors")["a"]
    longest = max(len(content) for content in tensor_file.content_of(Piece("a", value, "BF16")))
    assert longest <= 2**15
    tracemalloc.start()
    write_file(tmp_path / "b.safetensors", [Piece("a", value, "BF16")])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * 2**16 < value.num_bytes / 10


SMALL_FLOATS = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
}


@pytest.mark.parametrize("dtype", sorted(SMALL_FLOATS))
def test_every_bit_pattern_of_a_small_float_is_judged_as_torch_does(dtype):
    width = SMALL_FLOATS[dtype].itemsize
    patterns = np.arange(2 ** (8 * width), dtype=f"<u{width}")
    values = torch.frombuffer(bytearray(patterns.tobytes()), dtype=SMALL_FLOATS[dtype]).to(torch.float32)
    for pattern, is_finite in zip(patterns[:: width**6], values.isfinite()[:: width**6], strict=True):
        counter = NotFinite(dtype)
        counter.add(pattern.tobytes())
        assert (counter.count, counter.num_values) == (0 if is_finite else 1, 1)
    counter = NotFinite(dtype)
    counter.add(patterns.tobytes())
    assert (counter.count, counter.num_values) == (int((~values.isfinite()).sum()), len(patterns))


@given(data=st.data())
@pytest.mark.parametrize(("dtype", "word"), [(torch.float32, "F32"), (torch.float64, "F64"), (torch.complex64, "C64")])
def test_values_that_are_not_finite_are_counted_however_the_bytes_are_cut(dtype, word, data):
    largest = torch.finfo(dtype).max
    pool = [0.0, -0.0, 1.5, largest, -largest, 5e-324, float("nan"), -float("nan"), float("inf"), -float("inf")]
    values = torch.tensor(data.draw(st.lists(st.sampled_from(pool), max_size=30)), dtype=dtype)
    content = values.numpy().tobytes()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=6)))
    counter = NotFinite(word)
    for begin, end in zip([0, *cuts], [*cuts, len(content)], strict=True):
        counter.add(content[begin:end])
    assert counter.count == int((~values.isfinite()).sum())


@pytest.mark.parametrize("dtype", ["I64", "U8", "BOOL", "F4", "F6_E2M3"])
def test_a_dtype_without_nan_has_none(dtype):
    counter = NotFinite(dtype)
    counter.add(b"\xff" * 64)
    assert counter.count == 0


def test_hash_of_a_file_is_that_of_its_bytes_and_names_the_tensor_that_is_not_finite(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_file, "CHUNK_BYTES", 7)
    path = tmp_path / "a.safetensors"
    tensors = {"a": torch.randn(9), "b": torch.randn(3).to(torch.bfloat16), "limit": torch.tensor(float("inf"))}
    save_file({**tensors, "empty": torch.zeros(0), "n": torch.arange(3)}, path)
    assert sha256_of_file(path, lambda name: name != "limit") == file_sha256(path)
    tensors["b"][random.Random(0).randrange(3)] = float("nan")
    save_file(tensors, path)
    with pytest.raises(SurgeryError, match=r"a\.safetensors: 1 of 3 values of tensor 'b' \(BF16\) are NaN or infinite"):
        sha256_of_file(path, lambda name: name != "limit")
    save_file({}, path)
    assert sha256_of_file(path, lambda name: True) == file_sha256(path)


@pytest.mark.reliability("R16")
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
