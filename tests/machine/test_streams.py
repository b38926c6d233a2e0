import io

import pytest

from inheritune.machine.streams import Unfailing


class Full(io.StringIO):
    def write(self, text):
        raise OSError(28, "No space left on device")

    def flush(self):
        raise BrokenPipeError


def test_what_cannot_be_written_is_lost_and_nobody_is_stopped():
    stream = Unfailing(Full())
    print("lost", file=stream, flush=True)
    with pytest.raises(BrokenPipeError):
        print("lost", file=Unfailing(Full(), BrokenPipeError), flush=True)


def test_what_can_be_written_is_written():
    stream = Unfailing(io.StringIO())
    print("kept", file=stream, flush=True)
    assert stream.getvalue() == "kept\n"
