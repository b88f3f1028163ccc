"""The largest of each row are those that a stable sort of the whole row puts first."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from gyrfalcon.device.cpu import Cpu
from gyrfalcon.parallel.group import stable_top_k

WIDTH, LONG = 70, 3001  # of a row; in a long one values are selected by groups
SPECIAL = [0.0, -0.0, math.inf, -math.inf, math.nan, -math.nan, 3.4e38, -3.4e38, 1e-45, -1e-45]


def rows_of(kind: str, width: int = WIDTH) -> Tensor:
    drawn = torch.randn(9, width, generator=torch.Generator().manual_seed(3))
    if kind == "ties":
        return drawn.round()
    if kind == "special":
        special = torch.tensor(SPECIAL)
        return special[torch.randint(len(SPECIAL), (9, width), generator=torch.Generator())]
    if kind == "one NaN":
        drawn[4, -1] = drawn[5, 0] = math.nan
    return torch.zeros(9, width) if kind == "equal" else drawn


@pytest.mark.parametrize("on_host", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["random", "ties", "special", "one NaN", "equal"])
@pytest.mark.parametrize(
    ("num", "width"),
    [
        *((num, WIDTH) for num in (1, 2, 40, WIDTH - 1, WIDTH, WIDTH + 1)),
        *((num, LONG) for num in (2, 128, 300, LONG - 1)),
    ],
)
def test_the_first_of_a_stable_sort_are_the_largest(
    num: int,
    width: int,
    kind: str,
    dtype: torch.dtype,
    on_host: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Cpu, "on_host", on_host)
    logits = rows_of(kind, width).to(dtype)
    expected = logits.sort(dim=-1, descending=True, stable=True)
    values, places = stable_top_k(logits, num)
    assert torch.equal(places, expected.indices[:, :num])
    assert torch.equal(values.nan_to_num(7.0), expected.values[:, :num].nan_to_num(7.0))


def test_rows_that_lie_apart_and_no_rows_at_all_are_taken() -> None:
    for logits in (rows_of("random"), rows_of("random", LONG)):
        for some, num in product((logits[::2, ::3], logits[:, 1:], logits[:0]), (1, 3)):
            values, places = stable_top_k(some, num)
            assert places.tolist() == some.sort(dim=-1, descending=True).indices[:, :num].tolist()
            assert values.shape == places.shape
