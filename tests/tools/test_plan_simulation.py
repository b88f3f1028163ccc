"""benchmarks/plan_simulation.py: which pieces a resumed run keeps, and what it says of their errors."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from plan_simulation import is_in_time, kept_pieces, main, missing_seeds, parse, settings_of
from plan_simulation_errors import end_to_end, is_void, misses, summary
from plan_simulation_machine import Used, _busy_seconds

from gyrfalcon.engine.scheduler import StepLimits
from gyrfalcon.errors import UsageError
from gyrfalcon.measure.result import machine_facts
from gyrfalcon.plan.simulate import SimulatedSettings
from gyrfalcon.plan.simulate_measured import MeasuredSteps

ERRORS = {"first_token_p50": 0.1, "first_token_p90": -0.2}


def piece(seed: int, void: bool = False, error: float = 0.05, **settings: Any) -> dict[str, Any]:
    found = settings_of(parse(["--json", "x"]))
    return {
        "model": "nestling",
        "seed": seed,
        "settings": {**found, **settings},
        "seconds": 60.0,
        "void": void,
        "steps": {"median_error": error, "p90_error": 2 * error},
        "runs": [{"load": load, "errors": ERRORS} for load in (0.3, 0.9)],
    }


def written(path: Path, *pieces: dict[str, Any], **machine: str) -> Path:
    facts = {**machine_facts(), **machine}
    document = {"benchmark": "plan_simulation", "machine": facts, "pieces": pieces}
    path.write_text(json.dumps(document))
    return path


def test_void_pieces_are_measured_again(tmp_path: Path) -> None:
    file = written(tmp_path / "file.json", piece(0), piece(1, void=True), piece(3))
    kept = kept_pieces(file, parse(["--json", str(file)]))
    assert [one["seed"] for one in kept] == [0, 3]
    assert missing_seeds(kept, "nestling", 5) == [1, 2, 4]
    assert missing_seeds(kept, "A", 2) == [0, 1]


def test_pieces_of_another_run_are_refused(tmp_path: Path) -> None:
    args = parse(["--json", "x"])
    with pytest.raises(UsageError, match="other settings of nestling"):
        kept_pieces(written(tmp_path / "settings.json", piece(0, requests=7)), args)
    with pytest.raises(UsageError, match="other processor"):
        kept_pieces(written(tmp_path / "machine.json", piece(0), processor="abacus"), args)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(UsageError, match="a result of plan_simulation"):
        kept_pieces(tmp_path / "other.json", args)
    assert kept_pieces(tmp_path / "missing.json", args) == []


def test_a_file_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path / "file.json", piece(0))
    assert main(["--json", str(file)]) == 2
    assert "add --resume" in capsys.readouterr().err


def test_a_piece_begins_only_where_it_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    assert is_in_time([piece(0)], "nestling", begun=0.0, minutes=3)
    assert not is_in_time([piece(0)], "nestling", begun=0.0, minutes=2.5)
    assert is_in_time([piece(0)], "A", begun=0.0, minutes=2.5)  # never measured
    assert is_in_time([piece(0)], "nestling", begun=-1e6, minutes=None)


def test_medians_are_over_sound_seeds() -> None:
    found = summary([piece(0, error=0.04), piece(1, void=True, error=9.0), piece(2, error=0.06)])
    assert found["seeds"] == 2
    assert found["steps"]["median_error"] == pytest.approx(0.05)
    assert found["loads"]["0.3"] == {"first_token_p50": 0.1, "first_token_p90": 0.2}
    assert misses(found, seeds=2) == []
    assert misses(found, seeds=3) == ["2 sound seeds, wanted 3"]


def test_errors_beyond_their_limits_are_misses_up_to_80_percent_of_capacity() -> None:
    own = piece(0, error=0.13)
    own["runs"] = [
        {"load": load, "errors": {"time_per_token_p50": -0.16, "time_per_token_p90": 0.2}}
        for load in (0.8, 0.9)
    ]
    assert misses(summary([own]), seeds=1) == [
        "steps median_error 13.0%, wanted 10%",
        "steps p90_error 26.0%, wanted 25%",
        "load 0.8 time_per_token_p50 16.0%, wanted 15%",
    ]


def test_nothing_sound_is_a_miss() -> None:
    assert misses(summary([piece(0, void=True)]), seeds=1) == ["0 sound seeds, wanted 1"]


@pytest.mark.parametrize(
    ("capacity", "others", "void"),
    [
        ([10.0, 10.9], 0.04, False),
        ([10.0, 11.1], 0.0, True),
        ([10.0, 8.9], 0.0, True),
        ([10.0, 10.0], 0.06, True),
    ],
)
def test_a_machine_that_was_not_the_same_or_not_alone_makes_a_piece_void(
    capacity: list[float], others: float, void: bool
) -> None:
    assert is_void(capacity, others) is void


def test_what_others_use_is_all_but_our_own() -> None:
    stat = "cpu  100 20 30 7000 400 5 6 39 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n"
    ticks = os.sysconf("SC_CLK_TCK")
    assert _busy_seconds(stat) == pytest.approx(200 / ticks)
    processors = os.cpu_count() or 1
    before, after = Used(0.0, 10.0, 3.0), Used(10.0, 10.0 + 5 * processors, 3.0 + 4 * processors)
    assert before.others_share(after) == pytest.approx(0.1)


def test_latencies_that_come_from_the_step_times_have_no_error() -> None:
    """A request at a time: 10 ms a step, of which its first token takes one, and 2 ms outside."""
    times = MeasuredSteps((1,), (0.01,), 0.0, 0.0, 0.0)
    settings = SimulatedSettings(StepLimits(64, 64, 4), num_blocks=16)
    settings.check()
    rows = [
        {
            "due": float(number),
            "input_len": 8,
            "output_len": 5,
            "first_token_ms": 12.0,
            "time_per_token_ms": 10.0,
            "end_to_end_ms": 52.0,
        }
        for number in range(10)
    ]
    found = end_to_end(rows, settings, times, outside=2.0)
    assert all(abs(error) < 1e-6 for error in found["errors"].values())
    assert found["simulated"]["end_to_end_p50"] == pytest.approx(52.0)
