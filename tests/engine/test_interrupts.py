"""A Ctrl-C in the middle of what a call does: it leaves nothing half done, or an engine that says so."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from engines import make_engine, small

from gyrfalcon import Delta, Engine, RankDied, SamplingParams
from gyrfalcon.request import FinishReason, Token
from gyrfalcon.text.detokenizer import TextStream

PARAMS = SamplingParams(max_new_tokens=6, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small(tmp_path_factory.mktemp("model"), "7b")


@pytest.fixture
def engine(folder: Path) -> Iterator[Engine]:
    with make_engine(folder) as engine:
        yield engine


def ctrl_c(times: int = 1) -> None:
    for _ in range(times):
        signal.raise_signal(signal.SIGINT)


def interrupted(function: Callable[..., Any], call: int) -> Callable[..., Any]:
    """The function, with a Ctrl-C in its call of that number."""
    calls = 0

    def wrapped(*args: object) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            ctrl_c()
        return function(*args)

    return wrapped


@pytest.mark.parametrize("call", [1, 2])
def test_ctrl_c_while_prompts_are_queued_leaves_none_behind(engine: Engine, call: int) -> None:
    expected = engine.generate([30], PARAMS)
    engine._core.handle = interrupted(engine._core.handle, call)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        engine.generate([[30], [31], [32]], PARAMS)
    assert not engine.has_work
    assert not engine._core.scheduler.has_work
    assert engine.generate([30], PARAMS) == expected


def test_ctrl_c_takes_back_a_request_whose_number_nobody_got(engine: Engine) -> None:
    expected = engine.generate([30], PARAMS)
    engine._core.handle = interrupted(engine._core.handle, 1)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        engine.add([30], PARAMS)
    assert not engine.has_work
    assert not engine._core.scheduler.has_work
    assert engine.generate([30], PARAMS) == expected


def test_a_loop_of_steps_goes_on_after_ctrl_c_without_a_gap(engine: Engine) -> None:
    expected = engine.generate([30, 31], PARAMS)[0].output_ids
    engine._core.model_runner = interrupted(engine._core.model_runner, 3)
    engine.add([30, 31], PARAMS)
    tokens, num_interrupts = [], 0
    while engine.has_work:
        try:
            tokens += [delta.token.id for delta in engine.step() if delta.token is not None]
        except KeyboardInterrupt:
            num_interrupts += 1
    assert num_interrupts == 1
    assert tuple(tokens) == expected


def test_a_second_ctrl_c_while_tokens_are_handed_out_ends_the_engine(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step's other tokens would be missing in the texts of whoever goes on."""
    push, calls = TextStream.push, []

    def pushed(
        stream: TextStream, token: Token | None, reason: FinishReason | None, error: str | None
    ) -> Delta:
        calls.append(token)
        if len(calls) == 1:
            ctrl_c(2)
        return push(stream, token, reason, error)

    monkeypatch.setattr(TextStream, "push", pushed)
    for prompt in ([30], [31]):
        engine.add(prompt, PARAMS)
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    with pytest.raises(RankDied, match="got one that failed: KeyboardInterrupt"):
        engine.step()
