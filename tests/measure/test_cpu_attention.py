"""benchmarks/cpu_attention.py: what it counts and divides, and that a run keeps the rows of others."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cpu_attention import HEADS, Heads, Row, Step, line, main

from gyrfalcon.native.library import available

ROW = Row(
    "A",
    "decode",
    sequences=2,
    tokens=1,
    context=1000,
    precision="bf16",
    instructions="avx512",
    ms=2.0,
    cache_bytes=2_000_000,
    multiply_adds=8_000_000,
    instruction="vfmadd",
    read_bytes_per_second=2e9,
    peak_multiply_adds_per_second=16e9,
    float_multiply_adds_per_second=8e9,
)


def test_the_bound_is_the_longer_of_reading_and_multiplying() -> None:
    assert ROW.bound_ms == pytest.approx(1.0)  # both 1 ms and 0.5
    assert replace(ROW, multiply_adds=32_000_000).bound_ms == pytest.approx(2.0)
    assert line(ROW).split()[7:11] == ["2.000", "1.0", "4", "2.00"]


@pytest.mark.parametrize(
    "step", [Step("", 3, 1, 7), Step("", 1, 7, 7), Step("", 2, 5, 12)], ids=str
)
def test_only_pairs_that_the_causal_mask_leaves_are_counted(step: Step) -> None:
    seen = torch.ones(step.tokens, step.context).tril(step.context - step.tokens)
    heads = Heads(kv_heads=2, heads=6, dim=8)
    scores = int(seen.sum()) * step.sequences * heads.heads * heads.dim
    assert step.multiply_adds(heads) == 2 * scores
    cached = torch.empty(2, step.sequences, step.context, 2, 8, dtype=torch.bfloat16)
    assert step.cache_bytes(heads, torch.bfloat16) == cached.nbytes


@pytest.mark.skipif(not available(), reason="needs the native kernels")
def test_a_run_adds_its_rows_to_those_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(HEADS, "rw", Heads(2, 4, alibi=True, dim=20))
    monkeypatch.setattr("cpu_attention.LAYERS_BYTES", 1)
    monkeypatch.setattr("cpu_probe.PROBE_BYTES", 4 << 20)
    monkeypatch.setattr("cpu_probe.PROBE_ROUNDS", 100)
    file = tmp_path / "attention.json"
    small = "--models rw --repeats 1 --threads 1 --sequences 2 --context 40 --chunks 3,9".split()
    for precision in ("bf16", "fp32", "bf16"):
        chosen = ["--sets", available()[0], "--precisions", precision, "--json", str(file)]
        assert main([*small, *chosen]) == 0
    rows = json.loads(file.read_text())["rows"]
    steps = [("decode", 2, 1, 40), ("prefill", 1, 40, 40), ("chunk", 1, 3, 43), ("chunk", 1, 9, 49)]
    assert [
        (row["precision"], row["step"], row["sequences"], row["tokens"], row["context"])
        for row in rows
    ] == [(precision, *step) for precision in ("fp32", "bf16") for step in steps]
    assert all(row["ms"] > 0 for row in rows)
    assert capsys.readouterr().out.count(" rw ") == 12
