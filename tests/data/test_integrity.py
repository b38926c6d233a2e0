"""Shards that are not what was prepared are refused when they are opened, by name and byte."""

import hashlib
import json
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inheritune.data import integrity
from inheritune.data import shards as shards_module
from inheritune.data.integrity import BlockHashes
from inheritune.data.shards import Shards, prepare
from inheritune.errors import DataError

pytestmark = pytest.mark.reliability("R15")

BLOCK = 512
BIN, INDEX = "train-00001.bin", "decide-00000.idx"


@pytest.fixture(scope="module")
def prepared(text_file, tiny_shards, tmp_path_factory):
    """Shards of several files of several blocks each; not to be changed."""
    folder = tmp_path_factory.mktemp("integrity") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(integrity, "BLOCK_BYTES", BLOCK)
        patch.setattr(shards_module, "BLOCK_BYTES", BLOCK)
        tokenizer = tiny_shards.parent / "tokenizer"
        prepare([str(text_file)], folder, tokenizer=tokenizer, min_documents=120, shard_tokens=4000)
    return folder


@pytest.fixture
def folder(prepared, tmp_path):
    """A copy of the shards."""
    return Path(shutil.copytree(prepared, tmp_path / "data"))


def change_manifest(folder, change):
    """Write the manifest again with a change."""
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return manifest


def as_before_block_hashes(manifest):
    """What an earlier version wrote."""
    del manifest["block_bytes"], manifest["tokenizer"]["files"]
    for split in manifest["splits"].values():
        for shard in split["shards"]:
            del shard["sha256_at_blocks"], shard["index_sha256_at_blocks"]


def forge(folder, name, content):
    """Replace a file and its hash in a manifest without block hashes: only what the file means is left to be seen."""
    (folder / name).write_bytes(content)

    def change(manifest):
        as_before_block_hashes(manifest)
        for split in manifest["splits"].values():
            for shard in split["shards"]:
                for file, key in (("file", "sha256"), ("index", "index_sha256")):
                    if shard[file] == name:
                        shard[key] = hashlib.sha256(content).hexdigest()

    change_manifest(folder, change)


def harmless(content, place):
    """A byte of a token at or behind ``place`` whose lowest bit may flip and give another known token."""
    return next(at for at in range(place, len(content), 2) if content[at + 1] == 0)


def named_bytes(message):
    """The byte range that an error names: [begin, end)."""
    block = re.search(r"between byte (\d+) and byte (\d+) ", message)
    if block:
        return int(block[1]), int(block[2])
    exact = int(re.search(r", byte (\d+): ", message)[1])
    return exact, exact + 1


