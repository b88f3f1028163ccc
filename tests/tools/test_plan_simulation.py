"""benchmarks/plan_simulation.py: which pieces a resumed run keeps, and what it says of their errors."""

import json
import os
import time
from pathlib import Path
from typing import Any

import plan_simulation
import pytest
from cpu_peers_model import VOCAB_SIZE, _write_tokenizer
from plan_simulation import (
    is_in_time,
    kept_pieces,
    kept_raw,
    main,
    missing_seeds,
    parse,
    piece_of,
    raw_path,
    settings_of,
)
from plan_simulation_errors import (
    at_pace,
    end_to_end,
    errors_of_steps,
    is_moved,
    is_void,
    misses,
    pace,
    summary,
)
from plan_simulation_machine import Used, _busy_seconds
from plan_simulation_raw import OpenLoop, Raw
from plan_simulation_server import give_words
from tokenizers import Tokenizer

from gyrfalcon.engine.scheduler import StepLimits
from gyrfalcon.errors import UsageError
from gyrfalcon.measure.result import machine_facts
from gyrfalcon.plan.simulate import SimulatedSettings
from gyrfalcon.plan.simulate_measured import MeasuredSteps, TimedStep
from gyrfalcon.plan.step_load import decoding_load, load_of

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
        "runs": [{"load": load, "void": False, "errors": ERRORS} for load in (0.3, 0.9)],
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


def test_folders_of_results_are_made_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, steps = tmp_path / "new" / "raw", tmp_path / "steps"

    def measure(*_: object) -> list[object]:
        assert raw.is_dir()
        assert steps.is_dir()
        return []

    monkeypatch.setattr(plan_simulation, "measure", measure)
    assert main(["--json", str(tmp_path / "x"), "--raw", str(raw), "--steps", str(steps)]) == 1


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
    errors = {"first_token_p50": 0.1, "first_token_p90": 0.2}
    assert found["loads"]["0.3"] == {"seeds": 2, "errors": errors}
    assert misses(found, seeds=2) == []
    assert misses(found, seeds=3) == ["2 sound seeds, wanted 3"]


def test_errors_beyond_their_limits_are_misses_up_to_80_percent_of_capacity() -> None:
    own = piece(0, error=0.13)
    errors = {"time_per_token_p50": -0.16, "time_per_token_p90": 0.2}
    own["runs"] = [{"load": load, "void": False, "errors": errors} for load in (0.8, 0.9)]
    assert misses(summary([own]), seeds=1) == ["load 0.8 time_per_token_p50 16.0%, wanted 15%"]


def test_a_run_during_which_the_machine_s_pace_moved_counts_for_nothing() -> None:
    moved = piece(1)
    moved["runs"][0] |= {"void": True, "errors": {"first_token_p50": 9.0, "first_token_p90": 9.0}}
    found = summary([piece(0), moved])
    assert found["loads"]["0.3"]["errors"] == {"first_token_p50": 0.1, "first_token_p90": 0.2}
    assert misses(found, seeds=2) == ["load 0.3 1 sound seeds, wanted 2"]
    assert [is_moved(one) for one in ((1.0, 1.09), (1.09, 1.0), (1.0, 1.11), (1.11, 1.0))] == [
        False,
        False,
        True,
        True,
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


def test_every_token_of_a_made_model_has_a_text(tmp_path: Path) -> None:
    _write_tokenizer(tmp_path)
    give_words(tmp_path / "tokenizer.json")
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    assert all(tokenizer.decode([number]) for number in (12, 300, 40_000, VOCAB_SIZE - 1))
    assert tokenizer.encode("ab cd").tokens == ["a", "b", "Ġ", "c", "d"]


STEPS = MeasuredSteps((1, 64), (0.01, 0.05), 0.0, 0.0, 0.0, arrival_seconds=0.004)


def timed(*loads: Any, arrivals: int = 0) -> list[TimedStep]:
    added = arrivals * STEPS.arrival_seconds
    return [TimedStep(load, STEPS.seconds(load) + added, arrivals) for load in loads]


def test_steps_in_which_requests_arrive_are_predicted_with_what_these_add() -> None:
    steps = timed(decoding_load(1, 50), load_of([range(32)]), arrivals=2)
    assert errors_of_steps(steps, STEPS) == pytest.approx([0, 0])
    late = [TimedStep(one.load, one.seconds) for one in steps]
    assert min(errors_of_steps(late, STEPS)) > 0.1


def test_a_loop_is_predicted_at_the_pace_of_the_machine_around_it() -> None:
    loads = [decoding_load(n, 20 * n) for n in range(1, 9)]
    slower = [one._replace(seconds=1.5 * one.seconds) for one in timed(*loads, arrivals=1)]
    assert pace([timed(*loads), slower], STEPS) == pytest.approx([1, 1.5])
    assert errors_of_steps(slower, at_pace(STEPS, 1.5)) == pytest.approx([0] * 8)


def raw_of(moved: float) -> Raw:
    rows = [
        {
            "due": float(number),
            "input_len": 8,
            "output_len": 5,
            "first_token_ms": 1100 * STEPS.seconds(load_of([range(8)])) + 4.4 + 2,
            "time_per_token_ms": 1100 * STEPS.seconds(decoding_load(1, 10)),
            "end_to_end_ms": 60.0,
        }
        for number in range(10)
    ]
    loads = [decoding_load(n, 20 * n) for n in range(1, 9)] + [load_of([range(8)])]
    steps = timed(*loads * 2) + timed(*loads, arrivals=1)
    settings = SimulatedSettings(StepLimits(64, 64, 4), num_blocks=16)
    around = [steps, [one._replace(seconds=1.21 * one.seconds) for one in steps]]
    opened = [OpenLoop(0.3, rows, [one._replace(seconds=1.1 * one.seconds) for one in steps])]
    return Raw(9.0, (5.0, 5.0 * moved), 0.01, around, [rows], opened, settings)


def test_figures_are_computed_again_from_what_was_kept(tmp_path: Path) -> None:
    raw = raw_of(moved=1.01)
    raw.write(raw_path(tmp_path, "nestling", 2))
    kept = kept_raw(tmp_path, "nestling", 2)
    assert kept == raw
    found = piece_of("nestling", 2, parse(["--json", "x"]), kept)
    assert (found["model"], found["seed"], found["void"]) == ("nestling", 2, False)
    assert found["steps"]["p90_error"] < 0.01
    assert found["outside_ms"] == pytest.approx(2.0, abs=0.1)
    [run] = found["runs"]
    assert run["void"]
    before, after = run["pace"]
    assert after / before == pytest.approx(1.21)
    assert abs(run["errors"]["first_token_p50"]) < 0.01


def test_what_was_kept_of_a_void_piece_is_measured_again(tmp_path: Path) -> None:
    raw_of(moved=1.2).write(raw_path(tmp_path, "nestling", 0))
    assert kept_raw(tmp_path, "nestling", 0) is None
    assert kept_raw(tmp_path, "nestling", 1) is None
    assert kept_raw(None, "nestling", 0) is None
