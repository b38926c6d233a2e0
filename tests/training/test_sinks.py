import io
import json

import pytest
from rich.console import Console

from inheritune.training.sinks import MetricsLog, StageLog, Terminal, status_line


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path, stage, steps, *, resumed=0):
    log = MetricsLog(path, stage, resumed_step=resumed)
    for step in steps:
        log.write("validation", {"step": step, "loss_nats": 3.0})
        log.write("train", {"step": step + 1, "loss_nats": 2.0})
    log.close()


def test_resuming_cuts_the_log_back_to_the_checkpoint_and_leaves_other_stages_alone(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, "round-1", range(3))
    write(path, "round-2", range(5))
    write(path, "round-2", range(2, 5), resumed=2)
    kept = [(line["stage"], line["kind"], line["step"]) for line in lines(path)]
    pairs = [pair for step in range(5) for pair in (("validation", step), ("train", step + 1))]
    assert kept == [("round-1", *pair) for pair in pairs[:6]] + [("round-2", *pair) for pair in pairs]


def test_a_line_torn_by_a_kill_is_cut_off(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, "round-1", range(2))
    with path.open("a") as file:
        file.write('{"stage": "round-1", "kin')
    write(path, "round-1", [2], resumed=2)
    assert [line["step"] for line in lines(path) if line["kind"] == "train"] == [1, 2, 3]


def test_a_stage_that_goes_back_writes_its_lines_anew(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = StageLog(path, "s", step=0, looks={0, 2}, board=None, record_event=lambda kind, message: None)
    for step in range(4):
        log.write("validation", {"step": step})
        log.write("train", {"step": step + 1})
    log.go_back(2)
    log.write("validation", {"step": 2})
    log.close()
    kept = [(line["kind"], line["step"]) for line in lines(path)]
    assert kept == [("validation", 0), ("train", 1), ("validation", 1), ("train", 2), ("validation", 2)]


def test_what_json_does_not_know_is_never_written(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", "s", resumed_step=0)
    with pytest.raises(ValueError, match="not JSON compliant"):
        log.write("train", {"step": 1, "loss_nats": float("nan")})
    log.close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_off_a_terminal_the_status_comes_as_plain_lines_now_and_then():
    out = io.StringIO()
    terminal = Terminal(Console(file=out, force_terminal=False))
    for number in range(100):
        terminal.show(f"status {number}")
    terminal.say("done")
    terminal.close()
    assert out.getvalue() == "status 0\ndone\n"


def test_a_status_line_has_every_number_with_its_unit():
    shown = status_line(
        label="round 2 | depth 9", tokens=41_900_000, total_tokens=200_000_000, loss_nats=3.4, validation_nats=3.388,
        target_nats=3.351, tokens_per_s=18_300,
    )  # fmt: skip
    assert shown == (
        "round 2 | depth 9 | 41.9M/200M tokens | loss 3.400 nats | val 3.388 nats | target 3.351 | gap +0.037 | "
        "18.3k tok/s | 2 h 23 min left"
    )
