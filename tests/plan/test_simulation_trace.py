"""Traces: what a line may say, which error names which line, and what is drawn at random."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from gyrfalcon.errors import UsageError
from gyrfalcon.kv.blocks import BlockAllocator
from gyrfalcon.load.lengths import LogNormal, Uniform
from gyrfalcon.load.plan import POISSON, Load, plan
from gyrfalcon.load.prompts import TokensOfText
from gyrfalcon.plan.trace import PoissonTrace, TraceFile, TraceRequest, TraceSize

LINE = {"arrival_s": 1.5, "prompt_tokens": 40, "output_tokens": 8}


def written(folder: Path, *lines: object) -> TraceFile:
    path = folder / "trace.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts), "utf-8")
    return TraceFile(str(path))


def test_a_trace_is_read_line_by_line_with_what_each_says(tmp_path: Path) -> None:
    full = {**LINE, "prefix_ids": [3, 10**12], "priority": -2, "deadline": 30}
    trace = written(tmp_path, LINE, "", {**LINE, "deadline": None}, full)
    plain = TraceRequest(1.5, 40, 8)
    assert list(trace) == [plain, plain, TraceRequest(1.5, 40, 8, (3, 10**12), -2, 30.0)]
    assert trace.check(48) == TraceSize(3, 1.5)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "wanted JSON in line 2 of "),
        ("[]", "wanted a JSON object on line 2 of "),
        ({**LINE, "prompt_len": 3}, "got prompt_len; did you mean prompt_tokens?"),
        ({"prompt_tokens": 40, "output_tokens": 8}, "wanted arrival_s on line 2 of "),
        ({**LINE, "prompt_tokens": 0}, "wanted prompt_tokens from 1 to 10,000,000 on line 2 of "),
        ({**LINE, "output_tokens": "8"}, "wanted a whole number for output_tokens, got '8'"),
        ({**LINE, "arrival_s": -1}, "wanted an arrival_s from 0 to 1,000,000,000 on line 2 of "),
        ({**LINE, "arrival_s": 1.25}, "wanted an arrival_s of 1.5 or more on line 2 of "),
        ({**LINE, "prefix_ids": [1.5]}, "wanted a list of whole numbers of 0 or more for prefix_"),
        ({**LINE, "prefix_ids": [1, 2, 3, 4]}, "wanted at most 3 prefix_ids on line 2 of "),
        ({**LINE, "priority": 2**31}, "wanted a priority from -2^31 to 2^31 - 1 on line 2 of "),
        ({**LINE, "deadline": 0}, "wanted a deadline above 0, at most 1,000,000,000 s after its"),
        (
            {**LINE, "output_tokens": 60},
            "wanted at most 99 tokens, prompt and output, on line 2 of",
        ),
    ],
)
def test_a_line_that_is_wrong_is_named(line: object, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        written(tmp_path, LINE, line).check(99)
    assert said in str(caught.value)
    assert "line 2" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_trace_without_requests_or_that_cannot_be_read_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"wanted a JSON object on each line of .*, got none"):
        written(tmp_path, "").check(99)
    reader, writer = os.pipe()
    os.close(writer)
    with pytest.raises(UsageError, match="wanted a trace in a file, which is read twice"):
        TraceFile(f"/dev/fd/{reader}").check(99)
    os.close(reader)


def test_a_random_trace_is_what_load_sends_with_the_same_seed() -> None:
    lengths, answers = LogNormal(200, 100), Uniform(5, 50)
    load = Load(3.5, POISSON, None, 20, None, lengths, answers, (), seed=4)
    sent = list(plan(load, TokensOfText()))
    drawn = list(PoissonTrace(3.5, lengths, answers, 20, seed=4))
    assert [(one.arrival_s, one.prompt_tokens, one.output_tokens) for one in drawn] == [
        (one.arrival, one.input_len, one.output_len) for one in sent
    ]


def test_random_requests_that_would_be_too_long_are_cut() -> None:
    drawn = list(PoissonTrace(1.0, LogNormal(80, 60), Uniform(1, 90), 300, seed=1, max_len=100))
    lengths = [one.prompt_tokens + one.output_tokens for one in drawn]
    assert max(lengths) == 100
    assert min(one.output_tokens for one in drawn) == 1
    assert len(set(lengths)) > 50


def digests(*prompts: Sequence[int]) -> list[list[bytes]]:
    allocator = BlockAllocator(1, 4)
    return [allocator.digests(prompt, len(prompt), []) for prompt in prompts]


def test_prompts_share_exactly_the_pages_that_begin_them_alike() -> None:
    same = TraceRequest(0, 14, 1, (5, 6, 7))
    first, second, other = digests(
        same.prompt_ids(0, 4),
        same.prompt_ids(1, 4),
        TraceRequest(0, 14, 1, (5, 8, 7)).prompt_ids(2, 4),
    )
    assert first == second
    assert [one == two for one, two in zip(first, other, strict=True)] == [True, False, False]
    assert len({same.prompt_ids(number, 4)[-1] for number in range(9)}) == 9
    assert 0 not in same.prompt_ids(0, 4)
