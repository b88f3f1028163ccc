"""The end of started ranks is waited for, but not without end."""

import time
from typing import cast

import pytest
from torch.multiprocessing.spawn import ProcessContext

from gyrfalcon.parallel import children


class Stuck:
    """A process that does not die: a driver holds it."""

    def __init__(self) -> None:
        self.was_killed = False

    def kill(self) -> None:
        self.was_killed = True

    def join(self, timeout: float | None = None) -> None:
        assert timeout is not None, "waited without end"
        time.sleep(timeout)


class Context:
    def __init__(self) -> None:
        self.processes = [Stuck() for _ in range(3)]


def test_processes_that_do_not_die_share_the_time_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "DEATH_SECONDS", 0.2)
    context, begin = Context(), time.monotonic()
    children.kill(cast("ProcessContext", context))
    assert all(one.was_killed for one in context.processes)
    assert 0.2 <= time.monotonic() - begin < 0.4
