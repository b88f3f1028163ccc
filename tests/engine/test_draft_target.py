"""DraftTarget chooses the drafts that give the most tokens a second, whatever steps cost."""

import random
from collections.abc import Sequence

import pytest

from gyrfalcon.engine.draft_target import STALE, TRIALS, DraftTarget
from gyrfalcon.engine.drafts import NEVER


def timed(base: float, row: float, num_sequences: int = 1, steps: int = 40) -> DraftTarget:
    """One that has seen steps that take base + row × tokens; a few were interrupted."""
    target, draw = DraftTarget(), random.Random(5)
    for number in range(steps):
        num_drafted = draw.randint(1, 7) if number % 2 else 0
        num_tokens = num_sequences + num_drafted
        late = 20 if draw.random() < 0.1 else 1 + draw.gauss(0, 0.01)
        target.record(num_tokens, num_drafted, (base + row * num_tokens) * late)
    return target


def tokens_a_second(
    base: float, row: float, num_sequences: int, acceptance: Sequence[float]
) -> float:
    gain = num_sequences + sum(acceptance)
    return gain / (base + row * (num_sequences + len(acceptance)))


@pytest.mark.parametrize("num_sequences", [1, 4])
@pytest.mark.parametrize(("base", "row"), [(0.035, 0.004), (0.03, 0.012), (0.001, 0.02), (1e-3, 0)])
def test_no_other_choice_gives_more_tokens_a_second(
    num_sequences: int, base: float, row: float
) -> None:
    target, draw = timed(base, row, num_sequences), random.Random(num_sequences)
    for _ in range(20):
        acceptance = [draw.random() for _ in range(8 * num_sequences)]
        least = target.least_acceptance(num_sequences, acceptance)
        chosen = [one for one in acceptance if one >= least]
        ordered = sorted(acceptance, reverse=True)
        best = max(
            tokens_a_second(base, row, num_sequences, ordered[:num])
            for num in range(len(ordered) + 1)
        )
        assert tokens_a_second(base, row, num_sequences, chosen) >= 0.98 * best


def test_nothing_is_drafted_where_a_token_costs_a_step() -> None:
    assert timed(0.0, 0.02).least_acceptance(1, [0.99] * 8) == NEVER


def test_nothing_is_drafted_where_nothing_can_be() -> None:
    assert timed(0.03, 0.001).least_acceptance(1, []) == NEVER
    assert timed(0.03, 0.001).least_acceptance(0, []) == NEVER


def test_before_any_was_timed_probable_tokens_are_tried_and_others_are_not() -> None:
    for num_sequences in (1, 64):
        target = DraftTarget()
        for _ in range(10):
            target.record(num_sequences, 0, 0.04)
        assert target.least_acceptance(num_sequences, [0.95]) == 0.95
        assert target.least_acceptance(num_sequences, [0.1]) == NEVER


def test_drafts_that_did_not_pay_are_tried_anew_after_a_while() -> None:
    target = DraftTarget()
    for _ in range(TRIALS):
        target.record(1, 0, 0.04)
        target.record(5, 4, 0.9)  # something else ran beside it
    refused = [target.least_acceptance(1, [0.9, 0.81]) for _ in range(STALE + 1)]
    assert refused == [NEVER] * STALE + [0.81]


def test_improbable_tokens_are_not_tried_again_and_again() -> None:
    target = timed(0.001, 0.02)
    assert {target.least_acceptance(1, [0.5]) for _ in range(5 * STALE)} == {NEVER}
