"""`gyrfalcon plan` as typed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from results import signed, sweep

from gyrfalcon.cli.main import main
from gyrfalcon.measure.roofline import MachineLimits
from gyrfalcon.plan.hardware import known_hardware
from gyrfalcon.plan.prediction import Predicted


def ran(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> dict[str, object]:
    assert main(["plan", *words, "--json", "-"]) == code
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["plan", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_an_estimate_is_shown_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "plan.json"
    words = ["falcon-40b", "--hardware", "910b3x4", "--context", "1024", "--batch", "8"]
    assert main(["plan", *words, "--json", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "falcon-40b in bf16 on Ascend 910B3, 64 GB: 4 ranks" in shown
    assert "8 × 1024 tokens a replica: fits" in shown
    written = json.loads(file.read_text())
    assert (written["format"], written["version"]) == ("gyrfalcon-plan", 1)
    assert written["estimate"]["ranks"] == 4
    assert written["estimate"]["step"]["limit"] == "bytes"
    assert written["command"] == ["plan", *words, "--json", str(file)]


def test_cards_beyond_the_ranks_are_replicas(capsys: pytest.CaptureFixture[str]) -> None:
    found = ran(capsys, "falcon-7b", "--hardware", "h100x8", "-w", "2", "--price", "2")["estimate"]
    assert isinstance(found, dict)
    assert (found["ranks"], found["replicas"]) == (2, 4)
    assert found["cost_per_million"] > 0


@pytest.mark.parametrize(
    ("words", "split"),
    [
        ("h200x16 -w 3", (3, 4, 4)),  # no replica has ranks in two machines
        ("h200x20 -w 3", (3, 5, 5)),
        ("h200x99 -w 8", (8, 12, 3)),
        ("h200x24 -w 16", (16, 1, 8)),
        ("h200x4 -w 3", (3, 1, 1)),
        ("h200 -w 16", (16, 1, 0)),
    ],
)
def test_a_replica_is_in_one_machine_or_has_whole_ones(
    words: str, split: tuple[int, int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    found = ran(capsys, "falcon-40b", "--hardware", *words.split(), "--price", "2")["estimate"]
    assert isinstance(found, dict)
    assert (found["ranks"], found["replicas"], found["idle_cards"]) == split
    cards = found["ranks"] * found["replicas"] + found["idle_cards"]
    hourly = 2 * cards  # idle cards are paid, too
    assert found["cost_per_million"] == pytest.approx(
        hourly / 3600 / found["tokens_per_second"] * 1e6
    )


@pytest.mark.parametrize("name", known_hardware())
def test_more_cards_than_a_machine_has_need_the_ranks_of_a_replica(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    most = known_hardware()[name].cards_per_machine
    words = ["falcon-7b", "--hardware", f"{name}x{most + 1}", "--context", "128"]
    assert f"the {most} cards of one {name} machine, got {most + 1}" in refusal(capsys, *words)
    assert main(["plan", *words, "-w", str(most)]) == 0
    assert f"{most} ranks, 1 card idle" in capsys.readouterr().out


def test_what_would_fit_is_possible(capsys: pytest.CaptureFixture[str]) -> None:
    """12 ranks would hold it, but leave half of a second machine of 8."""
    words = ["falcon-180b", "--hardware", "a100", "-w", "8", "--batch", "900"]
    found = ran(capsys, *words, "--max-sequences", "1000", code=1)["estimate"]
    assert "16 ranks" in found["remedies"]  # type: ignore[index]


def test_a_batch_that_does_not_fit_ends_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "falcon-180b", "--hardware", "h100"]) == 1
    assert "does not fit; would with 6 ranks" in capsys.readouterr().out


def test_a_batch_may_be_all_that_a_replica_runs_at_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["falcon-7b", "--hardware", "h100", "--batch", "65", "--max-sequences", "65"]
    assert ran(capsys, *words)["estimate"]["fits"]  # type: ignore[index]


def test_a_target_is_answered_with_the_runner_up(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["falcon-40b", "--hardware", "h200", "--target", "30 tok/s, 2k context, 500 users"]
    assert main(["plan", *words, "--spare", "1"]) == 0
    shown = capsys.readouterr().out
    assert "500 streams at a time" in shown
    assert "\nneeds " in shown
    assert "\nrunner-up " in shown
    found = ran(capsys, *words, "--in", "256", "--out", "lognormal:200,100", "--ttft", "1")[
        "sizing"
    ]
    assert isinstance(found, dict)
    assert found["splits"][0]["pace"]["first_token"] <= 1


def test_cards_beside_a_target_are_those_of_a_machine(capsys: pytest.CaptureFixture[str]) -> None:
    """No replica has more ranks, and there are as many machines as it takes."""
    words = ["--target", "30 tok/s, 2k context, 500 users"]
    splits = ran(capsys, "falcon-40b", "--hardware", "h200x4", *words)["sizing"]["splits"]  # type: ignore[index]
    assert max(one["ranks"] for one in splits) == 4
    pace = splits[0]["pace"]
    assert pace["decoding"]["seconds"] < pace["mean_step"] < pace["mixed"]["seconds"]
    assert splits[0]["machines"] == -(-splits[0]["cards"] // 4) > 1


def test_a_target_has_a_price(capsys: pytest.CaptureFixture[str]) -> None:
    """Of all cards in an hour, over what the users get in it."""
    words = ["falcon-40b", "--hardware", "h200", "--target", "30 tok/s, 2k context, 500 users"]
    best = ran(capsys, *words, "--price", "4", "--spare", "1")["sizing"]["splits"][0]  # type: ignore[index]
    assert best["cost_per_million"] == pytest.approx(4 * best["cards"] / (500 * 30 * 3600) * 1e6)
    assert main(["plan", *words, "--price", "4"]) == 0
    assert "\ncost " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("falcon-40b --hardware h100 --ttft 1", "wanted --target with --ttft"),
        ("falcon-40b --hardware h100 --in 5", "wanted --target with --in"),
        ("falcon-40b --hardware h100 --verify", "wanted --target with --verify"),
        ("falcon-40b --hardware h100 --trace poisson:1 --verify", "--trace without --verify"),
        ("falcon-40b --hardware h100 -w 3 --target T", "wanted --target or -w"),
        ("falcon-40b --hardware h100 --rate 3 --target T", "--rate, or users"),
        ("falcon-40b --hardware h100 --target R", "users in --target"),
        ("falcon-40b --hardware h100 --context 4096", "at most 2048 tokens"),
        ("falcon-7b --hardware h100 --batch 65", "--max-sequences, 64, got 65"),
        ("falcon-7b --hardware none --batch 3 --max-sequences 2", "at most --max-sequences, 2"),
        ("falcon-40b --hardware h100x4 -w 8", "-w of at most 4"),
        ("falcon-40b --hardware 910b3 --dtype fp32", "got fp32"),
        ("falcon-40b --hardware 910b3 --quant fp8", "8-bit floating point for fp8, got 910b3"),
        ("falcon-7b --hardware 910b3 --quant fp8 --trace poisson:1", "fp8, got 910b3"),
        ("falcon-40b --hardware h100 --quant int3", "--quant none | int8"),
        ("falcon-40b --hardware h300", "wanted --hardware 910b3"),
        ("falcon-40", "wanted --hardware, got none"),
        ("falcon-40 --hardware h100", "did you mean falcon-40b?"),
        ("falcon-7b --hardware h100x8 -w 80", "-w of at most 8"),
        ("falcon-40b --hardware h200x99", "the 8 cards of one h200 machine, got 99 cards"),
        ("falcon-40b --hardware h200x16 --trace poisson:1", "add -w 8 for replicas of a machine"),
        ("falcon-40b --hardware h200x99 -w 99", "8 h200 cards, or of whole machines, got 99 ranks"),
        ("falcon-40b --hardware rtx4090 -w 3", "choose -w 2 or less, or 4"),
        ("falcon-40b --hardware a10gx0", "got 'a10gx0'; write a10gx4"),
        ("falcon-7b --hardware h100x9 --target T", "at most 8 cards in --hardware"),
        ("falcon-7b --hardware h100 --target fast", "write it as"),
        ("falcon-7b --hardware h100x8 --pipeline-parallel-size 2", "has no pipeline stages"),
        ("falcon-7b --hardware h100x8 --pp=2", "use -w: gyrfalcon shares each layer"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(
    words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    targets = {"T": "40 tok/s, 2k context, 5 users", "R": "40 tok/s, 2k context"}
    assert said in refusal(capsys, *(targets.get(word, word) for word in words.split()))


@pytest.mark.usefixtures("brief_limits")
def test_this_machine_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    found = ran(capsys, "nestling", "--hardware", "this", "--batch", "4", "--context", "64")
    hardware, estimate = found["hardware"], found["estimate"]
    assert isinstance(hardware, dict)
    assert isinstance(estimate, dict)
    assert hardware["name"].startswith("cpu-")
    assert 1e8 < hardware["bytes_per_second"] < 1e13
    assert 0 < estimate["step"]["seconds"] < 1


def test_a_speed_result_tells_the_times_of_its_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The result's steps take 10 ms and more; nestling's bytes and operations would take less."""
    timed = replace(sweep(lengths=(32, 64, 128)), limits=MachineLimits(2e10, 2e11))
    file = tmp_path / "speed.json"
    file.write_text(json.dumps(signed("speed", timed.to_json(), "nestling")))
    words = ["nestling", "--hardware", str(file), "--dtype", "fp32", "--context", "96"]
    found = ran(capsys, *words)
    efficiency, estimate = found["efficiency"], found["estimate"]
    assert isinstance(efficiency, dict)
    assert isinstance(estimate, dict)
    assert "times of nestling" in efficiency["basis"]
    rows = [row.figures.time_per_token_ms for row in timed.in_order if row.figures]
    assert min(rows) * 0.7 < 1000 * estimate["step"]["seconds"] < max(rows) * 1.3
    assert "name these, or another file" in refusal(capsys, *words[:3], "--quant", "int8")
    assert "a speed result of falcon-7b" in refusal(capsys, "falcon-7b", *words[1:])


def test_a_target_is_verified_by_simulation(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["falcon-7b", "--hardware", "a100", "--target", "30 tok/s, 256 context, 12 users"]
    found = ran(capsys, *words, "--verify")["sizing"]
    assert isinstance(found, dict)
    assert len(found["verified"]) == 2
    assert all(one["holds"] for one in found["verified"])
    assert found["verified"][0]["cards"] == found["splits"][0]["cards"]
    assert found["verified"][0]["simulated"]["figures"]["finished"] >= 1000
    assert main(["plan", *words, "--verify"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("\nsimulated ") == 2
    assert "\nverdict       the formulas' answer holds" in shown


def test_a_target_that_no_simulated_split_holds_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The scheduler takes twice the time that the formulas have."""
    plain = Predicted.seconds
    monkeypatch.setattr(Predicted, "seconds", lambda own, load: 2 * plain(own, load))
    words = ["falcon-7b", "--hardware", "rtx4090", "--quant", "int8", "--verify"]
    assert main(["plan", *words, "--target", "60 tok/s, 256 context, 2 users"]) == 1
    assert "no simulated split holds" in capsys.readouterr().out
