"""`gyrfalcon plan --trace` as typed."""

import json
from pathlib import Path
from typing import Any

import pytest

from gyrfalcon.cli.main import main
from gyrfalcon.plan.simulate_measured import TimedStep, write_steps
from gyrfalcon.plan.step_load import decoding_load, load_of

RANDOM = ["--trace", "poisson:20", "--in", "200", "--out", "uniform:10-30", "--requests", "60"]


def simulated(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert main(["plan", *words, "--json", "-"]) == 0
    return json.loads(capsys.readouterr().out)["simulation"]


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["plan", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_a_random_load_is_simulated_on_the_replicas_that_the_cards_make(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["falcon-7b", "--hardware", "h100x4", "-w", "2", *RANDOM, "--router", "least-loaded"]
    assert main(["plan", *words]) == 0
    shown = capsys.readouterr().out
    assert "2 ranks × 2 replicas, least-loaded; poisson:20" in shown
    assert "60 finished, 0 after their deadline given up, 0 preemptions" in shown
    found = simulated(capsys, *words)
    assert (found["replicas"]["count"], found["ranks"], found["overlap"]) == (2, 2, True)
    assert found["goodput"]["limits"] == {"ttft": 2000}
    assert found == simulated(capsys, *words)
    assert found != simulated(capsys, *words, "--seed", "1")


def test_cache_blocks_are_as_large_as_the_hardware_wants_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = simulated(capsys, "falcon-40b", "--hardware", "910b3x4", *RANDOM)
    assert found["num_blocks"] == 64 * 2048 // 128  # those that 64 sequences can use


def test_a_file_of_requests_is_simulated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "trace.jsonl"
    lengths = {"prompt_tokens": 640, "output_tokens": 20}
    lines = [{"arrival_s": 3 * n, **lengths, "prefix_ids": list(range(10))} for n in range(4)]
    file.write_text("\n".join(map(json.dumps, lines)))
    words = ["falcon-7b", "--hardware", "h100", "--trace", str(file), "--page-tokens", "64"]
    found = simulated(capsys, *words, "--itl", "0.5", "--warm-up", "1")
    assert (found["finished"], found["replicas"]["cached_tokens"]) == (3, 3 * 624)
    assert found["replicas"]["prompt_tokens"] == 3 * 640  # as all counts, without the first
    assert (found["goodput"]["limits"], found["goodput"]["share"]) == (
        {"ttft": 2000, "itl": 500},
        1,
    )
    file.write_text(file.read_text() + "\n" + json.dumps({**lines[-1], "prompt_tokens": 2048}))
    said = refusal(capsys, *words)
    assert "wanted at most 2048 tokens, prompt and output, on line 5 of" in said
    assert "or raise --context" in said


def test_measured_step_times_take_the_place_of_predicted_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "steps.json"
    loads = [decoding_load(n, 100 * n) for n in (1, 2, 8, 64)] + [load_of([range(512)])]
    write_steps(file, {"model": "any"}, [TimedStep(load, 0.5) for load in loads])
    words = ["falcon-7b", "--hardware", "h100", *RANDOM, "--step-times", str(file)]
    found = simulated(capsys, *words)
    assert found["inter_token_ms"]["p50"] == pytest.approx(500, rel=0.01)
    slower = simulated(capsys, *words, "--max-batch-tokens", "64")
    assert slower["first_token_ms"]["p50"] > found["first_token_ms"]["p50"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--trace poisson:0", "arrivals a second above 0"),
        ("--trace poisson:fast", "write it as in poisson:2.5"),
        ("--trace missing.jsonl", "missing.jsonl"),
        ("--trace missing.jsonl --seed 3", "wanted --trace poisson:RATE with --seed, got missing"),
        ("--trace poisson:1 --page-tokens 4", "wanted --trace FILE with --page-tokens"),
        ("--trace poisson:1 --batch 4", "wanted --trace without --batch, got both"),
        ("--trace poisson:1 --plot a.png", "wanted --trace without --plot, got both"),
        ("--trace poisson:1 --router random", "--router round-robin | least-loaded | prefix"),
        ("--router prefix", "wanted --trace with --router, got none; leave --router out"),
        ("--trace poisson:1 -w 2", "-w of at most 1"),
        ("--trace poisson:1 --step-times missing.json", "missing.json"),
    ],
)
def test_what_cannot_be_simulated_is_refused_in_a_line(
    words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refusal(capsys, "falcon-7b", "--hardware", "h100x1", *words.split())


def test_a_model_that_leaves_no_cache_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, "falcon-180b", "--hardware", "h100", "--trace", "poisson:1")
    assert "wanted a KV cache for 2048 tokens, the longest sequence, got one for 0" in said
