"""Messages between ranks and their errors come through unchanged; what is none is refused, and nothing
in it runs.
"""

import json
import math
import pickle
from fractions import Fraction

import numpy
import pytest

from gyrfalcon import SamplingParams
from gyrfalcon.engine.rank_messages import Add, End, Step, decode, decode_step, encode
from gyrfalcon.errors import GyrfalconError, NotFinite, PromptTooLong, RankDied
from gyrfalcon.parallel.error_message import decode_error, encode_error
from gyrfalcon.parallel.group import SHORT_BYTES
from gyrfalcon.request import Request

AWKWARD = 0.1 + 0.2  # 0.30000000000000004
REQUEST = Request(
    id=7,
    prompt_ids=(0, 5, 65023),
    params=SamplingParams(
        temperature=AWKWARD,
        top_p=1 / 3,
        min_p=math.nextafter(0, 1),
        repetition_penalty=math.nextafter(1, 2),
        presence_penalty=-0.0,
        logit_bias={5: -math.inf, 6: 1e-7},
        seed=2**64 - 1,
        logprobs=3,
        logprob_ids=[1, 2],
        stop=["\n\n", "\N{EAGLE}"],
        stop_ids=[11],
        n=2,
        min_tokens=3,
    ),
    seed=2**63 - 1,
    end_ids=frozenset((11, 2)),
    keep_logits=True,
    single_steps=4,
    priority=-3,
    cache_salt="\N{EAGLE}",
)


def test_a_request_comes_through_with_every_bit_of_its_numbers() -> None:
    found = decode(encode(Add(REQUEST)))
    assert found == Add(REQUEST)
    assert isinstance(found, Add)
    assert math.copysign(1, found.request.params.presence_penalty) == -1


def test_numbers_of_other_libraries_come_through_as_pythons_own() -> None:
    params = SamplingParams(
        temperature=numpy.float32(0.7),  # type: ignore[arg-type]  # as callers do
        top_p=Fraction(1, 4),  # type: ignore[arg-type]
        top_k=numpy.int64(9),  # type: ignore[arg-type]
        logit_bias={numpy.int64(3): numpy.float32(0.1)},  # type: ignore[dict-item]
        stop_ids=[numpy.int32(4)],  # type: ignore[list-item]
    )
    found = decode(encode(Add(Request(0, (1,), params, seed=0))))
    assert isinstance(found, Add)
    assert found.request.params == params
    assert type(found.request.params.temperature) is float
    assert [*map(type, found.request.params.logit_bias)] == [int]


@pytest.mark.parametrize("message", [End(3), End(3, 0), End(0, 5)])
def test_the_end_of_a_request_comes_through(message: End) -> None:
    assert decode(encode(message)) == message


@pytest.mark.parametrize(
    "step",
    [
        Step(512),
        Step(0, (End(3),)),
        Step(7, (End(3, 0), End(4))),
        Step(1, (End(2),), (5, 6)),
        Step(1, (End(2),), (5, 6), 0.1 + 0.2),
    ],
)
def test_a_step_comes_through(step: Step) -> None:
    assert decode(encode(step)) == decode_step(encode(step)) == step


def test_a_step_with_a_few_ends_travels_in_one_broadcast() -> None:
    ends = tuple(End(10**6 + number) for number in range(3))
    assert len(encode(Step(1_000_000, ends, (), 0.1 + 0.2))) <= SHORT_BYTES


def test_another_message_in_place_of_a_step_is_told() -> None:
    with pytest.raises(RankDied, match="wanted rank 0's message of a step, got end"):
        decode_step(encode(End(3)))


def changed(**fields: object) -> bytes:
    """The message of REQUEST with other fields."""
    content = json.loads(encode(Add(REQUEST)))
    return json.dumps({"add": {**content["add"], **fields}}).encode()


PARAMS = json.loads(encode(Add(REQUEST)))["add"]["params"]


@pytest.mark.parametrize(
    "data",
    [
        b"x",
        b"\xff\xfe",
        b"null",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"end": [1]}',
        b'{"end": ["1", null]}',
        b'{"end": [1, 0.5]}',
        b'{"end": [true, null]}',
        b'{"end": null}',
        b'{"end": [1, null], "add": 1}',
        b'{"stop": [1, null]}',
        b'{"step": []}',
        b'{"step": [1]}',
        b'{"step": [-1, 2.0]}',
        b'{"step": [true, 2.0]}',
        b'{"step": [1.0, 2.0]}',
        b'{"step": [1, 2]}',
        b'{"step": [1, 2.5]}',
        b'{"step": [1, -0.5]}',
        b'{"step": [1, NaN]}',
        b'{"step": [1, "2.0"]}',
        b'{"step": 1}',
        b'{"step": [1, 2.0, 2]}',
        b'{"step": [1, 2.0, [2]]}',
        b'{"step": [1, 2.0, ["2", null]]}',
        b'{"step": [1, 2.0, [2, null]], "end": [1, null]}',
        b'{"add": {}}',
        b'{"add": [1, 2]}',
        encode(Add(REQUEST))[:-1],
        pickle.dumps(End(3)),
        pickle.dumps(print),
        changed(id="7"),
        changed(id=True),
        changed(id=1e400),
        changed(prompt_ids=[1, 2.0]),
        changed(prompt_ids=[1, -2]),
        changed(prompt_ids=[1, True]),
        changed(prompt_ids="12"),
        changed(end_ids=[None]),
        changed(seed=0.5),
        changed(keep_logits=1),
        changed(single_steps=None),
        changed(more=1),
        changed(params={}),
        changed(params=PARAMS | {"more": 1}),
        changed(params=PARAMS | {"temperature": math.nan}),
        changed(params=PARAMS | {"temperature": "1"}),
        changed(params=PARAMS | {"logit_bias": [[1, 2, 3]]}),
        changed(params=PARAMS | {"logit_bias": [[[], 2]]}),
        changed(params=PARAMS | {"logit_bias": 1}),
        changed(params=PARAMS | {"n": 0}),
    ],
)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(RankDied, match="wanted a message of rank 0, got"):
        decode(data)


@pytest.mark.parametrize("kind", [GyrfalconError, *GyrfalconError.__subclasses__(), PromptTooLong])
def test_an_error_of_every_class_comes_through(kind: type[GyrfalconError]) -> None:
    error = kind("`max_len` \N{EAGLE}", "a file \udcff of another's", "use `world_size=2`")
    found = decode_error(encode_error(error))
    assert type(found) is kind
    assert found.args == error.args


def test_of_an_error_of_megabytes_comes_through_what_is_shown() -> None:
    error = NotFinite("\N{EAGLE}" * 1_000_000, "\udcff" * 1_000_000, "x" * 1_000_000)
    message = encode_error(error)
    assert len(message) < 100_000
    assert str(decode_error(message)) == str(error)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"x",
        b"\xff\xfe",
        b"{}",
        b"[]",
        b"[" * 99_000,
        b'["UsageError", "a", "b"]',
        b'["UsageError", "a", "b", "c", "d"]',
        b'["UsageError", "a", "b", 1]',
        b'[["UsageError"], "a", "b", "c"]',
        b'["OSError", "a", "b", "c"]',
        b'["Callable", "a", "b", "c"]',
        b'["UsageError", "a", "b", "' + b"c" * 200_000 + b'"]',
        pickle.dumps(print),
        pickle.dumps(PromptTooLong("a", "b", "c")).hex().encode(),
    ],
)
def test_what_is_no_error_is_told_as_that(message: bytes) -> None:
    found = decode_error(message)
    assert type(found) is RankDied
    assert found.got == "bytes that are none"
