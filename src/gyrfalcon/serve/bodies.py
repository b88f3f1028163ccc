"""Reads the JSON body of a request, within bounds of size, time and nesting."""

import asyncio
import json
from typing import NoReturn

from starlette.requests import ClientDisconnect, Request

from gyrfalcon.serve.errors import ApiError

MOST_BODY_BYTES = 8 << 20
BODY_SECONDS = 30.0
MOST_NESTING = 32
LONG_BODY_BYTES = 64 << 10  # parsed elsewhere than on the event loop


async def read_json(request: Request) -> object:
    """The body as JSON. ApiError 400, 408, 413 or 415 for a body that is not JSON, too slow or too large."""
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "application/json":
        message = f"wanted a body with Content-Type: application/json, got {kind[:60] or 'none'!r}"
        raise ApiError(415, message)
    body = await _read(request)
    return await asyncio.to_thread(_parse, body) if len(body) > LONG_BODY_BYTES else _parse(body)


async def _read(request: Request) -> bytes:
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length[:20]) > MOST_BODY_BYTES:
        raise _too_large()
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > MOST_BODY_BYTES:
                    raise _too_large()
    except TimeoutError:
        raise ApiError(
            408, f"wanted the body within {BODY_SECONDS:g} s, got a part of it"
        ) from None
    except ClientDisconnect:
        raise ApiError(400, "wanted a whole body, got a part of it") from None
    return bytes(body)


def _too_large() -> ApiError:
    return ApiError(413, f"wanted a body of at most {MOST_BODY_BYTES} bytes, got a larger one")


def _parse(body: bytes) -> object:
    try:
        value: object = json.loads(body.decode(), parse_constant=_no_constant)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:  # no UTF-8, no JSON, a number of thousands of digits
        raise ApiError(400, f"wanted a body of JSON, got {error}"[:300]) from None
    level = [value]
    for _ in range(MOST_NESTING):
        level = [item for one in level for item in _items(one) if isinstance(item, dict | list)]
        if not level:
            return value
    raise _too_deep()


def _items(value: object) -> "list[object]":
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _too_deep() -> ApiError:
    return ApiError(400, f"wanted at most {MOST_NESTING} lists and objects within each other")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name}, which JSON does not have")
