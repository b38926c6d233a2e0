import io
import json
import pickle
import sys

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from inheritune.data.sources import HubDataset, find_parts, read_documents
from inheritune.errors import DataError


def pack(text: str | bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(text.encode() if isinstance(text, str) else text)


def texts_of(*sources, **settings):
    return [document.text for document in read_documents(list(sources), **settings)]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", b"one\r\nand two\n", ["one\r\nand two\n"]),
        ("a.txt.zst", pack("one\ntwo"), ["one\ntwo"]),
        ("a.jsonl", b'{"text": "one"}\n\n{"text": "zwei \\u00fc", "n": 1}', ["one", "zwei ü"]),
        ("a.jsonl.zst", pack('{"text": "one"}\n') + pack('{"text": "two"}\n'), ["one", "two"]),
        ("a.json.zst", pack('{"text": "one"}\n'), ["one"]),
        ("a.jsonl", b'\xef\xbb\xbf{"text": "one"}\n', ["one"]),
        ("a.jsonl", b"", []),
    ],
)
def test_every_file_type_gives_its_texts(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    assert texts_of(str(tmp_path / name)) == expected


def test_parquet_rows_are_read_in_order(tmp_path):
    table = pyarrow.table({"n": list(range(600)), "body": [f"text {index}" for index in range(600)]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert texts_of(str(tmp_path), text_field="body") == [f"text {index}" for index in range(600)]


def test_a_long_line_over_many_chunks_stays_one_text(tmp_path):
    text = "long ü" * 300_000
    (tmp_path / "a.jsonl.zst").write_bytes(pack(json.dumps({"text": text}, ensure_ascii=False) + '\n{"text": "x"}\n'))
    assert texts_of(str(tmp_path / "a.jsonl.zst")) == [text, "x"]


def test_a_folder_is_read_below_and_sorted_and_its_subfolders_are_domains(tmp_path, lines):
    lines(tmp_path / "wiki" / "b-00001.jsonl", ["2"])
    lines(tmp_path / "wiki" / "b-00000.jsonl", ["1"])
    lines(tmp_path / "books-00.jsonl", ["0"])
    lines(tmp_path / ".hidden" / "c.jsonl", ["no"])
    (tmp_path / "README.md").write_text("no")
    found = list(read_documents([str(tmp_path)]))
    assert [(each.text, each.domain) for each in found] == [("0", "books"), ("1", "wiki"), ("2", "wiki")]
    assert found == list(read_documents([str(tmp_path)]))


def test_a_glob_is_sorted_and_reads_no_file_twice(tmp_path, lines):
    lines(tmp_path / "x" / "b.jsonl", ["b"])
    lines(tmp_path / "x" / "a.jsonl", ["a"])
    assert texts_of(str(tmp_path / "x" / "*.jsonl")) == ["a", "b"]
    assert texts_of(str(tmp_path / "**")) == ["a", "b"]


def test_a_mapping_gives_the_domain_and_the_text_field(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "one"}\n')
    (document,) = read_documents({"path": str(tmp_path / "a.jsonl"), "name": "mine", "text_field": "body"})
    assert (document.text, document.domain) == ("one", "mine")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "one"}\n{"text": \n', r"a\.jsonl, line 2: this is not JSON"),
        (
            "a.jsonl",
            b'{"text": "one"}\n{"body": "x", "id": 1}\n',
            r"line 2: there is no field 'text'.*\['body', 'id'\]",
        ),
        ("a.jsonl", b'{"text": 5}\n', r"line 1: the field 'text' holds int, not a string"),
        ("a.jsonl", b'{"text": null}\n', r"line 1: the field 'text' holds NoneType"),
        ("a.jsonl", b'["x"]\n', r"line 1: expected an object with fields, got list"),
        ("a.jsonl", b'{"text": "ok"}\n{"text": "\xff"}\n', r"line 2: byte 10 \(0xff\) is not UTF-8"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', r"line 1: the text has a lone surrogate at character 0"),
        ("a.txt", b"\xfe\x00", r"a\.txt: byte 0 \(0xfe\) is not UTF-8"),
        ("a.jsonl.zst", b"no zstd at all", r"a\.jsonl\.zst: damaged zstd data"),
        ("a.jsonl.zst", pack('{"text": "one"}\n' * 50)[:-6], r"a\.jsonl\.zst: the zstd data ends in the middle"),
        ("a.parquet", b"no parquet at all", r"a\.parquet.*cannot be read as parquet"),
        ("a.csv", b"text\n", r"a\.csv: this file type is not read. Readable are .*\.parquet"),
    ],
)
def test_a_bad_file_is_refused_by_name_and_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        texts_of(str(tmp_path / name))


def test_a_parquet_table_without_the_column_names_the_columns(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"no field 'text'; the fields are \['body'\]"):
        texts_of(str(tmp_path / "a.parquet"))


def test_a_string_that_is_no_path_is_refused_with_both_readings():
    with pytest.raises(DataError, match=r"'nobody/nothing' is no file or folder here .* write hub:nobody/nothing"):
        texts_of("nobody/nothing")


def test_a_glob_without_a_match_and_a_folder_without_text_are_refused(tmp_path):
    with pytest.raises(DataError, match="no file matches"):
        texts_of(str(tmp_path / "*.jsonl"))
    with pytest.raises(DataError, match=r"has no readable file: there is nothing"):
        texts_of(str(tmp_path))
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(DataError, match=r"there is only \.csv"):
        texts_of(str(tmp_path))


@pytest.mark.parametrize("source", [{}, {"path": "a", "hub": "b"}, {"path": "a", "field": "b"}])
def test_a_mapping_that_is_not_clear_is_refused(source):
    with pytest.raises(DataError, match="exactly one of path and hub"):
        texts_of(source)
    with pytest.raises(DataError, match="which only a hub dataset knows"):
        texts_of({"path": "a", "split": "test"})


def test_no_source_is_refused():
    with pytest.raises(DataError, match="no data source is given"):
        texts_of()


def test_a_hub_name_means_a_hub_dataset_and_a_path_never_does(tmp_path, lines):
    path = lines(tmp_path / "a.jsonl", ["x"])
    assert find_parts([str(path), "hub:owner/name"])[1] == HubDataset("owner/name", "owner/name", "text")
    (part,) = find_parts([{"hub": "owner/name", "config": "en", "revision": "abc", "split": "test"}], "body")
    assert part == HubDataset("owner/name", "en", "body", "test", "abc", "en")


class FakeHub:
    """Stands in for the datasets library."""

    def __init__(self, rows, error=None):
        self.rows, self.error, self.calls = rows, error, []

    def load_dataset(self, *args, **settings):
        self.calls.append((args, settings))
        if self.error:
            raise self.error
        return self.rows


def test_a_hub_dataset_is_streamed_with_its_split_and_revision(monkeypatch):
    hub = FakeHub([{"text": "one"}, {"text": "two"}])
    monkeypatch.setitem(sys.modules, "datasets", hub)
    source = {"hub": "owner/name", "config": "en", "split": "test", "revision": "abc"}
    assert [(each.text, each.domain) for each in read_documents(source)] == [("one", "en"), ("two", "en")]
    assert hub.calls == [(("owner/name", "en"), {"split": "test", "revision": "abc", "streaming": True})]


def test_a_hub_dataset_that_fails_or_lacks_text_is_one_clear_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", FakeHub([], ConnectionError("offline")))
    with pytest.raises(DataError, match=r"the hub dataset 'owner/name' .* cannot be read: ConnectionError: offline"):
        texts_of("hub:owner/name")
    monkeypatch.setitem(sys.modules, "datasets", FakeHub([{"body": "x"}]))
    with pytest.raises(DataError, match=r"hub:owner/name, row 1: there is no field 'text'"):
        texts_of("hub:owner/name")


def test_an_uncompressed_stream_without_a_size_in_its_header_is_read(tmp_path):
    packed = io.BytesIO()
    with zstandard.ZstdCompressor().stream_writer(packed, closefd=False) as writer:
        writer.write(b'{"text": "one"}\n')
        writer.flush()
        writer.write(b'{"text": "two"}\n')
    (tmp_path / "a.jsonl.zst").write_bytes(packed.getvalue())
    assert texts_of(str(tmp_path)) == ["one", "two"]


class Planter:
    """Unpickled, it makes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


@pytest.mark.reliability("R17")
def test_no_pickle_is_opened_as_a_source_whatever_its_name(tmp_path):
    marker, source = tmp_path / "marker", tmp_path / "source"
    source.mkdir()
    content = pickle.dumps(Planter(marker))
    pickle.loads(content).close()
    assert marker.exists()  # the pickle is a harmful one
    marker.unlink()
    for name in ("data.pkl", "data.pickle", "cache.bin", "data.pt"):
        (source / name).write_bytes(content)
        with pytest.raises(DataError, match="this file type is not read"):
            texts_of(str(source / name))
    (source / "state.json").write_text("{}")
    with pytest.raises(DataError, match="has no readable file"):
        texts_of(str(source))
    for name in ("a.txt", "a.jsonl", "a.jsonl.zst", "a.parquet"):
        (source / name).write_bytes(content)
        with pytest.raises(DataError, match=name):
            texts_of(str(source / name))
    assert not marker.exists()


@pytest.mark.reliability("R17")
def test_a_pickle_inside_a_parquet_schema_is_not_opened(tmp_path):
    marker = tmp_path / "marker"
    extension = {
        "ARROW:extension:name": "arrow.py_extension_type",
        "ARROW:extension:metadata": pickle.dumps(Planter(marker)),
    }
    schema = pyarrow.schema([pyarrow.field("text", pyarrow.string(), metadata=extension)])
    pyarrow.parquet.write_table(pyarrow.table({"text": ["one"]}, schema=schema), tmp_path / "a.parquet")
    assert texts_of(str(tmp_path / "a.parquet")) == ["one"]
    assert not marker.exists()


@pytest.mark.reliability("R17")
def test_a_dataset_of_pickles_and_scripts_is_not_opened(tmp_path):
    marker, source = tmp_path / "marker", tmp_path / "source"
    source.mkdir()
    (source / "data.pkl").write_bytes(pickle.dumps(Planter(marker)))
    (source / "source.py").write_text(f"open({str(marker)!r}, 'w')\n")
    with pytest.raises(DataError, match="cannot be read"):
        texts_of(f"hub:{source}")
    assert not marker.exists()
