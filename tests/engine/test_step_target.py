"""StepTarget finds how many prompt tokens fit into a step of a machine whose costs it does not know."""

import random

import pytest

from gyrfalcon.engine.step_target import StepTarget


class Timed:
    """A machine whose steps take so many seconds; some of them are interrupted."""

    def __init__(
        self, base: float, row: float, token: float, interrupted: float = 0.0, fixed: float = 0.0
    ) -> None:
        self.base, self.row, self.token, self.interrupted = base, row, token, interrupted
        self.fixed = fixed  # of a step with prompt tokens, however many
        self.draw = random.Random(7)

    def seconds(self, num_prompt_tokens: int, num_decoding: int) -> float:
        exact = self.base + self.row * num_decoding + self.token * num_prompt_tokens
        exact += self.fixed if num_prompt_tokens else 0
        noise = 1 + self.draw.gauss(0, 0.01)
        return exact * (20 if self.draw.random() < self.interrupted else noise)

    def run(self, target: StepTarget, steps: int, num_decoding: int) -> list[int]:
        """Every second step reads prompts, as many tokens as the target allows; returns how many."""
        sizes = []
        for number in range(steps):
            rows = max(num_decoding - number % 3, 0)
            size = target.prompt_tokens(rows) if number % 2 else 0
            target.record(size, rows, self.seconds(size, rows))
            sizes += [size] * (number % 2)
        return sizes

    def joined_by_streams(self, target: StepTarget, decoding_seconds: float) -> list[int]:
        """Prompts are read alone, then eight streams decode alone in so many seconds, then prompts join
        them; returns how many tokens of these the steps read.
        """
        for _ in range(64):
            self._read(target, 0)
        for _ in range(12):
            target.record(0, 8, decoding_seconds)
        return [self._read(target, 8) for _ in range(40)]

    def _read(self, target: StepTarget, num_decoding: int) -> int:
        size = target.prompt_tokens(num_decoding)
        target.record(size, num_decoding, self.seconds(size, num_decoding))
        return size


@pytest.mark.parametrize("num_decoding", [0, 8, 60])
@pytest.mark.parametrize("interrupted", [0.0, 0.2])
def test_steps_come_to_take_what_the_target_says(num_decoding: int, interrupted: float) -> None:
    machine = Timed(0.020, 0.0005, 0.0004, interrupted)
    target = StepTarget(0.100, 512, 16)
    machine.run(target, 120, num_decoding)
    size = target.prompt_tokens(num_decoding)
    exact = (0.100 - 0.020 - 0.0005 * num_decoding) / 0.0004
    assert exact - 24 <= size <= exact + 8


@pytest.mark.parametrize("fixed", [0.02, 0.04, 0.055])
@pytest.mark.parametrize("interrupted", [0.0, 0.1])
def test_a_fixed_cost_of_prompts_is_no_cost_of_each_token(fixed: float, interrupted: float) -> None:
    machine = Timed(0.020, 0.0005, 0.0004, interrupted, fixed)
    target = StepTarget(0.100, 512, 16)
    machine.run(target, 120, num_decoding=8)
    exact = (0.100 - 0.024 - fixed) / 0.0004
    assert exact - 24 <= target.prompt_tokens(8) <= exact + 8


def test_a_larger_size_that_misses_the_target_is_seldom_tried_again() -> None:
    machine = Timed(0.010, 0.0, 0.005)
    target = StepTarget(0.100, 512, 16)
    sizes = machine.run(target, 600, num_decoding=8)
    assert 1 <= len([size for size in sizes if size > 16]) <= 6


def test_a_target_that_no_step_meets_still_reads_a_block() -> None:
    machine = Timed(0.2, 0.01, 0.01)
    target = StepTarget(0.1, 512, 16)
    assert set(machine.run(target, 40, num_decoding=8)[10:]) == {16}


def test_a_target_that_every_step_meets_reads_all_that_fits() -> None:
    machine = Timed(0.001, 0.0, 0.0)
    target = StepTarget(10.0, 512, 16)
    sizes = machine.run(target, 40, num_decoding=0)
    assert sizes[-1] == 512


def test_unknown_costs_are_tried_out_with_a_block_and_then_at_most_twice_as_much() -> None:
    machine = Timed(0.001, 0.0, 0.00001)
    target = StepTarget(1.0, 512, 16)
    sizes = machine.run(target, 14, num_decoding=4)
    assert sizes[:5] == [16, 32, 64, 128, 256]


def test_a_machine_that_becomes_slower_is_followed() -> None:
    target = StepTarget(0.1, 512, 16)
    quick, slow = Timed(0.01, 0.0005, 0.0002), Timed(0.02, 0.001, 0.0008)
    assert quick.run(target, 120, 8)[-1] >= 400
    size = slow.run(target, 120, 8)[-1]
    exact = (0.1 - 0.02 - 0.008) / 0.0008
    assert exact - 24 <= size <= exact + 8


def test_a_wrong_estimate_of_decoding_does_not_let_steps_grow() -> None:
    """Streams that begin while others use the machine: as slow as steps with prompts were before."""
    machine = Timed(0.050, 0.002, 0.003)
    target = StepTarget(0.135, 192, 16)
    sizes = machine.joined_by_streams(target, decoding_seconds=0.105)
    assert max(machine.seconds(size, 8) for size in sizes) <= 1.25 * 0.135


def test_streams_join_after_prompts_that_were_read_alone() -> None:
    """Always eight: what a step without any would take is unknown, and prompts alone paid for it, too."""
    machine = Timed(0.030, 0.0043, 0.0041)
    target = StepTarget(0.165, 192, 16)
    sizes = machine.joined_by_streams(target, decoding_seconds=machine.seconds(0, 8))
    assert set(sizes) <= {16, 32}
    assert sizes.count(32) <= 3  # too many, but tried


def test_the_share_of_prompts_never_exceeds_the_step_nor_is_nothing() -> None:
    target = StepTarget(0.1, 8, 16)
    for rows in range(10):
        assert 1 <= target.prompt_tokens(rows) <= max(8 - rows, 1)
