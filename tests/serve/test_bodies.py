"""Bodies that are passed on unread."""

import asyncio
from collections.abc import Sequence

import pytest

pytest.importorskip("starlette", reason="the extra serve is not installed")

from starlette.requests import Request

from gyrfalcon.serve.bodies import MOST_BODY_BYTES, Bodies
from gyrfalcon.serve.errors import ApiError


def read(parts: Sequence[bytes], is_whole: bool = True) -> tuple[bytes, int]:
    """The body that a request of these parts has for who passes it on, and how many parts were read."""
    left = list(parts)

    async def receive() -> dict[str, object]:
        if left:
            more = len(left) > 1 or not is_whole
            return {"type": "http.request", "body": left.pop(0), "more_body": more}
        return {"type": "http.disconnect"}

    body = asyncio.run(Bodies().read(Request({"type": "http", "headers": []}, receive)))
    return body, len(parts) - len(left)


@pytest.mark.parametrize("parts", [[b""], [b"no JSON"], [b'{"a":', b" 1}"]])
def test_a_body_is_passed_on_as_it_is(parts: list[bytes]) -> None:
    assert read(parts) == (b"".join(parts), len(parts))


def test_one_that_is_too_large_is_cut_off_where_that_shows() -> None:
    part = b"a" * (MOST_BODY_BYTES // 4)
    assert read([part] * 9) == (part * 5, 5)


def test_a_client_that_leaves_half_way_is_told_so() -> None:
    with pytest.raises(ApiError, match="a whole body"):
        read([b"half"], is_whole=False)
