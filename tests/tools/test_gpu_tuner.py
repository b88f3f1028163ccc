"""The tuner as a step of the gate, without a card: what it finds by a stand-in's clock, how it is told."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from gpu_plan import Plan
from gpu_table import table
from gpu_worker import Skipped

pytest.importorskip("triton", reason="the gate's modules need Triton")

import gpu_tuner
import tune_kernels

from gyrfalcon.ops.triton.linear import LinearConfig


def test_tiles_that_a_clock_finds_faster_are_named_by_their_matrix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tune_kernels, "SHAPES", {"7b": [(64, 128), (128, 128)]})
    [*_, best] = tune_kernels.candidates("int8")

    def clock(weight: Any, config: LinearConfig) -> float:
        return 1.0 if config == best and weight.shape[0] == 64 else 2.0

    monkeypatch.setattr(tune_kernels, "clock_on", lambda device, tokens: clock)
    plan = replace(Plan.of(dry_run=True), dtype=torch.bfloat16, tune_seconds=60)
    assert gpu_tuner.fastest_tiles(plan, "7b", "int8") == {"int8 64 x 128": best}


def test_without_a_card_nothing_is_tuned() -> None:
    rows = gpu_tuner.tuner(Plan.of(dry_run=True))
    assert [*rows] == ["tiny bf16", "tiny int8", "tiny fp8", "tiny int4"]
    for row in rows.values():
        with pytest.raises(Skipped, match="times of a card only"):
            row()


def test_the_table_tells_what_a_token_gains() -> None:
    row = {"tiles": {"int8 64 x 128": {}}, "before_ms": 2.0, "after_ms": 1.5}
    head = {"device": "a card", "torch": "2.11", "triton": "3.6", "commit": "abc"}
    lines = table({**head, "rows": {"tuner": {"7b int8": row, "7b fp8": {"skipped": "too large"}}}})
    assert lines.splitlines()[1:] == [
        "7b int8    with 1 of its tiles tuned 1.500 ms a token, 2.000 without",
        "7b fp8     tuner: too large",
    ]
