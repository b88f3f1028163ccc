"""Choosing tiles: the fastest wins, what does not fit is passed over, and the table is used."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from triton_interpreter import DEVICE

tune_kernels = pytest.importorskip("tune_kernels", reason="needs Triton")
triton_linear = pytest.importorskip("gyrfalcon.ops.triton.linear", reason="needs Triton")

WEIGHT = torch.zeros(64, 128)
USUAL = triton_linear.LinearConfig(16, 64, 128, 4, 4, 2)
LATER = time.monotonic() + 1e6


def test_the_fastest_that_fits_is_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    def clock(_: object, config: object) -> float:
        if config.outputs == 128:  # type: ignore[attr-defined]
            raise RuntimeError("out of resource: shared memory")
        return 1.0 if config == USUAL else 1.0 / (config.outputs * config.stages)  # type: ignore[attr-defined]

    best = tune_kernels.fastest(WEIGHT, "int8", USUAL, clock, LATER)
    assert (best.outputs, best.stages) == (64, 6)  # of all that have no 128 outputs
    assert "RuntimeError" in capsys.readouterr().err


def test_a_small_gain_changes_nothing() -> None:
    def clock(_: object, config: object) -> float:
        return 1.0 if config == USUAL else 0.99

    assert tune_kernels.fastest(WEIGHT, "int8", USUAL, clock, LATER) == USUAL


def test_it_stops_in_time() -> None:
    asked = []

    def clock(_: object, config: object) -> float:
        asked.append(config)
        return 1.0

    assert tune_kernels.fastest(WEIGHT, "none", USUAL, clock, time.monotonic() - 1) == USUAL
    assert asked == [USUAL]


def test_the_table_is_used_on_its_card_for_its_matrix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "table.json"
    other, found = (
        triton_linear.LinearConfig(16, 32, 64, 2, 3, 1),
        triton_linear.LinearConfig(16, 32, 64, 8, 6, 4),
    )
    tune_kernels.write(table, "a card", {"int8 64 x 128": other})
    tune_kernels.write(table, "a card", {"int8 64 x 128": found, "none 8 x 8": other})
    tune_kernels.write(table, "another", {"int8 64 x 128": other})
    monkeypatch.setattr(triton_linear, "TABLE", table)
    triton_linear.tuned.cache_clear()
    try:
        asked = (1, "int8", torch.bfloat16, (64, 128))
        assert triton_linear.config_for(*asked, "a card") == found
        assert triton_linear.config_for(*asked, "another") == other
        assert triton_linear.config_for(*asked, "unknown") == triton_linear._FEW["int8"]
        assert triton_linear.config_for(17, *asked[1:], "a card").tokens > 16
    finally:
        triton_linear.tuned.cache_clear()


@pytest.mark.parametrize("megabytes", [1, 35, 60, 512])
def test_matrices_in_turn_are_four_times_the_cache(megabytes: int) -> None:
    """A matrix is read again when three caches of others have been since."""
    size, cache = megabytes << 20, 60 << 20
    assert (tune_kernels.num_copies(size, cache) - 1) * size >= 4 * cache


@pytest.mark.parametrize("kind", ["none", "int8", "int4"])
def test_copies_of_a_matrix_are_equal_and_lie_apart(kind: str) -> None:
    weight = tune_kernels.drawn(kind, (16, 128), torch.device("cpu"))
    first, second = tune_kernels.copies_of(weight, 2)
    data = [one if kind == "none" else one.data for one in (first, second)]
    assert data[0].equal(data[1])
    assert data[0].data_ptr() != data[1].data_ptr()


@pytest.mark.parametrize("kind", ["none", "int8", "int4"])
def test_few_tiles_are_tried_and_the_kernels_take_them(kind: str) -> None:
    tried = list(tune_kernels.candidates(kind))
    assert 6 <= len(set(tried)) == len(tried) <= 8
    weight = tune_kernels.drawn(kind, (32, 128), torch.device(DEVICE))
    x = torch.randn(1, 128, dtype=torch.bfloat16, device=DEVICE)
    results = [triton_linear.linear(x, weight, config=config) for config in tried]
    assert all((one - results[0]).abs().max() < 1e-2 * results[0].abs().max() for one in results)


def test_a_product_takes_the_tile_it_is_given() -> None:
    tile = triton_linear.LinearConfig(16, 32, 64, 2, 3, 1)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 128, generator=generator).to(DEVICE)
    weight = torch.randn(70, 128, generator=generator).to(DEVICE)
    torch.testing.assert_close(triton_linear.linear(x, weight, config=tile), x @ weight.T)
    with pytest.raises(Exception, match="power of 2"):
        triton_linear.linear(x, weight, config=replace(tile, outputs=33))
