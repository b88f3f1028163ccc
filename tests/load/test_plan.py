"""What is asked and when: lengths, arrivals, traces; all drawn from a seed."""

import json
import math
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from random import Random
from statistics import fmean, stdev

import pytest

from gyrfalcon.errors import UsageError
from gyrfalcon.load.lengths import Lengths, LengthsOption, LogNormal, Uniform
from gyrfalcon.load.plan import CONSTANT, POISSON, Load, plan
from gyrfalcon.load.prompts import WORDS, TokensOfText
from gyrfalcon.load.trace import TraceLine, read_trace

TEN = Uniform(10, 10)
OPEN = Load(4.0, POISSON, None, None, None, TEN, TEN, (), 0)
WORD_EACH = TokensOfText()


def arrivals(load: Load, number: int) -> list[float]:
    found = [one.arrival for one in islice(plan(load, WORD_EACH), number)]
    times = [time for time in found if time is not None]
    assert len(times) == len(found)
    return times


def lengths(text: str) -> Lengths:
    return LengthsOption("--in")(text)


# ---- arrivals ----


def test_poisson_gaps_are_exponential() -> None:
    """Their mean is 1/rate, their deviation equals it, and their distribution is that of the law:
    Kolmogorov's distance stays below its 1 % limit.
    """
    times = arrivals(OPEN, 4000)
    gaps = sorted(later - sooner for sooner, later in pairwise([0.0, *times]))
    assert fmean(gaps) == pytest.approx(0.25, rel=0.05)
    assert stdev(gaps) == pytest.approx(0.25, rel=0.05)
    law = [1 - math.exp(-4 * gap) for gap in gaps]
    distance = max(abs(chance - (n + 0.5) / len(gaps)) for n, chance in enumerate(law))
    assert distance < 1.63 / math.sqrt(len(gaps))


def test_poisson_counts_of_a_second_have_the_variance_of_their_mean() -> None:
    counts = [0] * 1000
    for time in arrivals(replace(OPEN, duration=1000.0), 10_000):
        counts[int(time)] += 1
    assert fmean(counts) == pytest.approx(4, rel=0.05)
    assert stdev(counts) ** 2 == pytest.approx(4, rel=0.15)


def test_constant_arrivals_are_even() -> None:
    assert arrivals(replace(OPEN, arrivals=CONSTANT), 4) == [0.0, 0.25, 0.5, 0.75]


def test_the_same_seed_plans_the_same_and_another_does_not() -> None:
    load = replace(OPEN, requests=20, input_lens=Uniform(1, 50))
    assert list(plan(load, WORD_EACH)) == list(plan(load, WORD_EACH))
    other = [*plan(replace(load, seed=1), WORD_EACH)]
    assert not {one.prompt for one in other} & {one.prompt for one in plan(load, WORD_EACH)}
    assert arrivals(replace(load, seed=1), 20) != arrivals(load, 20)


def test_other_lengths_leave_the_arrivals_as_they_are() -> None:
    assert arrivals(replace(OPEN, input_lens=Uniform(1, 50)), 20) == arrivals(OPEN, 20)


def test_a_plan_ends_with_its_number_or_its_duration() -> None:
    assert len([*plan(replace(OPEN, requests=7), WORD_EACH)]) == 7
    within = arrivals(replace(OPEN, duration=5.0), 1000)
    assert within == [time for time in arrivals(OPEN, 1000) if time < 5.0]
    assert len([*plan(replace(OPEN, duration=5.0, requests=3), WORD_EACH)]) == 3


def test_a_closed_loop_plans_no_times() -> None:
    load = replace(OPEN, rate=None, concurrency=4, requests=3)
    assert [one.arrival for one in plan(load, WORD_EACH)] == [None] * 3


# ---- lengths ----


