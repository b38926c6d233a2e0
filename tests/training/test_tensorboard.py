import sys
from types import ModuleType

import pytest
from tensorboard.backend.event_processing import event_accumulator

from inheritune.training.tensorboard import TensorBoard


class FakeWriter:
    made = []  # noqa: RUF012
    fails_at = None

    def __init__(self, folder, purge_step=None):
        self.folder, self.purge_step, self.written, self.closed = folder, purge_step, [], False
        if FakeWriter.fails_at == "open":
            raise OSError("no space left")
        FakeWriter.made.append(self)

    def add_scalar(self, name, value, step):
        if FakeWriter.fails_at == "write":
            raise OSError("no space left")
        self.written.append((name, value, step))

    def close(self):
        if FakeWriter.fails_at == "close":
            raise OSError("no space left")
        self.closed = True


@pytest.fixture
def writer(monkeypatch):
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = FakeWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    FakeWriter.made, FakeWriter.fails_at = [], None
    return FakeWriter


@pytest.fixture
def events():
    return []


def open_board(folder, events, resumed_step=0):
    return TensorBoard(folder, resumed_step, lambda *event: events.append(event))


def test_numbers_are_written_with_their_step_and_words_are_not(writer, events, tmp_path):
    board = open_board(tmp_path, events, resumed_step=7)
    board.write("train", {"step": 8, "loss_nats": 2.5, "energy_j": None, "note": "text"})
    board.close()
    assert writer.made[0].written == [("train/step", 8, 8), ("train/loss_nats", 2.5, 8)]
    assert (writer.made[0].purge_step, writer.made[0].closed, events) == (8, True, [])


def test_what_was_taken_back_to_the_very_start_is_hidden_too(writer, events, tmp_path):
    open_board(tmp_path, events, resumed_step=0)
    assert writer.made[0].purge_step == 1


@pytest.mark.parametrize("where", ["open", "write", "close"])
def test_a_failure_is_told_once_and_ends_the_sink_alone(where, writer, events, tmp_path):
    writer.fails_at = where
    board = open_board(tmp_path, events)
    for step in (1, 2, 3):
        board.write("train", {"step": step, "loss_nats": 1.0})
    board.close()
    board.close()
    assert [kind for kind, _ in events] == ["tensorboard"]
    assert "no space left" in events[0][1]
    assert "metrics.jsonl" in events[0][1]


def test_without_the_package_it_says_how_to_get_it(monkeypatch, events, tmp_path):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    board = open_board(tmp_path, events)
    board.write("train", {"step": 1, "loss_nats": 1.0})
    board.close()
    assert len(events) == 1
    assert "pip install 'inheritune[tensorboard]'" in events[0][1]


@pytest.mark.parametrize("fails_at", [None, "write"])
def test_a_run_is_bitwise_the_same_with_a_board_that_works_or_fails(fails_at, writer, lab):
    writer.fails_at = fails_at
    lab.run("without")
    lab.run("with", recipe={"tensorboard": True})
    assert bool(fails_at) == any(kind == "tensorboard" for kind, _ in lab.events)
    lab.assert_equal("without", "with")
    if not fails_at:
        names = {name for name, _, _ in writer.made[0].written}
        assert {"train/loss_nats", "train/utilisation", "validation/loss_nats"} <= names


def test_the_real_package_writes_what_tensorboard_reads(events, tmp_path):
    board = open_board(tmp_path, events)
    for step in (1, 2):
        board.write("train", {"step": step, "loss_nats": 3.0 - step})
    board.close()
    open_board(tmp_path, events, resumed_step=1).close()  # the second step is taken back
    assert not events
    reader = event_accumulator.EventAccumulator(str(tmp_path)).Reload()
    assert [(each.step, each.value) for each in reader.Scalars("train/loss_nats")] == [(1, 2.0)]


def test_a_real_writer_whose_folder_is_taken_ends_the_sink_alone(events, tmp_path):
    taken = tmp_path / "taken"
    taken.write_text("a file")
    board = open_board(taken, events)
    board.write("train", {"step": 1, "loss_nats": 1.0})
    board.close()
    assert [kind for kind, _ in events] == ["tensorboard"]
