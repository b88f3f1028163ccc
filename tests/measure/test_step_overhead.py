"""benchmarks/step_overhead.py on a few steps of nestling: its parts make a step, its ratios are of pairs."""

import json
import sys
from importlib import import_module
from pathlib import Path

import pytest

step_overhead = import_module("step_overhead")
Case, Row = step_overhead.Case, step_overhead.Row
PARTS = ("schedule", "build", "sample", "commit", "deliver")


def row(count: int = 1, **ms: float) -> object:
    """A row whose other columns are 1 ms."""
    return Row(Case(count, "greedy"), {**dict.fromkeys(step_overhead.COLUMNS, 1.0), **ms})


@pytest.mark.parametrize("clock", ["wall", "thread"])
def test_a_step_is_the_model_and_the_hosts_parts_and_little_else(clock: str) -> None:
    cases = [Case(count, sampling) for count in (1, 3) for sampling in ("greedy", "top_k")]
    rows = step_overhead.measure(cases, 3, clock)
    assert [one.case for one in rows] == cases
    for one in rows:
        parts = [one.ms[part] for part in PARTS]
        assert min(parts) > 0
        assert one.ms["model"] > 0
        assert 0 < one.ms["host"] < one.ms["step"]
        assert one.tokens_per_second == pytest.approx(1000 * one.case.count / one.ms["step"])


def test_the_parts_of_each_step_are_no_more_than_the_step() -> None:
    with step_overhead.Engine("nestling", device="cpu", max_len=128) as engine:
        steps = step_overhead.timed_steps(engine, Case(2, "top_k"), 4, step_overhead.CLOCKS["wall"])
        assert not engine.has_work
    assert len(steps) == 4
    for step in steps:
        assert step["host"] == step["step"] - step["model"]
        assert sum(step[part] for part in PARTS) <= step["host"]


def test_what_was_watched_is_as_before() -> None:
    with step_overhead.Engine("nestling", device="cpu", max_len=128) as engine:
        build = step_overhead.Batch.build
        with step_overhead.watched(engine, step_overhead.CLOCKS["wall"]):
            assert step_overhead.Batch.build != build
        assert step_overhead.Batch.build == build
        assert "model_runner" in vars(engine._core)


def test_a_comparison_is_of_the_rounds_pair_by_pair() -> None:
    old = [[row(step=4.0 * speed, host=2.0 * speed)] for speed in (1, 2, 3, 4, 5, 6)]
    new = [[row(step=2.0 * speed, host=0.5 * speed)] for speed in (1, 2, 3, 4, 5, 6)]
    shown = step_overhead.comparison(old, new)
    assert "step 2.00 (2.00-2.00)  host 4.00 (4.00-4.00)" in shown


def test_the_table_shows_the_medians_over_all_rounds() -> None:
    rounds = [[row(64, step=step)] for step in (1.0, 2.0, 16.0)]
    assert "2.000" in (shown := step_overhead.table(step_overhead.typical(rounds)))
    assert "32000 tokens/s" in shown


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["a", "b", "c"], "wanted one or two Pythons, got 3"),
        (["a", "b", "--rounds", "5"], "wanted --rounds of at least 6 to compare, got 5"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        step_overhead.main(argv)
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_in_another_process_prints_its_table_and_writes_every_round(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "overhead.json"
    argv = [sys.executable, "--counts", "1,2", "--steps", "2", "--rounds", "2", "--json", str(file)]
    assert step_overhead.main(argv) == 0
    [checkout] = json.loads(file.read_text("utf-8"))["checkouts"]
    cases = [(row["case"]["count"], row["case"]["sampling"]) for row in checkout["rounds"][1]]
    assert cases == [(1, "greedy"), (1, "top_k"), (2, "greedy"), (2, "top_k")]
    assert len(checkout["rounds"]) == 2
    assert capsys.readouterr().out.count("tokens/s") == 4
