"""A target as typed."""

import pytest

from gyrfalcon.errors import UsageError
from gyrfalcon.plan.target import Target, target_of


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("40 tok/s, 2k context, 500 users", Target(40, 2048, 500)),
        ("10,000 users, 2048 context, 12.5 tokens/s", Target(12.5, 2048, 10_000)),
        ("20 t/s,1.5k ctx,1.5k streams", Target(20, 1536, 1500)),
        ("20 tok/s, 8192 tokens context", Target(20, 8192, None)),
        ("1 tok/s, 2 context, 1m users", Target(1, 2, 1_000_000)),
    ],
)
def test_its_parts_come_in_any_order(text: str, target: Target) -> None:
    assert target_of(text) == target


@pytest.mark.parametrize(
    "text",
    [
        "",
        "40",
        "40 tok/s",
        "40 tok/s, 500 users",
        "40 tok/s, 2k context, 500 users, 3 cats",
        "40 tok/s, 50 tok/s, 2k context",
        "0 tok/s, 2k context, 5 users",
        "40 tok/s, 1 context, 5 users",
        "40 tok/s, 2k context, 0 users",
        "-40 tok/s, 2k context, 5 users",
        "40 tok/s, 2k context, 5e3 users",
        "9" * 400 + " tok/s, 2k context, 5 users",
    ],
)
def test_anything_else_is_told_how_to_write_it(text: str) -> None:
    with pytest.raises(UsageError, match="40 tok/s, 2k context, 500 users") as caught:
        target_of(text)
    assert len(str(caught.value)) < 300