@pytest.mark.parametrize("name", [BIN, INDEX])
def test_a_flipped_bit_anywhere_is_named_by_file_and_byte(name, folder):
    content = (folder / name).read_bytes()
    assert len(content) > BLOCK
    draw, exact = random.Random(0), 0
    for place in [0, len(content) - 1, *(draw.randrange(len(content)) for _ in range(40))]:
        changed = bytearray(content)
        changed[place] ^= 1 << draw.randrange(8)
        (folder / name).write_bytes(changed)
        with pytest.raises(DataError) as refused:
            Shards.open(folder)
        message = str(refused.value)
        assert str(folder / name) in message
        begin, end = named_bytes(message)
        if end - begin > 1:
            assert begin <= place < end and begin % BLOCK == 0 and end - begin <= BLOCK
        else:  # the token itself, or the row of the index or the one behind it
            exact += 1
            assert 0 <= begin - (place // 16 * 16 if name == INDEX else place // 2 * 2) <= 16
    assert exact > 0


def test_the_first_of_several_changed_blocks_is_named(folder):
    content = bytearray((folder / BIN).read_bytes())
    for place in (5 * BLOCK, 3 * BLOCK + 8):
        content[harmless(content, place)] ^= 1
    (folder / BIN).write_bytes(content)
    with pytest.raises(DataError, match=rf"{BIN} was changed between byte {3 * BLOCK} and byte {4 * BLOCK} \(block 4 "):
        Shards.open(folder)


@pytest.mark.parametrize("name", [BIN, INDEX])
@pytest.mark.parametrize("verify", [True, False])
def test_a_cut_an_empty_and_a_longer_file_are_named_with_the_byte(name, verify, folder):
    content = (folder / name).read_bytes()
    for length in [0, 1, 2, 16, len(content) // 3, len(content) - 2, len(content) - 1]:
        (folder / name).write_bytes(content[:length])
        message = rf"{name} has {length} bytes, and the manifest says {len(content)}: it ends at byte {length}"
        with pytest.raises(DataError, match=message):
            Shards.open(folder, verify=verify)
    (folder / name).write_bytes(content + b"\0")
    with pytest.raises(DataError, match=rf"{name} has .* it was changed from byte {len(content)} on"):
        Shards.open(folder, verify=verify)


@pytest.mark.parametrize("name", [BIN, INDEX])
def test_a_missing_file_is_named(name, folder):
    (folder / name).unlink()
    with pytest.raises(DataError, match=rf"{name} is missing, and the manifest names it"):
        Shards.open(folder)


def test_a_shard_that_is_gone_from_the_manifest_too_is_noticed(folder):
    change_manifest(folder, lambda manifest: manifest["splits"]["train"]["shards"].pop())
    with pytest.raises(DataError, match=r"manifest\.json is damaged: .* shards of 'train' hold \d+ tokens, expected"):
        Shards.open(folder)


def test_a_dtype_that_does_not_fit_the_files_is_named(folder):
    change_manifest(folder, lambda manifest: manifest.update(dtype="uint32"))
    with pytest.raises(DataError, match=r"train-00000\.bin has .* its tokens seem to be uint16"):
        Shards.open(folder)


@pytest.mark.parametrize("dtype", ["float32", "int16", "object", "uint64", ["uint16"], 2, None])
def test_a_dtype_that_no_tokens_have_is_refused(dtype, folder):
    change_manifest(folder, lambda manifest: manifest.update(dtype=dtype))
    with pytest.raises(
        DataError, match=r"manifest\.json is damaged: it says dtype .*, and tokens are uint16 or uint32"
    ):
        Shards.open(folder, verify=False)


@pytest.mark.parametrize("change", [{"vocabulary_size": 70_000}, {"max_token_id": 65_536}])
def test_a_dtype_that_does_not_hold_the_vocabulary_is_refused(change, folder):
    change_manifest(folder, lambda manifest: manifest.update(change))
    with pytest.raises(DataError, match=r"dtype uint16, which holds ids up to 65535"):
        Shards.open(folder, verify=False)


def test_a_token_above_the_largest_is_named_by_its_byte(folder):
    tokens = np.fromfile(folder / BIN, dtype="<u2")
    tokens[1234] = 300
    forge(folder, BIN, tokens.tobytes())
    with pytest.raises(DataError, match=rf"{BIN}, byte 2468: token id 300 is above 256"):
        Shards.open(folder)


@pytest.mark.parametrize(
    ("row", "column", "value"),
    [(0, 0, 1), (0, 1, 1), (35, 0, 0), (35, 0, 10**6), (36, 1, 2**63), (3, 1, 0), (-1, 0, 3), (-1, 1, 10**9)],
)
def test_a_start_that_does_not_rise_or_points_outside_is_named_by_its_byte(row, column, value, folder):
    rows = np.fromfile(folder / INDEX, dtype="<u8").reshape(-1, 2)
    rows[row, column] = value
    forge(folder, INDEX, rows.tobytes())
    place = row % len(rows)
    with pytest.raises(DataError, match=rf"{INDEX}, byte {16 * place}: document {place} starts at token"):
        Shards.open(folder)


def test_an_index_that_does_not_end_with_its_shard_is_refused(folder):
    rows = np.fromfile(folder / INDEX, dtype="<u8").reshape(-1, 2)
    rows[-1] -= 1
    forge(folder, INDEX, rows.tobytes())
    with pytest.raises(DataError, match=rf"{INDEX}, byte {16 * (len(rows) - 1)}: "):
        Shards.open(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tokenizer: (tokenizer / "tokenizer.json").write_text("{}"), r"tokenizer\.json was changed"),
        (lambda tokenizer: (tokenizer / "tokenizer.json").unlink(), r"tokenizer\.json is missing"),
        (
            lambda tokenizer: (tokenizer / "tokenizer_config.json").write_text("{}"),
            r"tokenizer_config\.json was changed",
        ),
        (lambda tokenizer: (tokenizer / "added_tokens.json").write_text('{"the": 0}'), r"added_tokens\.json is new"),
        (shutil.rmtree, r"tokenizer_config\.json is missing|tokenizer\.json is missing"),
    ],
)
def test_a_tokenizer_that_changed_since_is_refused_by_file(change, said, folder):
    change(folder / "tokenizer")
    with pytest.raises(DataError, match=rf"{said} since the data were prepared"):
        Shards.open(folder)


