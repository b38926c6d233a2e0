import pytest

from inheritune.errors import RecipeError
from inheritune.reporting.record import read_run


def test_a_folder_that_is_no_run_folder_is_refused_with_what_to_type(tmp_path):
    with pytest.raises(RecipeError, match="not a run folder") as caught:
        read_run(tmp_path)
    assert caught.value.exit_code == 2
    assert "inheritune report runs/NAME" in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="no such folder"):
        read_run(tmp_path / "nowhere")


def test_a_line_torn_by_a_kill_is_left_out_and_noted(make_run):
    run = make_run("stopped")
    whole = len(read_run(run).metrics)
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"stage": "round-1", "kind": "tr')
    record = read_run(run)
    assert len(record.metrics) == whole
    assert "metrics.jsonl: 1 damaged line left out." in record.notes


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_damaged_summary_is_refused_by_name(make_run, content):
    run = make_run("parity")
    (run / "summary.json").write_text(content, encoding="utf-8")
    with pytest.raises(RecipeError, match=r"summary\.json"):
        read_run(run)
