import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inheritune.errors import SurgeryError
from inheritune.surgery.cut import plan_cut
from inheritune.surgery.folder import check_files
from inheritune.surgery.scores import read_scores, scores_for


@given(scores=st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=12), order=st.randoms())
def test_scores_are_the_same_from_a_table_a_list_and_an_object(scores, order, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scores")
    rows = [f"{score!r},word,{layer}" for layer, score in enumerate(scores)]
    order.shuffle(rows)
    (folder / "a.csv").write_text("\n".join(["Score, note ,LAYER", *rows]) + "\n\n", encoding="utf-8-sig")
    (folder / "b.json").write_text(json.dumps(scores))
    (folder / "c.json").write_text(json.dumps({str(layer): score for layer, score in enumerate(scores)}))
    assert read_scores(folder / "a.csv") == dict(enumerate(scores))
    assert read_scores(folder / "b.json") == read_scores(folder / "c.json") == dict(enumerate(scores))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "layer,score\n0,1\n0,2\n", "scores layer 0 twice"),
        ("a.json", '{"1": 1, "1": 2}', "scores layer 1 twice"),
        ("a.csv", "layer,score\n0,nan\n", "gives layer 0 the score nan"),
        ("a.json", "[1, NaN]", "gives layer 1 the score nan"),
        ("a.json", "[1, Infinity]", "gives layer 1 the score inf"),
        ("a.csv", "index,value\n0,1\n", "columns index, value, and not 'layer' once"),
        ("a.csv", "", "columns none"),
        ("a.csv", "layer,score\n0\n", "row 2 has 1 of 2 columns"),
        ("a.csv", "layer,score\n-1,3\n", "row 2 names the layer '-1'"),
        ("a.csv", "layer,score\n1,high\n", "row 2 has the score 'high'"),
        ("a.json", "3", "neither a list nor an object"),
        ("a.json", "[[0, 1]]", "layer 0 has the score"),
        ("a.json", "[true]", "layer 0 has the score True"),
        ("a.json", "[", "cannot be used"),
        ("a.json", b"\xff\xfe", "cannot be used"),
        ("a.txt", "0 1", "neither .csv nor .json"),
        ("missing.csv", None, "there is no file of scores"),
    ],
)
def test_a_file_that_gives_no_rank_is_refused_with_the_place_and_the_form(name, content, said, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SurgeryError) as refused:
        read_scores(tmp_path / name)
    assert said in str(refused.value)
    assert str(tmp_path / name) in str(refused.value)


@pytest.mark.parametrize("layers", [3, "half", "0-2", [0, 1], "nonsense"])
def test_only_a_selection_that_names_a_file_reads_one(layers):
    assert scores_for(layers) is None


def test_a_file_of_scores_decides_what_is_inherited(save_reference, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my scores.csv").write_text("layer,score\n0,0.5\n1,0.1\n2,0.3\n3,0.9\n")
    cut = plan_cut(check_files(save_reference("llama", tmp_path / "reference")), "best-2 my scores.csv")
    assert cut.layers == (0, 3)
