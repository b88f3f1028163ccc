"""Step times fitted to measured ones."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from simulations import ROOMY, ended_requests

from gyrfalcon.engine.scheduler import StepLimits
from gyrfalcon.errors import UsageError
from gyrfalcon.plan.simulate import SimulatedSettings
from gyrfalcon.plan.simulate_measured import (
    MeasuredSteps,
    Timed,
    TimedStep,
    _not_negative,
    fit_single_steps,
    fit_steps,
    read_measured,
    write_steps,
)
from gyrfalcon.plan.simulate_run import Simulation
from gyrfalcon.plan.step_load import StepLoad, decoding_load, load_of
from gyrfalcon.plan.trace import TraceRequest

TRUE = MeasuredSteps((1, 8, 64, 512), (0.02, 0.03, 0.05, 0.4), 1e-4, 2e-7, 3e-8)
SPEED = SimulatedSettings(StepLimits(2048, 512, 64), 128)


def drawn_loads(seed: int, number: int) -> list[StepLoad]:
    draw = random.Random(seed)
    found = []
    for _ in range(number):
        contexts = [draw.randint(10, 2000) for _ in range(draw.choice([1, 2, 8, 40]))]
        start = draw.randrange(0, 1500)
        prompts = [range(start, start + draw.choice([32, 100, 472]))] * draw.choice([0, 1])
        found.append(load_of(prompts, contexts))
    return found


def test_steps_like_those_measured_are_found_again(tmp_path: Path) -> None:
    path = tmp_path / "steps.json"
    loads = drawn_loads(1, 120) + [decoding_load(n, 100 * n) for n in (1, 8, 64, 512)]
    write_steps(path, {"model": "any"}, [TimedStep(load, TRUE.seconds(load)) for load in loads])
    found = read_measured(str(path), SPEED)
    errors = [found.seconds(load) / TRUE.seconds(load) - 1 for load in drawn_loads(2, 200)]
    assert np.median(np.abs(errors)) < 0.02
    assert np.max(np.abs(errors)) < 0.15


def test_what_a_request_adds_to_the_step_in_which_it_arrives_is_found_again(tmp_path: Path) -> None:
    """Without it, the steps would come out longer."""
    path, draw = tmp_path / "steps.json", random.Random(6)
    steps = []
    for load in drawn_loads(5, 300):
        arrivals = draw.choice([0, 0, 0, 1, 2])
        steps.append(TimedStep(load, TRUE.seconds(load) + 0.03 * arrivals, arrivals))
    write_steps(path, {"model": "any"}, steps)
    found = read_measured(str(path), SPEED)
    assert found.arrival_seconds == pytest.approx(0.03, rel=0.05)
    assert found == fit_single_steps(steps)
    errors = [found.seconds(load) / TRUE.seconds(load) - 1 for load in drawn_loads(2, 200)]
    assert np.median(errors) == pytest.approx(0, abs=0.01)


def test_noise_never_makes_a_step_shorter_by_a_token() -> None:
    draw = random.Random(3)
    noisy = [
        Timed([(load, 1)], TRUE.seconds(load) * draw.uniform(0.7, 1.3))
        for load in drawn_loads(4, 60)
    ]
    found = fit_steps(noisy)
    times = [found.seconds(decoding_load(n, 50 * n)) for n in range(1, 1000)]
    assert times == sorted(times)
    assert times[0] > 0


def speed_rows(*cases: tuple[int, int, int]) -> dict[str, object]:
    """A speed result of an engine whose steps take what TRUE says."""
    rows = []
    for batch, input_len, output_len in cases:
        ms = []
        for length in (1, output_len):
            trace = [TraceRequest(0.0, input_len, length)] * batch
            settings = SimulatedSettings(StepLimits(2048, 512, batch), 2000, reuse_prefixes=False)
            ms.append(
                1000 * max(one.end for one in ended_requests(Simulation(settings, TRUE), trace))
            )
        figures = {"first_token_ms": ms[0], "response_ms": ms[1], "status": "measured"}
        lengths = {"batch": batch, "input_len": input_len, "output_len": output_len}
        rows.append({**lengths, **figures})
    rows.append({"status": "out of memory"})
    return {"format": "gyrfalcon-result", "kind": "speed", "result": {"rows": rows}}


def test_a_speed_result_tells_what_its_steps_took(tmp_path: Path) -> None:
    path = tmp_path / "speed.json"
    cases = [(b, i, o) for b in (1, 8) for i in (32, 128, 512, 1024) for o in (32, 256)]
    path.write_text(json.dumps(speed_rows(*cases)), "utf-8")
    found = read_measured(str(path), SPEED)
    for load in (decoding_load(1, 300), decoding_load(8, 4000), load_of([range(0, 512)])):
        assert found.seconds(load) == pytest.approx(TRUE.seconds(load), rel=0.05)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"format": "other"}, "wanted step times or a result of gyrfalcon speed in "),
        ({"format": "gyrfalcon-step-times", "steps": []}, "wanted 4 measured times or more, got 0"),
        (
            {"format": "gyrfalcon-step-times", "steps": [{"prompt_tokens": 1}]},
            "wanted a field decoding, got none; add it to steps[0] of ",
        ),
        (
            {
                "format": "gyrfalcon-step-times",
                "steps": [{**decoding_load(1, 2)._asdict(), "seconds": 0}],
            },
            "wanted seconds above 0 in steps[0] of ",
        ),
    ],
)
def test_a_file_without_step_times_is_refused(document: object, said: str, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text(json.dumps(document), "utf-8")
    with pytest.raises(UsageError) as caught:
        read_measured(str(path), ROOMY)
    assert said in str(caught.value)


def test_steps_of_which_some_are_slow_take_as_long_as_measured_all_together() -> None:
    """A fit to errors relative to the measured times comes out 14 % too short."""
    draw = np.random.default_rng(3)
    loads = [decoding_load(n, 100 * n) for n in (1, 2, 4, 8)] * 200
    measured = [
        (load, 0.001 * (4 + load.decoding) * float(draw.lognormal(0.0, 0.3))) for load in loads
    ]
    times = fit_steps([Timed([(load, 1)], seconds) for load, seconds in measured])
    for num in (1, 2, 4, 8):
        own = [seconds for load, seconds in measured if load.decoding == num]
        predicted = times.seconds(decoding_load(num, 100 * num))
        assert predicted == pytest.approx(sum(own) / len(own), rel=0.04)


def test_least_squares_without_negative_numbers_are_optimal() -> None:
    draw = np.random.default_rng(5)
    for _ in range(50):
        rows, wanted = draw.normal(size=(12, 5)), draw.normal(size=12)
        found = _not_negative(rows, wanted)
        slope = rows.T @ (wanted - rows @ found)
        assert (found >= 0).all()
        assert (slope <= 1e-6).all()  # no other direction is better
        assert np.abs(slope[found > 0]).max(initial=0) < 1e-6
