"""Reads the JSON bodies of requests, within bounds of size, time and nesting."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NoReturn

from starlette.requests import ClientDisconnect, Request

from gyrfalcon.serve.errors import RETRY_LATER, ApiError

MOST_BODY_BYTES = 8 << 20
MOST_BODIES_BYTES = 64 << 20  # of all long bodies that are being read
BODY_SECONDS = 30.0
MOST_NESTING = 32
LONG_BODY_BYTES = 64 << 10  # parsed elsewhere than on the event loop
# What makes parsing take long, in which no other thread runs: 8 MiB may be a million of each.
MOST_STRINGS = 100_000
MOST_CONTAINERS = 20_000  # lists and objects
MOST_ITEMS = 500_000  # of all lists and objects, commas counted


class Bodies:
    """Those that are being read. What long ones hold together is bounded; short ones always have room,
    so that a few clients who send long ones slowly do not shut out the others.
    """

    def __init__(self) -> None:
        self._num_bytes = 0

    async def read_json(self, request: Request) -> object:
        """A request's body as JSON. ApiError 400, 408, 413 or 415 for one that is not JSON, too slow or
        too large; 503 while too much else is being read.
        """
        kind = request.headers.get("content-type", "")
        if kind.partition(";")[0].strip().lower() != "application/json":
            got = kind[:60] or "none"
            raise ApiError(415, f"wanted a body with Content-Type: application/json, got {got!r}")
        encoding = request.headers.get("content-encoding", "identity").strip()
        if encoding.lower() not in ("identity", ""):
            message = f"wanted a body as it is, got one with Content-Encoding: {encoding[:60]!r}"
            raise ApiError(415, f"{message}; send it uncompressed")
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length[:20]) > MOST_BODY_BYTES:
            raise _too_large()
        async with self._reading(request) as body:
            long = len(body) > LONG_BODY_BYTES
            return await asyncio.to_thread(_parse, body) if long else _parse(body)

    async def read(self, request: Request) -> bytes:
        """A request's body as it is, for who passes it on. ApiError 400, 408 or 503, as with read_json();
        one that is too large is cut off where that shows, so that it is refused where it goes.
        """
        async with self._reading(request, cut_off=True) as body:
            return bytes(body)

    @asynccontextmanager
    async def _reading(self, request: Request, cut_off: bool = False) -> AsyncIterator[bytearray]:
        body = bytearray()
        try:
            await self._read(request, body, cut_off)
            yield body
        finally:
            self._num_bytes -= _counted(body)

    async def _read(self, request: Request, body: bytearray, cut_off: bool) -> None:
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for part in request.stream():
                    self._num_bytes -= _counted(body)
                    body += part
                    self._num_bytes += _counted(body)
                    if len(body) > MOST_BODY_BYTES and cut_off:
                        return
                    if len(body) > MOST_BODY_BYTES:
                        raise _too_large()
                    if len(body) > LONG_BODY_BYTES and self._num_bytes > MOST_BODIES_BYTES:
                        raise _too_much()
        except TimeoutError:
            message = f"wanted the body within {BODY_SECONDS:g} s, got a part of it"
            raise ApiError(408, message) from None
        except ClientDisconnect:
            raise ApiError(400, "wanted a whole body, got a part of it") from None


def _counted(body: bytearray) -> int:
    """What a body takes of MOST_BODIES_BYTES."""
    return len(body) if len(body) > LONG_BODY_BYTES else 0


def _too_much() -> ApiError:
    message = (
        f"wanted at most {MOST_BODIES_BYTES} bytes of long bodies at a time, got more of many "
        "requests; ask again later"
    )
    return ApiError(503, message, code="busy", headers=RETRY_LATER)


def _too_large() -> ApiError:
    return ApiError(413, f"wanted a body of at most {MOST_BODY_BYTES} bytes, got a larger one")


def num_values(body: bytes | bytearray) -> tuple[int, int, int]:
    """How many strings, lists and objects, and commas between values a body of JSON has, by the
    characters alone; in one that is none, at least those before the place where that shows.
    """
    # Each quote left begins or ends a string.
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    num_quotes = plain.count(b'"')
    if num_quotes > 2 * MOST_STRINGS:
        return num_quotes // 2, 0, 0
    outside = b"".join(plain.split(b'"')[::2])
    num_containers = outside.count(b"[") + outside.count(b"{")
    return num_quotes // 2, num_containers, outside.count(b",")


def _refuse_many(body: bytearray) -> None:
    """ApiError 400 for more values than a request can need, before they are made."""
    most = (MOST_STRINGS, "strings"), (MOST_CONTAINERS, "lists and objects"), (MOST_ITEMS, "items")
    for number, (limit, name) in zip(num_values(body), most, strict=True):
        if number > limit:
            message = f"wanted a body of at most {limit:,} {name}, got {number:,}"
            raise ApiError(400, f"{message}; send less at a time")


def _parse(body: bytearray) -> object:
    if len(body) > LONG_BODY_BYTES:
        _refuse_many(body)
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
