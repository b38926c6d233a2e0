"""Items come back from their file as they were; a damaged file is told, and how to go on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inheritune.errors import EvaluationError
from inheritune.evaluation.harness import Item, Run
from inheritune.evaluation.item_file import read_run, write_run
from inheritune.evaluation.scorer import Answer, Tally

numbers = st.floats(allow_nan=False, allow_infinity=False)
items = st.builds(
    Item,
    part=st.text(),
    document=st.text(),
    prompt=st.text(),
    target=st.one_of(st.integers(), st.text()),
    choices=st.lists(st.text(), max_size=4).map(tuple),
    answers=st.lists(st.builds(Answer, numbers, st.booleans()), max_size=4).map(tuple),
    metrics=st.dictionaries(st.text(), st.one_of(numbers, st.tuples(numbers, numbers)), max_size=3),
    truths=st.lists(st.integers(), max_size=3).map(tuple),
)
tasks = st.dictionaries(st.text(), st.lists(items, max_size=5).map(tuple), max_size=3)


@given(tasks)
def test_a_run_comes_back_as_it_was(tmp_path_factory, found):
    path = tmp_path_factory.mktemp("run") / "tasks.jsonl.zst"
    run = Run(found, Tally(pairs=3, branches=True), {"piqa": 1.0})
    write_run(path, run)
    assert read_run(path) == run


def test_a_damaged_file_is_told_and_how_to_go_on(tmp_path):
    path = tmp_path / "tasks.jsonl.zst"
    item = Item("piqa", "d", "p", 0, ("a", "b"), (Answer(-1.0, True), Answer(-2.0, False)), {"acc": 1.0})
    write_run(path, Run({"piqa": (item,) * 50}, Tally(), {}))
    content = path.read_bytes()
    flipped = [content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :] for at in range(8, len(content), 7)]
    for damaged in (content[: len(content) // 2], b"", content[:20] + b"\x00" * 8 + content[28:], *flipped):
        path.write_bytes(damaged)
        with pytest.raises(EvaluationError, match=r"tasks\.jsonl\.zst is damaged.*Delete it and run the same command"):
            read_run(path)
