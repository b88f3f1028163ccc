"""The messages of rank 0 to the other ranks. They travel as JSON, which keeps every bit of a float;
decoding one checks each field and runs nothing that the bytes contain.
"""

import json
from dataclasses import dataclass, fields
from numbers import Integral, Real
from types import NoneType
from typing import Any

from gyrfalcon.errors import RankDied, RequestError
from gyrfalcon.request import Request, SamplingParams


@dataclass(frozen=True, slots=True)
class Add:
    """Take in a request."""

    request: Request


@dataclass(frozen=True, slots=True)
class End:
    """Cancel one sample of a request, or all of them."""

    request_id: int
    index: int | None = None


RankMessage = Add | End

KINDS = {
    "id": int,
    "prompt_ids": list,
    "params": dict,
    "seed": int,
    "end_ids": list,
    "keep_logits": bool,
    "single_steps": int,
}
PARAMS = [field.name for field in fields(SamplingParams)]


def encode(message: RankMessage) -> bytes:
    """A message as bytes."""
    if isinstance(message, End):
        content: object = {"end": [message.request_id, message.index]}
    else:
        content = {"add": _fields_of(message.request)}
    return json.dumps(content, default=_plain_number).encode()


def decode(data: bytes) -> RankMessage:
    """The message of encode(); RankDied for any other bytes."""
    try:
        [(kind, content)] = json.loads(data).items()
        if kind == "add":
            return Add(_request(content))
        [request_id, index] = content
        if kind == "end" and type(request_id) is int and type(index) in (int, NoneType):
            return End(request_id, index)
        raise ValueError("neither add nor end")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, RequestError) as error:
        got = f"{len(data)} bytes that are none ({type(error).__name__}: {error})"
        raise RankDied("a message of rank 0", got, "start again") from None


def _fields_of(request: Request) -> dict[str, object]:
    params = {name: getattr(request.params, name) for name in PARAMS}
    return {
        "id": request.id,
        "prompt_ids": request.prompt_ids,
        "params": params | {"logit_bias": list(request.params.logit_bias.items())},
        "seed": request.seed,
        "end_ids": sorted(request.end_ids),
        "keep_logits": request.keep_logits,
        "single_steps": request.single_steps,
    }


def _request(content: dict[str, Any]) -> Request:
    if {name: type(value) for name, value in content.items()} != KINDS:
        raise ValueError(f"not the fields of a request: {', '.join(content)}")
    params = content["params"]
    if set(params) != set(PARAMS):
        raise ValueError(f"not the sampling parameters: {', '.join(params)}")
    for token_id in content["prompt_ids"] + content["end_ids"]:
        if type(token_id) is not int or token_id < 0:
            raise ValueError(f"no token id: {token_id}")
    return Request(
        id=content["id"],
        prompt_ids=tuple(content["prompt_ids"]),
        params=SamplingParams(**params | {"logit_bias": dict(params["logit_bias"])}),
        seed=content["seed"],
        end_ids=frozenset(content["end_ids"]),
        keep_logits=content["keep_logits"],
        single_steps=content["single_steps"],
    )


def _plain_number(value: object) -> int | float:
    """Python's own number for one of another library's, as sampling parameters may be."""
    if isinstance(value, Integral):
        return int(value)
    assert isinstance(value, Real)  # SamplingParams checked it
    return float(value)
