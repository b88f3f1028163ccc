"""What a process has loaded is left out of garbage collections, which would hold it up."""

import gc
import weakref
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from gyrfalcon.engine import worker
from gyrfalcon.engine.heap import freeze_heap

MANY = 10_000  # objects: fewer than torch alone has


class Model:
    """Refers to itself, as models do in many ways."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def unfrozen() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_what_is_there_is_frozen() -> None:
    freeze_heap()
    assert gc.get_freeze_count() > MANY


def test_what_an_earlier_model_left_is_collected() -> None:
    model = Model()
    gone = weakref.ref(model)
    freeze_heap()
    del model
    freeze_heap()
    assert gone() is None


def test_a_rank_is_frozen_before_its_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    num_frozen = []

    def begin(core: object) -> None:
        num_frozen.append(gc.get_freeze_count())
        raise EOFError

    monkeypatch.setattr(worker, "stepper", begin)
    group = SimpleNamespace(heartbeat=None)
    with pytest.raises(EOFError):
        worker._follow_messages(SimpleNamespace(), group)  # type: ignore[arg-type]
    assert num_frozen[0] > MANY
