"""The largest of each row are those that a stable sort of the whole row puts first."""

import math

import pytest
import torch
from torch import Tensor

from gyrfalcon.device.cpu import Cpu
from gyrfalcon.parallel.group import stable_top_k

WIDTH = 70
SPECIAL = [0.0, -0.0, math.inf, -math.inf, math.nan, -math.nan, 3.4e38, -3.4e38, 1e-45, -1e-45]


def rows_of(kind: str) -> Tensor:
    drawn = torch.randn(9, WIDTH, generator=torch.Generator().manual_seed(3))
    if kind == "ties":
        return drawn.round()
    if kind == "special":
        special = torch.tensor(SPECIAL)
        return special[torch.randint(len(SPECIAL), (9, WIDTH), generator=torch.Generator())]
    return drawn if kind == "random" else torch.zeros(9, WIDTH)


@pytest.mark.parametrize("on_host", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["random", "ties", "special", "equal"])
@pytest.mark.parametrize("num", [1, 2, 40, WIDTH - 1, WIDTH, WIDTH + 1])
def test_the_first_of_a_stable_sort_are_the_largest(
    num: int, kind: str, dtype: torch.dtype, on_host: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cpu, "on_host", on_host)
    logits = rows_of(kind).to(dtype)
    expected = logits.sort(dim=-1, descending=True, stable=True)
    values, places = stable_top_k(logits, num)
    assert torch.equal(places, expected.indices[:, :num])
    assert torch.equal(values.nan_to_num(7.0), expected.values[:, :num].nan_to_num(7.0))


def test_rows_that_lie_apart_and_no_rows_at_all_are_taken() -> None:
    logits = rows_of("random")
    for num in (1, 3):
        for some in (logits[::2, ::3], logits[:0]):
            values, places = stable_top_k(some, num)
            assert places.tolist() == some.sort(dim=-1, descending=True).indices[:, :num].tolist()
            assert values.shape == places.shape
