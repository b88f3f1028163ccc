"""Options of `serve` that are settings of its engine."""

import gc
from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import pytest

pytest.importorskip("uvicorn", reason="the extra serve is not installed")

from gyrfalcon.cli import serve_run
from gyrfalcon.cli.parser import parse
from gyrfalcon.cli.serve_run import _keys, served_config
from gyrfalcon.device.lookup import kind_of
from gyrfalcon.engine.engine import Engine
from gyrfalcon.errors import UsageError


@pytest.mark.parametrize(("words", "seconds"), [([], None), (["--step-target", "20"], 0.02)])
def test_the_engine_gets_the_step_target(words: list[str], seconds: float | None) -> None:
    assert served_config(parse(["serve", "nestling", *words])).step_target == seconds


@pytest.mark.parametrize(("words", "seconds"), [([], 10.0), (["--rank-timeout", "2.5"], 2.5)])
def test_the_engine_gets_the_rank_timeout(words: list[str], seconds: float) -> None:
    assert served_config(parse(["serve", "nestling", *words])).rank_timeout == seconds


@pytest.mark.parametrize(("words", "most"), [([], 0), (["--num-speculative-tokens", "6"], 6)])
def test_the_engine_gets_the_number_of_draft_tokens(words: list[str], most: int) -> None:
    config = served_config(parse(["serve", "nestling", *words]))
    assert config.num_speculative_tokens == most


def test_a_result_which_a_server_has_not_is_neither_shown_nor_taken(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        parse(["serve", "--help"])
    assert "--json" not in capsys.readouterr().out
    with pytest.raises(UsageError, match="serve without --json"):
        parse(["serve", "nestling", "--json", "-"])


@pytest.mark.parametrize("value", ["-1", "65", "some"])
def test_a_number_of_draft_tokens_out_of_bounds_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match="--num-speculative-tokens"):
        parse(["serve", "nestling", "--num-speculative-tokens", value])


@pytest.mark.parametrize(
    ("words", "most"),
    [([], (64, 192)), (["--max-sequences", "8", "--max-batch-tokens", "128"], (8, 128))],
)
def test_the_engine_gets_the_bounds_of_a_step(words: list[str], most: tuple[int, int]) -> None:
    """On a CPU."""
    config = served_config(parse(["serve", "nestling", *words]))
    assert (config.max_sequences, config.max_batch_tokens) == most


def test_steps_are_larger_on_accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_run, "kind_for", lambda word: kind_of("cuda"))
    assert served_config(parse(["serve", "nestling"])).max_batch_tokens == 512


@pytest.mark.parametrize("value", ["0", "3600001", "soon"])
def test_a_step_target_out_of_bounds_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match="--step-target"):
        parse(["serve", "nestling", "--step-target", value])


@pytest.mark.parametrize("key", ["schlüssel", "a\x01b"])
def test_keys_that_clients_send_differently_are_refused(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GYRFALCON_API_KEY", key)
    with pytest.raises(UsageError, match="API keys of printable ASCII"):
        _keys(parse(["serve", "nestling"]))


def test_full_garbage_collections_leave_out_what_has_been_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    num_frozen = []

    def served(*args: object) -> None:
        on_ready = cast("Callable[[Engine], None]", args[-1])
        on_ready(cast("Engine", SimpleNamespace(description="a model", notes=())))
        num_frozen.append(gc.get_freeze_count())

    monkeypatch.setattr(serve_run, "run_server", served)
    try:
        assert serve_run.run(parse(["serve", "nestling", "--port", "0"])) == 0
    finally:
        gc.unfreeze()
    assert num_frozen[0] > 100_000
