"""benchmarks/plan_steps.py: steps of any load, measured again and again, and how far predictions miss."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from plan_steps import Bench, Point, Wanted, grid, main, measured, misses, report, unseen

from gyrfalcon import Engine
from gyrfalcon.errors import UsageError
from gyrfalcon.plan.simulate_measured import MeasuredSteps
from gyrfalcon.plan.step_load import StepLoad

STEPS = MeasuredSteps((1, 10, 490), (1e-3, 2e-3, 0.1), 1e-4, 1e-6, 0.0)


def test_what_is_predicted_was_not_fitted() -> None:
    fitted, others = grid(16, 490, 30), unseen(60, 16, 490, 30, seed=1)
    assert not set(fitted) & set(others)
    assert len(set(others)) == 60
    for kind in ("decoding", "prompts", "mixed"):
        assert sum(one.kind == kind for one in others) == 20
        assert sum(one.kind == kind for one in fitted) >= 12
    assert others != unseen(60, 16, 490, 30, seed=2)
    with pytest.raises(UsageError, match="ask for fewer"):
        unseen(60, 2, 20, 1, seed=1)


@pytest.mark.parametrize(
    ("sequences", "tokens", "blocks"), [(16, 496, 30), (4, 112, 6), (3, 40, 4)]
)
def test_no_load_is_more_than_an_engine_takes(sequences: int, tokens: int, blocks: int) -> None:
    for one in (*grid(sequences, tokens, blocks), *unseen(30, sequences, tokens, blocks, seed=3)):
        assert len(one.prompts) + len(one.blocks) <= sequences
        assert all(one.prompts)
        assert sum(one.prompts) + len(one.blocks) <= tokens
        assert all(1 <= count <= blocks for count in one.blocks)


def test_an_engine_takes_exactly_the_step_that_is_wanted() -> None:
    wanted = [
        Wanted((), (1, 3)),
        Wanted((20,), (2,)),
        Wanted((7, 30), ()),
        Wanted((5, 9), (1, 1, 3)),
    ]
    with Engine("nestling", max_len=80, max_sequences=5, threads=1) as engine:
        bench = Bench(engine, time.perf_counter, seed=1)
        assert (bench.most_tokens, bench.most_blocks) == (64, 3)
        points = measured(bench, wanted, rounds=3, limit=0.0)
        assert bench._load is not None
        assert bench._load in [one.load for one in wanted]
        assert not engine.has_work
    assert [one.wanted for one in points] == wanted
    assert all(len(one.seconds) == 3 and min(one.seconds) > 0 for one in points)
    assert wanted[3].load == StepLoad(14, 3, 14 + 18 + 18 + 50, 15 + 45 + 18 + 18 + 50)


def times_of(wanted: Wanted, *factors: float) -> Point:
    seconds = STEPS.seconds(wanted.load)
    return Point(wanted, [factor * seconds for factor in factors])


def test_a_load_counts_with_the_median_of_its_times() -> None:
    """Single times that are far off are the machine's, and told apart from errors of the prediction."""
    fitted = [times_of(one, 0.8, 1.0, 2.0) for one in grid(16, 490, 30)]
    others = [times_of(one, 0.5, 1.0, 1.25) for one in unseen(60, 16, 490, 30, seed=1)]
    found = report(fitted, others)
    assert (found["repeats"], found["predicted"]) == (3, 60)
    assert found["median_error"] < 0.02
    assert found["p90_error"] < 0.08
    assert found["spread_of_singles"]["p90"] >= 0.5
    assert set(found["kinds"]) == {"decoding", "prompts", "mixed"}
    assert [row["fitted"] for row in found["points"]] == [True] * len(fitted) + [False] * 60


def test_what_is_beyond_its_limit_is_a_miss() -> None:
    found: dict[str, Any] = {"median_error": 0.11, "p90_error": 0.2, "others": 0.2}
    assert misses({**found, "settings": {"clock": "thread"}}) == ["median_error 11.0%, wanted 10%"]
    [_, others] = misses({**found, "settings": {"clock": "wall"}})
    assert others == "20.0% of the processors used by others"


def test_models_of_a_file_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "steps.json"
    file.write_text(json.dumps({"models": {"A": {"median_error": 0.5}}}))
    words = ["--rounds", "1", "--max-len", "64", "--sequences", "2", "--unseen", "3"]
    main(["--json", str(file), "--models", "nestling", "--clock", "thread", *words])
    found = json.loads(file.read_text())["models"]
    assert found["A"] == {"median_error": 0.5}
    assert found["nestling"]["predicted"] == 3
    assert "single steps lie" in capsys.readouterr().out