@pytest.mark.parametrize("text", ["1", "128", "uniform:64-256", "lognormal:256,128.5"])
def test_lengths_are_shown_as_they_are_typed(text: str) -> None:
    assert str(lengths(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "", "0", "-1", "1.5", "٣", "12x", "uniform:5-4", "uniform:0-4", "uniform:5", "normal:3,4",
        "lognormal:0,1", "lognormal:5", "lognormal:-5,1", "lognormal:nan,1", "99999999", "1,2",
    ],
)  # fmt: skip
def test_other_lengths_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="for --in, got"):
        lengths(text)


def test_uniform_lengths_take_both_ends_and_nothing_beyond() -> None:
    random = Random(0)
    assert {Uniform(3, 5).draw(random) for _ in range(200)} == {3, 4, 5}


def test_lognormal_lengths_have_the_mean_and_deviation_that_were_typed() -> None:
    random = Random(0)
    drawn = [LogNormal(200, 100).draw(random) for _ in range(20_000)]
    assert fmean(drawn) == pytest.approx(200, rel=0.02)
    assert stdev(drawn) == pytest.approx(100, rel=0.05)
    assert min(LogNormal(1.2, 5).draw(random) for _ in range(1000)) == 1


# ---- prompts ----


def test_a_prompt_has_as_many_words_as_make_its_tokens() -> None:
    tokens = TokensOfText(per_word=2.0, around=6.0)
    [one] = plan(replace(OPEN, requests=1, input_lens=Uniform(46, 46)), tokens)
    assert len(one.prompt.split()) == 20
    assert set(one.prompt.split()) <= set(WORDS)
    assert (one.input_len, one.output_len) == (46, 10)
    [shortest] = plan(replace(OPEN, requests=1, input_lens=Uniform(1, 1)), tokens)
    assert len(shortest.prompt.split()) == 1


# ---- traces ----


def write(folder: Path, *lines: object) -> str:
    path = folder / "trace.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return str(path)


def test_a_trace_gives_prompts_lengths_and_arrivals_in_time_order(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {"prompt": "late", "output_len": 7, "arrival": 2.5},
        {"input_len": 4, "arrival": 1},
    )
    load = replace(OPEN, rate=None, trace=read_trace(path))
    first, second = plan(load, WORD_EACH)
    assert (first.arrival, len(first.prompt.split()), first.output_len) == (1.0, 4, 10)
    assert (second.arrival, second.prompt, second.output_len) == (2.5, "late", 7)
    assert (first.input_len, second.input_len) == (4, None)


def test_a_trace_without_arrivals_begins_again_at_its_end() -> None:
    trace = (TraceLine("a", None, 1, None), TraceLine("b", None, 2, None))
    load = replace(OPEN, requests=5, trace=trace)
    assert [(one.prompt, one.output_len) for one in plan(load, WORD_EACH)] == [
        ("a", 1), ("b", 2), ("a", 1), ("b", 2), ("a", 1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({}, "either prompt or input_len on line 2 of .*, got neither"),
        ({"prompt": "a", "input_len": 3}, "got both"),
        ({"prompt": "a", "ouput_len": 3}, "got ouput_len; did you mean output_len?"),
        ({"input_len": 0}, "input_len from 1 to 10,000,000 on line 2 of .*, got 0"),
        ({"prompt": "a", "output_len": -1}, "output_len"),
        ({"prompt": 5}, "a string for prompt, got 5; correct line 2 of"),
        ({"prompt": "a", "output_len": True}, "a whole number"),
        ({"prompt": "a", "arrival": -1}, "an arrival from 0"),
        ({"prompt": "a", "arrival": 1.0}, "an arrival on every line of .*, got 1 of 2"),
        (["a"], "a JSON object on line 2 of .*, got list"),
    ],
)
def test_a_line_that_is_no_request_is_refused_by_its_number(
    tmp_path: Path, line: object, words: str
) -> None:
    path = write(tmp_path, {"prompt": "fine"}, line)
    with pytest.raises(UsageError, match=words) as caught:
        read_trace(path)
    assert "\n" not in str(caught.value)


def test_a_trace_without_a_line_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="got none"):
        read_trace(write(tmp_path))
