import hashlib

import pytest
import torch
from safetensors.torch import load_file, save_file

from inheritune.errors import SurgeryError
from inheritune.surgery import tensor_file
from inheritune.surgery.tensor_check import hash_written
from inheritune.surgery.tensor_file import Piece, read_header, write_file


def entries(path, **tensors):
    save_file(tensors, path)
    return read_header(path)


def written(path, *pieces):
    write_file(path, pieces)
    return {path: list(pieces)}


@pytest.mark.parametrize("chunk_bytes", [7, 64, 2**20])
@pytest.mark.parametrize("dtype", ["F32", "BF16", "F64"])
@pytest.mark.parametrize("leading", [None, (4, 3), (2, 7), (5, 2)])
def test_hash_is_that_of_the_bytes_in_the_file_however_they_were_made(
    leading, dtype, chunk_bytes, tmp_path, monkeypatch
):
    monkeypatch.setattr(tensor_file, "CHUNK_BYTES", chunk_bytes)
    value = entries(tmp_path / "a.safetensors", before=torch.ones(3), a=torch.randn(5, 7))["a"]
    pieces = [Piece("new", value, dtype, leading, must_be_finite=True), Piece("zero", None, dtype, (3, 5))]
    hashes = hash_written(written(tmp_path / "b.safetensors", *pieces))
    found = load_file(tmp_path / "b.safetensors")
    assert set(hashes) == {"new", "zero"}
    for name, tensor in found.items():
        assert hashes[name] == hashlib.sha256(tensor.view(torch.uint8).numpy().tobytes()).hexdigest()
    rows, columns = leading or (5, 7)
    expected = load_file(tmp_path / "a.safetensors")["a"][:rows, :columns].to(tensor_file.FLOATS[dtype])
    assert torch.equal(found["new"], expected)


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize("leading", [None, (4, 3), (2, 7)])
@pytest.mark.parametrize("place", [0, -1])
def test_byte_that_reads_back_otherwise_is_refused_by_tensor(place, leading, dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_file, "CHUNK_BYTES", 16)
    value = entries(tmp_path / "a.safetensors", a=torch.randn(5, 7))["a"]
    files = written(tmp_path / "b.safetensors", Piece("new", value, dtype, leading))
    new = read_header(tmp_path / "b.safetensors")["new"]
    content = bytearray((tmp_path / "b.safetensors").read_bytes())
    content[new.begin if place == 0 else new.end - 1] ^= 1
    (tmp_path / "b.safetensors").write_bytes(content)
    with pytest.raises(SurgeryError, match="tensor 'new' reads back otherwise"):
        hash_written(files)
    assert hash_written(files, compare=False)["new"] == hashlib.sha256(content[new.begin : new.end]).hexdigest()


def test_constant_that_is_not_zero_in_the_file_is_refused(tmp_path):
    files = written(tmp_path / "b.safetensors", Piece("zero", None, "F32", (3,)))
    content = (tmp_path / "b.safetensors").read_bytes()
    (tmp_path / "b.safetensors").write_bytes(content[:-1] + b"1")
    with pytest.raises(SurgeryError, match="tensor 'zero' reads back otherwise"):
        hash_written(files)


@pytest.mark.parametrize("name", ["a", "b"])
def test_file_without_the_tensor_is_refused(name, tmp_path):
    value = entries(tmp_path / "a.safetensors", a=torch.randn(5))["a"]
    files = written(tmp_path / "b.safetensors", Piece("a", value, "F32"))
    save_file({"a": torch.zeros(4)} if name == "a" else {"b": torch.zeros(5)}, tmp_path / "b.safetensors")
    with pytest.raises(SurgeryError, match="tensor 'a' reads back otherwise"):
        hash_written(files)


def test_a_piece_that_must_be_finite_is_refused_otherwise(tmp_path):
    value = entries(tmp_path / "a.safetensors", a=torch.tensor([1.0, 1e6, float("inf"), float("nan")]))["a"]
    hash_written(written(tmp_path / "b.safetensors", Piece("a", value, "F32")))
    for file, dtype in [("c.safetensors", "F32"), ("d.safetensors", "F16")]:
        files = written(tmp_path / file, Piece("a", value, dtype, must_be_finite=True))
        for compare in (True, False):
            with pytest.raises(
                SurgeryError, match=r"a\.safetensors: 2 of 4 values of tensor 'a' \(F32\) are NaN or infinite\. "
            ):
                hash_written(files, compare=compare)
    value = entries(tmp_path / "a.safetensors", a=torch.tensor([1.0, 1e6]))["a"]
    with pytest.raises(SurgeryError, match=r"1 of 2 values of tensor 'a' \(F32\) .* once converted; leave dtype out"):
        hash_written(written(tmp_path / "e.safetensors", Piece("a", value, "F16", must_be_finite=True)))
