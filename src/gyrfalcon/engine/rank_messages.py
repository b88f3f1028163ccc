"""The messages of rank 0 to the other ranks. They travel as JSON, which keeps every bit of a float;
decoding one checks each field and runs nothing that the bytes contain.
"""

import json
from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real
from typing import Any

from gyrfalcon.engine.drafts import NEVER
from gyrfalcon.engine_config import EngineConfig
from gyrfalcon.errors import RankDied, RequestError, UsageError
from gyrfalcon.request import Request, SamplingParams
from gyrfalcon.structured import StructuredOutput


@dataclass(frozen=True, slots=True)
class Add:
    """Take in a request."""

    request: Request


@dataclass(frozen=True, slots=True)
class End:
    """Cancel one sample of a request, or all of them."""

    request_id: int
    index: int | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """Take a step: first cancel `ends`, then compute at most `prompt_tokens` tokens of prompts, and draft
    tokens whose acceptance has at least the probability `least_acceptance`. Rank 0 alone decides these, by
    its clock. `aborts` are requests whose caller is gone, where every rank runs the
    same program: each collects its garbage at another time.
    """

    prompt_tokens: int
    ends: tuple[End, ...] = ()
    aborts: tuple[int, ...] = ()
    least_acceptance: float = NEVER


@dataclass(frozen=True, slots=True)
class Stop:
    """Finish what the device has under way, and follow no more: rank 0 closes the engine."""


RankMessage = Add | End | Step | Stop

KINDS = {
    "id": int,
    "prompt_ids": list,
    "params": dict,
    "seed": int,
    "end_ids": list,
    "keep_logits": bool,
    "single_steps": int,
    "priority": int,
    "cache_salt": str,
}
PARAMS = [field.name for field in fields(SamplingParams)]


def encode(message: RankMessage) -> bytes:
    """A message as bytes."""
    content: object
    match message:
        case Step(prompt_tokens, ends, aborts, least_acceptance):
            lost = [[request_id, "aborted"] for request_id in aborts]
            content = {"step": [prompt_tokens, least_acceptance, *map(_end_fields, ends), *lost]}
        case Stop():
            content = {"stop": None}
        case End():
            content = {"end": _end_fields(message)}
        case Add(request):
            content = {"add": _fields_of(request)}
    return json.dumps(content, default=_plain_number).encode()


def decode(data: bytes) -> RankMessage:
    """The message of encode(); RankDied for any other bytes."""
    try:
        [(kind, content)] = json.loads(data).items()
        if kind == "step":
            return _step(*content)
        if kind == "add":
            return Add(_request(content))
        if kind == "end":
            return _end(*content)
        if kind == "stop" and content is None:
            return Stop()
        raise ValueError("neither step, add, end nor stop")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, RequestError) as error:
        got = f"{len(data)} bytes that are none ({type(error).__name__}: {error})"
        raise RankDied("a message of rank 0", got, "start again") from None


def encode_engine(config: EngineConfig | None) -> bytes:
    """The announcement of an engine, or that there will be no more of them."""
    return json.dumps({"engine": None if config is None else asdict(config)}).encode()


def decode_engine(data: bytes) -> EngineConfig | None:
    """What encode_engine() was given; RankDied for any other bytes."""
    try:
        [(kind, content)] = json.loads(data).items()
        if kind != "engine":
            raise ValueError("not an engine")
        return None if content is None else EngineConfig(**content)
    except (ValueError, TypeError, AttributeError, RecursionError, UsageError) as error:
        got = f"{len(data)} bytes that are none ({type(error).__name__}: {error})"
        raise RankDied("rank 0's announcement of an engine", got, "start again") from None


def decode_step(data: bytes) -> Step:
    """The step of encode(); RankDied for any other message."""
    message = decode(data)
    if isinstance(message, Step):
        return message
    got = type(message).__name__.lower()
    raise RankDied("rank 0's message of a step", got, "make the same calls on every rank")


def _end_fields(end: End) -> list[int | None]:
    return [end.request_id, end.index]


def _end(request_id: object, index: object) -> End:
    if type(request_id) is int and (index is None or type(index) is int):
        return End(request_id, index)
    raise ValueError("not a request and a sample of it")


def _step(prompt_tokens: object, least_acceptance: object, *others: list[object]) -> Step:
    if type(prompt_tokens) is not int or prompt_tokens < 0:
        raise ValueError("not a number of prompt tokens")
    if type(least_acceptance) is not float or not 0 <= least_acceptance <= NEVER:
        raise ValueError("not a probability of acceptance")
    aborts = tuple(_aborted(*fields) for fields in others if fields[1:] == ["aborted"])
    ends = tuple(_end(*fields) for fields in others if fields[1:] != ["aborted"])
    return Step(prompt_tokens, ends, aborts, least_acceptance)


def _aborted(request_id: object, word: object) -> int:
    if type(request_id) is int:
        return request_id
    raise ValueError("not a request")


def _fields_of(request: Request) -> dict[str, object]:
    params = {name: getattr(request.params, name) for name in PARAMS}
    structured = params["structured"]
    assert isinstance(structured, StructuredOutput | None)  # rank 0 alone has what is compiled
    params["logit_bias"] = list(request.params.logit_bias.items())
    params["structured"] = None if structured is None else asdict(structured)
    return {
        "id": request.id,
        "prompt_ids": request.prompt_ids,
        "params": params,
        "seed": request.seed,
        "end_ids": sorted(request.end_ids),
        "keep_logits": request.keep_logits,
        "single_steps": request.single_steps,
        "priority": request.priority,
        "cache_salt": request.cache_salt,
    }


def _request(content: dict[str, Any]) -> Request:
    if {name: type(value) for name, value in content.items()} != KINDS:
        raise ValueError(f"not the fields of a request: {', '.join(content)}")
    params = content["params"]
    if set(params) != set(PARAMS):
        raise ValueError(f"not the sampling parameters: {', '.join(params)}")
    structured = params["structured"]
    params["logit_bias"] = dict(params["logit_bias"])
    params["structured"] = None if structured is None else StructuredOutput(**structured)
    for token_id in content["prompt_ids"] + content["end_ids"]:
        if type(token_id) is not int or token_id < 0:
            raise ValueError(f"no token id: {token_id}")
    return Request(
        id=content["id"],
        prompt_ids=tuple(content["prompt_ids"]),
        params=SamplingParams(**params),
        seed=content["seed"],
        end_ids=frozenset(content["end_ids"]),
        keep_logits=content["keep_logits"],
        single_steps=content["single_steps"],
        priority=content["priority"],
        cache_salt=content["cache_salt"],
    )


def _plain_number(value: object) -> int | float:
    """Python's own number for one of another library's, as sampling parameters may be."""
    if isinstance(value, Integral):
        return int(value)
    assert isinstance(value, Real)  # SamplingParams checked it
    return float(value)
