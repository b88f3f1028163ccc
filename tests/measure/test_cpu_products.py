"""benchmarks/cpu_products.py: what it divides by what, and that a second run keeps the first one's rows."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from cpu_products import SHAPES, Row, line, main

from gyrfalcon.native.library import available

ROW = Row(
    "A",
    "dense",
    rows=1000,
    columns=2000,
    precision="int8",
    instructions="avx512",
    tokens=4,
    ms=2.0,
    weight_bytes=2_004_000,
    instruction="vpdpwssd",
    read_bytes_per_second=2.004e9,
    peak_multiply_adds_per_second=16e9,
    float_multiply_adds_per_second=8e9,
)


def test_the_bound_is_the_longer_of_reading_and_multiplying() -> None:
    assert ROW.multiply_adds_per_second == pytest.approx(4e9)
    assert ROW.bound_ms == pytest.approx(1.0)  # both 1 ms and 0.5
    assert replace(ROW, tokens=16).bound_ms == pytest.approx(2.0)
    assert line(ROW).split()[5:10] == ["2.000", "1.0", "4", "2.00", "25.0%"]


@pytest.mark.skipif(not available(), reason="needs the native kernels")
def test_a_run_adds_its_rows_to_those_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SHAPES, "A", {"small": (48, 64)})
    monkeypatch.setattr("cpu_products.COPIES_BYTES", 1 << 16)
    monkeypatch.setattr("cpu_probe.PROBE_BYTES", 4 << 20)
    monkeypatch.setattr("cpu_probe.PROBE_ROUNDS", 100)
    file = tmp_path / "products.json"
    options = ["--models", "A", "--sets", available()[0], "--repeats", "1", "--json", str(file)]
    for precision in ("bf16", "int4", "int8", "fp32", "int4"):
        assert main([*options, "--precisions", precision, "--tokens", "1,40"]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [(row["precision"], row["tokens"]) for row in rows] == [
        (precision, tokens) for precision in ("bf16", "int8", "fp32", "int4") for tokens in (1, 40)
    ]
    assert all(row["ms"] > 0 for row in rows)
    assert capsys.readouterr().out.count("A small") == 10
