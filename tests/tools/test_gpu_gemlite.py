"""The products beside gemlite's, where there is no gemlite: a stand-in that computes what its
documentation says shows that it is given the right weights.
"""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from gpu_plan import Plan
from gpu_worker import Skipped
from torch import Tensor

pytest.importorskip("triton", reason="the gate's modules need Triton")
gpu_gemlite = pytest.importorskip("gpu_gemlite")
gpu_table = pytest.importorskip("gpu_table")

HEAD = {"device": "a card", "torch": "2.11", "triton": "3.6", "commit": "abc"}
NAMES = ["tiny int8", "tiny int4"]


class Gemlite(ModuleType):
    """W = (W_q − zeros) × scales, a scale for each row or group; x W ᵀ, `off` times too large."""

    __version__ = "0"

    def __init__(self, off: float = 1.0) -> None:
        super().__init__("gemlite")
        self.helper = SimpleNamespace(
            A16W8_INT8=lambda **_: SimpleNamespace(from_weights=self.int8),
            A16W4_HQQ_INT=lambda **_: SimpleNamespace(from_weights=self.int4),
        )
        self.off = off

    def int8(self, weight: Tensor, bias: None = None, scales: Tensor | None = None) -> Any:
        assert weight.dtype == torch.int8
        assert scales is not None
        return self._layer(weight.float() * scales.view(len(weight), 1))

    def int4(self, values: Tensor, scales: Tensor, zeros: Tensor) -> Any:
        assert values.dtype == torch.uint8
        groups = values.float().view(len(values), -1, values.numel() // scales.numel())
        return self._layer((groups - zeros[..., None]) * scales[..., None].float())

    def _layer(self, weight: Tensor) -> Any:
        return lambda x: (x.float() @ weight.flatten(1).t() * self.off).to(x.dtype)


def beside() -> dict[str, Any]:
    rows = gpu_gemlite.beside_gemlite(Plan.of(dry_run=True))
    return {name: row() for name, row in rows.items()}


def table(found: dict[str, Any]) -> list[str]:
    lines = gpu_table.table({**HEAD, "rows": {"gemlite": found}}).splitlines()
    assert isinstance(lines, list)
    return lines[1:]


def test_without_gemlite_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gemlite", None)
    for row in gpu_gemlite.beside_gemlite(Plan.of(dry_run=True)).values():
        with pytest.raises(Skipped, match="not installed"):
            row()
    skipped = {key: {"skipped": "not installed"} for key in NAMES}
    assert table(skipped) == ["gemlite    skipped: not installed"]


def test_gemlite_multiplies_our_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gemlite", Gemlite())
    found = beside()
    assert [*found] == NAMES
    for name in NAMES:
        rows = found[name]["rows"]
        assert found[name]["version"] == "0"
        assert [row["tokens"] for row in rows] == [1, 16]
        assert all(row["relative_l2"] < 1e-5 for row in rows)
        assert all(row["ours_ms"] > 0 and row["gemlite_ms"] > 0 for row in rows)


def test_other_products_than_ours_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gemlite", Gemlite(off=1.1))
    wanted = "ValueError: wanted our products to 0.02 of relative L2, got 0.1"
    assert beside() == {key: {"error": wanted} for key in NAMES}


def test_a_gemlite_that_cannot_be_imported_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gemlite.py").write_text("raise RuntimeError('0 active drivers')\n", "utf-8")
    monkeypatch.delitem(sys.modules, "gemlite", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    found = beside()
    assert found == {key: {"error": "RuntimeError: 0 active drivers"} for key in NAMES}
    assert table(found) == [f"{name:<10} gemlite: RuntimeError: 0 active drivers" for name in NAMES]


def test_the_table_shows_both_and_what_failed() -> None:
    row = {"tokens": 1, "relative_l2": 0.001, "ours_ms": 0.25, "gemlite_ms": 0.5}
    found = {
        "40b int8": {"version": "0.6.0", "rows": [row]},
        "40b int4": {"error": "ValueError: no"},
    }
    assert table(found) == [
        "40b int8   a block's products, batch   1: ours 0.250 ms, gemlite 0.6.0 0.500 ms",
        "40b int4   gemlite: ValueError: no",
    ]
