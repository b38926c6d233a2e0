import os
import signal

import pytest

from inheritune.errors import Stopped
from inheritune.machine.stop import StopRequest, stop_on_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_and_the_second_interrupts(number):
    before = signal.getsignal(number)
    with stop_on_signals() as stop:
        os.kill(os.getpid(), number)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_nothing_happens_until_a_stop_is_asked_for():
    stop = StopRequest()
    stop.check()
    stop.requested = True
    with pytest.raises(Stopped, match="Run the same command to go on") as stopped:
        stop.check()
    assert stopped.value.exit_code == 4
