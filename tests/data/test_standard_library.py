import json

from inheritune.data.standard_library import LEFT_OUT, write_standard_library


def test_the_standard_library_is_real_text_without_its_tests(tmp_path):
    count = write_standard_library(tmp_path / "text.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "text.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == count > 300
    assert sum(len(row["text"]) for row in rows) > 5_000_000
    paths = [row["path"] for row in rows]
    assert paths == sorted(paths, key=lambda path: path.split("/"))
    assert "argparse.py" in paths
    assert not any(LEFT_OUT & set(path.split("/")[:-1]) for path in paths)
