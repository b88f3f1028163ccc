"""Shares of the peaks, fitted to times whose shares are known, and to all that were observed."""

import json

import fit_efficiencies
import pytest

from gyrfalcon.plan.fit import (
    Key,
    Observation,
    TimedStep,
    fit,
    fit_with_host,
    leave_one_out,
    median_error,
    predicted_seconds,
)
from gyrfalcon.plan.prediction import Efficiency

KEY = Key("a card", "an engine", "bf16")
PLANTED = Efficiency(0.62, 0.45, 0.2)
STEPS = [  # bytes, flops, tokens
    (10e-3, 0.1e-3, 1),
    (11e-3, 0.2e-3, 2),
    (10e-3, 9e-3, 8),
    (10e-3, 30e-3, 256),
    (10e-3, 60e-3, 512),
]


def observed(efficiency: Efficiency, fixed: float = 0.0, scale: float = 1.0) -> list[Observation]:
    found = []
    for moved, computed, tokens in STEPS:
        step = TimedStep(scale * moved, scale * computed, tokens, 1e-4)
        one = Observation(KEY, "a step", (step,), 1.0, "planted")
        seconds = predicted_seconds(one, efficiency) + fixed
        found.append(Observation(KEY, "a step", (step,), seconds, "planted"))
    return found


def test_planted_shares_are_found() -> None:
    found = fit(observed(PLANTED))
    assert found.bytes == pytest.approx(PLANTED.bytes, rel=0.02)
    assert found.flops == pytest.approx(PLANTED.flops, rel=0.02)
    assert found.few_flops == pytest.approx(PLANTED.few_flops, rel=0.02)


def test_one_time_that_is_wrong_does_not_move_them() -> None:
    rows = observed(PLANTED) * 2
    bad = Observation(KEY, "interrupted", rows[3].steps, 5 * rows[3].seconds, "planted")
    assert fit([*rows, bad]).flops == pytest.approx(PLANTED.flops, rel=0.02)


def test_a_share_that_no_row_tells_is_not_made_up() -> None:
    found = fit(observed(PLANTED)[:2])
    assert found.bytes == pytest.approx(PLANTED.bytes, rel=0.02)
    assert (found.flops, found.few_flops) == (None, None)


def test_a_row_is_predicted_from_the_others_alone() -> None:
    rows = observed(PLANTED)
    rows[1] = Observation(KEY, "twice as slow", rows[1].steps, 2 * rows[1].seconds, "planted")
    errors = [row.error for row in leave_one_out(rows)]
    assert errors[1] == pytest.approx(-0.5, abs=0.03)


def test_a_single_row_is_not_predicted() -> None:
    [row] = leave_one_out(observed(PLANTED)[:1])
    assert row.error is None
    assert median_error([row]) is None


def test_the_host_s_part_of_short_steps_is_found() -> None:
    found = fit_with_host(observed(PLANTED, fixed=4e-4, scale=0.02))
    assert found.host_seconds == pytest.approx(4e-4)
    assert found.bytes == pytest.approx(PLANTED.bytes, rel=0.1)


def test_the_table_is_what_the_tool_makes_of_the_observations() -> None:
    plain, rows = fit_efficiencies.document(fit_efficiencies.observations())
    stored = (fit_efficiencies.PACKAGE / "efficiencies.json").read_text("utf-8")
    assert json.loads(stored) == plain, "run python tools/fit_efficiencies.py"
    page = fit_efficiencies.PAGE.read_text("utf-8")
    assert fit_efficiencies.tables(plain, rows) in page, "run python tools/fit_efficiencies.py"
    ours = [row for row in rows if row.observation.key.engine == "gyrfalcon"]
    cards = [row for row in rows if not row.observation.key.platform.startswith("cpu-")]
    for part in (rows, ours, cards):
        error = median_error(part)
        assert error is not None
        assert error <= 0.15
