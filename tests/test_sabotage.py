"""What must not pass unseen: each way to compute something else turns the precision gate red, each other
fault turns its own test of this suite red. Each is applied alone."""

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import sabotages
import torch
from checkpoints import make_checkpoint
from worlds import on_engines

from gyrfalcon.checkpoint.source import open_checkpoint
from gyrfalcon.measure.precision.reference_file import Origin, Reference, write_reference
from gyrfalcon.measure.precision.reference_transformers import reference_logits
from gyrfalcon.measure.precision.run import Outcome, judge

TESTS = Path(__file__).parent
LENGTHS = (7, 120)
DECODE_STEPS = 20
CHUNK = 32

Prepared = tuple[Path, Reference]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Prepared]:
    """A checkpoint of a variant, and what transformers says about a short and a long prompt."""

    @cache
    def prepare(variant: str) -> Prepared:
        folder = make_checkpoint(tmp_path_factory.mktemp(variant) / "hf", variant)
        checkpoint = open_checkpoint(folder)
        draw = torch.Generator().manual_seed(0)
        prompts = [torch.randint(20, 509, (n,), generator=draw).tolist() for n in LENGTHS]
        logits = reference_logits(checkpoint, torch.float32, prompts)
        path = folder / "reference"
        origin = Origin("transformers", "fp32", independent=True)
        write_reference(path, checkpoint.config, origin, prompts, logits)
        return folder, Reference.open(path, checkpoint.config)

    return prepare


def gate(prepared: Prepared, world_size: int) -> Outcome:
    folder, reference = prepared
    return on_engines(
        world_size,
        folder,
        lambda engine: judge(engine, reference, DECODE_STEPS),
        max_batch_tokens=CHUNK,
        max_sequences=1,
        max_len=128,
    )


@pytest.mark.parametrize(
    ("variant", "world_size"),
    sorted({(variant, size) for _, variant, size in sabotages.OF_THE_MODEL}),
)
def test_the_gate_is_green_where_nothing_is_wrong(
    prepared: Callable[[str], Prepared], variant: str, world_size: int
) -> None:
    assert gate(prepared(variant), world_size).failures == []


@pytest.mark.parametrize(("sabotage", "variant", "world_size"), sabotages.OF_THE_MODEL)
def test_every_sabotage_of_the_model_turns_the_gate_red(
    sabotage: Callable[[pytest.MonkeyPatch], None],
    variant: str,
    world_size: int,
    prepared: Callable[[str], Prepared],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reference = prepared(variant)
    sabotage(monkeypatch)
    failures = gate(reference, world_size).failures
    assert "decode relative_l2_p95" in failures
    assert ("prefill relative_l2_p95" in failures) is (
        sabotage is not sabotages.turn_decoded_queries_one_position_on
    )


@pytest.fixture(scope="module")
def sabotaged_run() -> str:
    """What pytest prints about the tests that have to see a sabotage, each with its own."""
    command = [sys.executable, "-m", "pytest", "-q", "-rf", "-p", "sabotages"]
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [*command, "-p", "no:cacheprovider", *sabotages.OF_THE_SUITE],
        cwd=TESTS.parent,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "400"},
        capture_output=True,
        text=True,
    )
    return run.stdout + run.stderr


@pytest.mark.slow
@pytest.mark.parametrize("test", sabotages.OF_THE_SUITE)
def test_every_sabotage_of_the_suite_turns_its_test_red(test: str, sabotaged_run: str) -> None:
    failed = [line for line in sabotaged_run.splitlines() if line.startswith(f"FAILED {test} - ")]
    assert failed, sabotaged_run
    reasons = ("assert", "AssertionError", "Failed: DID NOT RAISE")
    assert failed[0].split(" - ")[1].startswith(reasons)