def test_another_tokenizers_hash_in_the_manifest_is_refused(folder):
    change_manifest(folder, lambda manifest: manifest["tokenizer"].update(sha256=64 * "0"))
    with pytest.raises(DataError, match=r"tokenizer\.json was changed"):
        Shards.open(folder)


def test_shards_of_an_earlier_version_open_and_their_damage_is_named_by_file(folder):
    whole = Shards.open(folder)
    change_manifest(folder, as_before_block_hashes)
    old = Shards.open(folder)
    assert old.sha256 == whole.sha256
    content = bytearray((folder / BIN).read_bytes())
    content[harmless(content, len(content) // 4 * 2)] ^= 1
    (folder / BIN).write_bytes(content)
    with pytest.raises(DataError, match=rf"{BIN} has SHA-256 .*where in the file is not known"):
        Shards.open(folder)
    (folder / BIN).write_bytes(content[:-2])
    with pytest.raises(DataError, match=rf"{BIN} has .* it ends at byte"):
        Shards.open(folder)


def test_shards_of_an_earlier_version_are_held_to_their_tokenizer(folder):
    change_manifest(folder, as_before_block_hashes)
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"tokenizer\.json was changed since the data were prepared"):
        Shards.open(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["splits"]["train"]["shards"][0].pop("index_sha256"),
        lambda manifest: manifest["splits"]["train"]["shards"][0].update(file="../train-00000.bin"),
        lambda manifest: manifest["splits"]["train"]["shards"][0]["sha256_at_blocks"].pop(),
        lambda manifest: manifest["splits"]["watch"].update(shards=[]),
        lambda manifest: manifest["splits"]["watch"].update(shards=None),
        lambda manifest: manifest["splits"].update(watch=3),
        lambda manifest: manifest["splits"]["watch"]["shards"][0].update(tokens=1e3),
        lambda manifest: manifest["splits"]["watch"]["shards"][0].update(bytes=-1),
        lambda manifest: manifest.update(block_bytes=0),
        lambda manifest: manifest.update(block_bytes=24),
        lambda manifest: manifest.update(max_token_id="many"),
        lambda manifest: manifest.update(tokenizer=None),
        lambda manifest: manifest["tokenizer"].pop("sha256"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused_by_name(change, folder):
    change_manifest(folder, change)
    with pytest.raises(DataError, match=r"manifest\.json is damaged"):
        Shards.open(folder)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(data=st.data())
def test_a_changed_manifest_is_refused_or_gives_the_same_tokens(data, prepared, folder):
    content = bytearray((prepared / "manifest.json").read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.sampled_from(b'0159a",:{[ \n'))
    (folder / "manifest.json").write_bytes(content)
    try:
        found = Shards.open(folder)
    except DataError:
        return
    whole = Shards.open(prepared, verify=False)
    assert found.manifest["max_token_id"] >= 256
    for split in ("train", "watch", "decide"):
        one, other = found.sequence(split), whole.sequence(split)
        assert all(map(np.array_equal, one.tokens, other.tokens))
        assert all(map(np.array_equal, one.indices, other.indices))


def test_every_file_is_read_once_when_shards_are_opened(folder, monkeypatch):
    opened = []
    honest = Path.open

    def counting(path, *arguments, **settings):
        opened.append(path.name)
        return honest(path, *arguments, **settings)

    monkeypatch.setattr(Path, "open", counting)
    Shards.open(folder)
    assert {path.name for path in folder.glob("*.bin")} | {path.name for path in folder.glob("*.idx")} <= set(opened)
    assert len(opened) == len(set(opened))


@given(pieces=st.lists(st.binary(max_size=50)), block_bytes=st.sampled_from([16, 32]))
def test_the_hash_at_a_block_is_that_of_everything_up_to_its_end(pieces, block_bytes):
    hashes, content = BlockHashes(), b"".join(pieces)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(integrity, "BLOCK_BYTES", block_bytes)
        for piece in pieces:
            hashes.add(piece)
        found = hashes.at_blocks
    ends = [*range(block_bytes, len(content), block_bytes), len(content)]
    assert found == [hashlib.sha256(content[:end]).hexdigest() for end in ends]
    assert hashes.sha256 == found[-1]
