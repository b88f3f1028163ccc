"""Prompt lookup finds what followed the same tokens before, and knows how often that was right."""

import random

import pytest

from gyrfalcon.engine.prompt_lookup import ASSUMED_RATE, MOST_OF_PROMPT, PromptLookup

LESS_THAN_ANY = 0.0


def found(tokens: list[int], most: int = 4) -> list[int]:
    return PromptLookup(tokens, len(tokens)).draft(most, LESS_THAN_ANY)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([], []),
        ([1], []),
        ([1, 2, 3, 4], []),
        ([1, 2, 3, 4, 5, 6, 7, 9, 1, 2], [3, 4, 5, 6]),
        ([1, 2, 7, 9, 1, 2, 8, 9, 1, 2], [8, 9, 1, 2]),  # the last time counts
        ([5, 1, 2, 7, 9, 6, 1, 2, 8, 9, 5, 1, 2], [7, 9, 6, 1]),  # goes on where 5 stood before
        ([3, 4, 3, 4], [3, 4, 3, 4]),  # what reaches the end goes on as it began
        ([7, 7, 7], [7, 7, 7, 7]),
    ],
)
def test_what_followed_the_last_tokens_is_found(tokens: list[int], expected: list[int]) -> None:
    assert found(tokens) == expected


def test_at_most_so_many_are_found() -> None:
    tokens = [1, 2, 3, 4, 5, 6, 1, 2]
    assert found(tokens, 0) == []
    assert found(tokens, 1) == [3]
    assert found(tokens, 64) == ([3, 4, 5, 6, 1, 2] * 11)[:64]


def test_a_text_read_token_by_token_is_one_read_at_once() -> None:
    draw = random.Random(3)
    for _ in range(50):
        tokens = [draw.randrange(4) for _ in range(draw.randint(0, 60))]
        grown: list[int] = []
        lookup = PromptLookup(grown, 20)
        for token in tokens:
            grown.append(token)
            if draw.random() < 0.7:
                lookup.draft(3, LESS_THAN_ANY)
        at_once = PromptLookup(tokens, 20)
        assert lookup.acceptance(5) == at_once.acceptance(5)
        assert lookup.draft(5, LESS_THAN_ANY) == at_once.draft(5, LESS_THAN_ANY)


def test_before_any_token_came_the_rate_is_assumed() -> None:
    lookup = PromptLookup([1, 2, 3, 4, 1, 2], 6)
    assert lookup.acceptance(3) == [ASSUMED_RATE, ASSUMED_RATE**2, ASSUMED_RATE**3]
    assert lookup.acceptance(0) == []
    assert PromptLookup([1, 2, 3], 3).acceptance(3) == []


def test_tokens_are_drafted_as_long_as_they_are_probable_enough() -> None:
    lookup = PromptLookup([1, 2, 3, 4, 5, 1, 2], 7)
    for least, num in [(0.0, 4), (0.125, 3), (0.2, 2), (0.5, 1), (0.51, 0)]:
        assert lookup.draft(4, least) == [3, 4, 5, 1][:num]


def test_a_text_that_repeats_itself_makes_acceptance_probable_and_another_does_not() -> None:
    rates = []
    repeated = [3, 4, 5, 6, 7, 8, 9, 1, 2] * 6
    changed = [token for number in range(30, 60) for token in (number, 1, 2)]
    for output in (repeated, changed):
        tokens = [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2]
        lookup = PromptLookup(tokens, len(tokens))
        tokens += output
        rates += lookup.acceptance(1)
    assert rates[0] > 0.95
    assert rates[1] < 0.1


def test_tokens_of_the_prompt_say_nothing_of_acceptance() -> None:
    tokens = [1, 2, 3, 4, 5] * 10
    assert PromptLookup(tokens, len(tokens)).acceptance(1) == [ASSUMED_RATE]
    assert PromptLookup(tokens, len(tokens) - 1).acceptance(1) > [ASSUMED_RATE]


@pytest.mark.parametrize(("before", "expected"), [(100, [7, 8]), (MOST_OF_PROMPT, [])])
def test_of_a_long_prompt_only_the_end_is_looked_up(before: int, expected: list[int]) -> None:
    others = list(range(10, 10 + before))
    assert found([1, 2, 7, 8, *others, 1, 2], most=2) == expected
