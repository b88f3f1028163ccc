"""Which replica a prompt is sent to, by what was sent where."""

import json
import random
from collections import Counter

import pytest

from gyrfalcon.replicas.affinity import (
    MOST_AHEAD,
    MOST_PAGES,
    MOST_SENT,
    PAGE_BYTES,
    PrefixAffinity,
    beginnings,
)

TWO = ["one", "other"]
LONG = "word " * PAGE_BYTES  # five pages


def numbers_of(prompt: object, path: str = "/v1/completions", name: str = "prompt") -> list[int]:
    return beginnings(path, json.dumps({"model": "m", name: prompt, "max_tokens": 1}).encode())


def test_prompts_that_begin_alike_have_beginnings_in_common() -> None:
    one, other = numbers_of(LONG + "a" * PAGE_BYTES), numbers_of(LONG + "b" * PAGE_BYTES)
    num_shared = len(LONG) // PAGE_BYTES
    assert one[:num_shared] == other[:num_shared]
    assert not set(one[num_shared + 1 :]) & set(other[num_shared + 1 :])


def test_a_later_page_counts_only_behind_the_same_first_pages() -> None:
    assert not set(numbers_of("a" + LONG)) & set(numbers_of("b" + LONG))


def test_a_chat_has_beginnings() -> None:
    def chat(last: str) -> list[int]:
        messages = [{"role": "system", "content": LONG}, {"role": "user", "content": last}]
        return numbers_of(messages, "/v1/chat/completions", "messages")

    assert chat("a")[:4] == chat("b")[:4]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", b""),
        ("/v1/completions", b"\xff{["),
        ("/v1/completions", b'{"model": "m"}'),
        ("/v1/completions", b'{"prompt": "short"}'),
        ("/tokenize", json.dumps({"prompt": LONG}).encode()),
        ("/v1/models", b""),
    ],
)
def test_what_has_no_long_prompt_has_no_beginnings(path: str, body: bytes) -> None:
    assert beginnings(path, body) == []


def test_no_more_than_so_many_pages_of_a_prompt_are_looked_at() -> None:
    assert len(numbers_of("a" * (MOST_PAGES + 9) * PAGE_BYTES)) == MOST_PAGES


def test_a_prompt_goes_where_its_longest_known_beginning_went() -> None:
    affinity, numbers = PrefixAffinity(seed=0), numbers_of(LONG)
    affinity.routed("one", numbers[:1])
    affinity.routed("other", numbers)
    assert affinity.ranked(numbers, TWO)[0] == "other"
    assert affinity.ranked(numbers[:1], TWO)[0] == "other"  # sent there last


def test_a_replica_that_is_well_ahead_is_spared() -> None:
    affinity, numbers = PrefixAffinity(seed=0), numbers_of(LONG)
    for _ in range(MOST_AHEAD):
        affinity.routed("one", numbers)
    assert affinity.ranked(numbers, TWO)[0] == "one"
    affinity.routed("one", numbers)
    assert affinity.ranked(numbers, TWO)[0] == "other"
    affinity.completed("one")
    assert affinity.ranked(numbers, TWO)[0] == "one"


def test_without_a_prompt_the_less_loaded_of_two_gets_the_request() -> None:
    affinity = PrefixAffinity(seed=0)
    affinity.routed("one", [])
    assert affinity.ranked([], TWO) == ["other", "one"]


def test_the_most_loaded_of_three_is_never_the_first_choice_of_the_power_of_two() -> None:
    affinity = PrefixAffinity(seed=0)
    for _ in range(5):
        affinity.routed("busy", [])
    chosen = Counter(affinity.ranked([], ["busy", *TWO])[0] for _ in range(200))
    assert set(chosen) == set(TWO)


def test_a_replica_that_is_gone_is_not_chosen() -> None:
    affinity, numbers = PrefixAffinity(seed=0), numbers_of(LONG)
    affinity.routed("gone", numbers)
    affinity.keep(TWO)
    assert set(affinity.ranked(numbers, TWO)) == set(TWO)


def test_a_new_replica_does_not_get_everything_until_it_has_caught_up() -> None:
    affinity = PrefixAffinity(seed=0)
    for _ in range(100):
        affinity.routed("one", [])
        affinity.completed("one")
    affinity.keep(TWO)
    firsts = Counter[str]()
    for _ in range(100):
        first = affinity.ranked([], TWO)[0]
        firsts[first] += 1
        affinity.routed(first, [])
        affinity.completed(first)
    assert min(firsts.values()) >= 45


def test_the_beginnings_that_are_remembered_are_bounded() -> None:
    affinity = PrefixAffinity(most_beginnings=10, seed=0)
    affinity.routed("one", [0])
    affinity.routed("other", list(range(1, 11)))
    for _ in range(5):
        affinity.routed("one", [])  # such that without a known beginning the other one is chosen
    assert affinity.ranked([0], TWO)[0] == "other"


@pytest.mark.parametrize("slowness", [1, 1.25])
@pytest.mark.parametrize("seed", range(5))
def test_57_prefixes_are_cached_once_each_and_balanced(seed: int, slowness: float) -> None:
    affinity, chance = PrefixAffinity(seed=seed), random.Random(seed)
    arrivals = [number for number in range(57) for _ in range(20)]
    chance.shuffle(arrivals)
    running: list[str] = []
    homes: dict[int, set[str]] = {}
    sent = Counter[str]()
    for number in arrivals:
        first = affinity.ranked([number], TWO)[0]
        affinity.routed(first, [number])
        homes.setdefault(number, set()).add(first)
        sent[first] += 1
        running.append(first)
        if len(running) == 16:
            weights = [1.0 if one == "one" else slowness for one in running]
            [done] = chance.choices(range(16), weights)
            affinity.completed(running.pop(done))
    hits = sum(20 - len(home) for home in homes.values())
    assert hits >= 0.9 * 57 * 19
    assert max(sent.values()) <= 1.5 * min(sent.values())


def test_what_was_sent_long_ago_counts_less() -> None:
    affinity = PrefixAffinity(seed=0)
    for _ in range(2 * MOST_SENT):
        affinity.routed("one", [])
        affinity.completed("one")
    affinity.keep(TWO)
    num_given = 0
    while affinity.ranked([num_given], TWO)[0] == "other":
        affinity.routed("other", [num_given])
        affinity.completed("other")
        num_given += 1
    assert num_given <= MOST_SENT
