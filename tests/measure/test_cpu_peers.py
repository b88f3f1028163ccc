"""benchmarks/cpu_peers.py on tiny models: what it measures and writes, who is behind, what it refuses."""

import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from gyrfalcon.errors import UsageError
from gyrfalcon.measure.roofline import MachineLimits
from gyrfalcon.model.architectures import config_from_json

cpu_peers = import_module("cpu_peers")
model = import_module("cpu_peers_model")
plan = import_module("cpu_peers_plan")
process = import_module("cpu_peers_process")
race = import_module("cpu_peers_race")
results = import_module("cpu_peers_results")

STEPS = 3
TINY = "--hidden 256 --layers 2 --vocab 512 --prompt-len 8 --rounds 1 --threads 1".split()
ENGINES = "--engines gyrfalcon,transformers".split()
CASE = results.Case("A", "bf16", 1, 8, 2)
LIMITS = MachineLimits(bandwidth_bytes_per_second=1e9, matrix_flops_per_second=1e10)
TURN = results.Turn(CASE, "gyrfalcon", 0, LIMITS, 0.5, [0.1, 0.2, 0.4], [7])
CONFIG = config_from_json(
    replace(model.SHAPES["A"], hidden_size=256, num_layers=2).config(vocab_size=512)
)


def planned(*argv: str) -> Any:
    return plan.plan_of(plan.parse_options([*TINY, *ENGINES, *argv], None))


@pytest.mark.slow
@pytest.mark.usefixtures("brief_limits")
def test_a_run_times_every_step_of_every_engine_on_the_same_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work, file = tmp_path / "work", tmp_path / "peers.json"
    work.mkdir()
    argv = [*TINY, *ENGINES, "--precisions", "bf16,int4", "--batches", "2", "--steps", str(STEPS)]
    code = cpu_peers.main([*argv, "--folder", str(work), "--json", str(file)])
    found, printed = json.loads(file.read_text("utf-8")), capsys.readouterr()
    assert not list(work.iterdir())
    assert code == any(row["behind"] for row in found["rows"])
    check_turns(found["turns"])
    check_facts(found, argv)
    assert "needs" in printed.err
    assert "A: 1 round would take 0.0 minutes at this machine's limits" in printed.err
    for head in ("A bf16 prefill 2 × 8 tokens", "B int4 decode 3 steps after 2 × 8 tokens"):
        assert head in printed.out
    assert "load average" in printed.out


def check_turns(turns: list[dict[str, Any]]) -> None:
    """Both engines in bf16, ours alone in int4 and with model C; all steps were timed, and began with the
    same tokens.
    """
    ways = [("bf16", "gyrfalcon"), ("bf16", "transformers"), ("int4", "gyrfalcon")]
    wanted = [
        (each, *way, 2) for each in "ABC" for way in ways if each != "C" or "gyrfalcon" in way
    ]
    first_ids: dict[str, list[int]] = {}
    got = []
    for turn in turns:
        case, ends = turn["case"], turn["ends"]
        got.append((case["model"], case["precision"], turn["engine"], case["batch"]))
        assert turn["failed"] is None
        assert len(ends) == STEPS + 1
        assert ends == sorted(ends)
        assert turn["limits"]["bandwidth_bytes_per_second"] > 0
        if case["precision"] == "bf16":
            first = first_ids.setdefault(case["model"], turn["first_ids"])
            assert turn["first_ids"] == first
    assert got == wanted


def check_facts(found: dict[str, Any], argv: list[str]) -> None:
    """The file says what was run, where and when."""
    assert found["command"][1:-4] == argv
    assert (found["device"], found["dtype"], found["threads"]) == ("cpu", "bf16", 1)
    assert found["models"]["B"]["config"]["hidden_size"] == 256
    assert [*found["versions"]] == ["gyrfalcon", "transformers"]
    assert found["versions"]["gyrfalcon"]["torch"] == found["machine"]["torch"]
    assert found["missing"] == {}
    assert found["date"].endswith("+00:00")


def test_rows_hold_medians_ratios_and_percent_of_the_limits_beside_them() -> None:
    fast = MachineLimits(bandwidth_bytes_per_second=2e9, matrix_flops_per_second=1e10)
    peer = replace(TURN, engine="openvino", ends=[0.16, 0.26, 0.36])
    turns = [TURN, peer, replace(TURN, round=1, limits=fast, ends=[0.3, 0.7, 1.0])]
    prefill_peer, prefill, decode_peer, decode = results.rows_of(turns, {"A": CONFIG})
    assert [row.engine for row in (prefill, decode)] == ["gyrfalcon"] * 2
    assert (prefill.median_ms, prefill.least_ms, prefill.most_ms) == pytest.approx((200, 100, 300))
    assert decode.median_ms == pytest.approx(250)  # of 100, 200, 400, 300
    assert (prefill_peer.ratio, prefill.ratio) == pytest.approx((1, 0.8))
    assert (decode_peer.ratio, decode.ratio) == pytest.approx((1, 0.4))
    read = decode_peer.percent_of_limit * 1e9 * 0.1
    assert decode.percent_of_limit == pytest.approx((read / 1e9 / 0.15 + read / 2e9 / 0.35) / 2)


def test_a_round_is_predicted_by_the_machines_limits() -> None:
    asked = planned("--models", "A", "--precisions", "bf16", "--batches", "1,2", "--steps", "5")
    [row] = [each for each in results.rows_of([TURN], {"A": CONFIG}) if each.phase == "prefill"]
    prompt = row.percent_of_limit / 100 * 0.1  # seconds at the limit of the case's prompt
    step = results.least_ms("decode", CASE, CONFIG, LIMITS) / 1000  # nearly, for any of the steps
    found = race.least_seconds(asked, "A", {}, {"bf16": LIMITS})
    for_each = (1 + 1 + 2) * prompt + (race.WARM_UP_STEPS + 5 + 5) * step
    assert found == pytest.approx(2 * for_each, rel=0.01)  # of two engines
    alone = race.least_seconds(asked, "A", {"transformers"}, {"bf16": LIMITS})
    assert alone == pytest.approx(found / 2)


def test_long_prompts_get_the_positions_and_the_memory_that_they_need() -> None:
    long, usual = (plan.plan_of(plan.parse_options(argv, None)) for argv in (["--long"], []))
    assert (long.prompt_len, long.batches, [*long.configs]) == (2048, (1, 8), ["A", "B"])
    positions = [each.configs["A"]["max_position_embeddings"] for each in (long, usual)]
    assert positions == [long.total_len, 2048]
    more, less = (plan._needs(each, "B")[1] for each in (long, usual))
    assert more > less


def test_rounds_that_ended_are_kept_when_a_later_one_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Iterator[list[Any]]:
        yield [TURN]
        raise UsageError("a disk", "none", "buy one")

    monkeypatch.setattr(cpu_peers, "find_engines", lambda *_: ({}, {}))
    monkeypatch.setattr(cpu_peers, "race", broken)
    file = tmp_path / "peers.json"
    argv = [*TINY, *ENGINES, "--models", "A", "--folder", str(tmp_path), "--json", str(file)]
    assert cpu_peers.main(argv) == 2
    found = json.loads(file.read_text("utf-8"))
    [turn] = found["turns"]
    assert turn["ends"] == TURN.ends
    assert found["rounds"] == {"A": 1}  # there are, whatever was asked for


def kept_in(file: Path, **changed: object) -> None:
    """A file of one round of ours in bf16, measured here and now but for what is `changed`."""
    options = planned("--models", "A", "--precisions", "bf16", "--batches", "1", "--steps", "2")
    facts = cpu_peers.facts_of(options, {}, {}, [])
    turns = results.to_json([], [TURN])
    file.write_text(json.dumps({**facts, **turns, **changed}), "utf-8")


def resumed(
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    rounds: int = 3,
    more: tuple[str, ...] = (),
    missing: Mapping[str, str] | None = None,
) -> list[int]:
    """The rounds that a run with --resume adds to `file`."""
    ran: list[int] = []

    def race(plan: Any, _: str, __: object, ___: Path, done: int) -> Iterator[list[Any]]:
        for number in range(done, plan.rounds):
            ran.append(number)
            yield [replace(TURN, round=number)]

    monkeypatch.setattr(cpu_peers, "find_engines", lambda *_: ({}, missing or {}))
    monkeypatch.setattr(cpu_peers, "race", race)
    argv = [*TINY, "--engines", "gyrfalcon", "--models", "A", "--precisions", "bf16", "--resume"]
    argv += [
        "--batches",
        "1",
        "--steps",
        "2",
        "--rounds",
        str(rounds),
        "--folder",
        str(file.parent),
    ]
    assert cpu_peers.main([*argv, "--json", str(file), *more]) == 0
    return ran


def test_rounds_are_added_to_those_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "peers.json"
    assert resumed(file, monkeypatch, rounds=2) == [0, 1]  # no file yet
    kept_in(file)
    assert resumed(file, monkeypatch) == [1, 2]
    assert [turn["round"] for turn in json.loads(file.read_text("utf-8"))["turns"]] == [0, 1, 2]
    assert resumed(file, monkeypatch) == []


def test_a_round_in_which_an_engine_failed_is_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "peers.json"
    failed = replace(TURN, round=1, ends=[], failed="no answer")
    kept_in(file, turns=results.to_json([], [TURN, failed, replace(TURN, round=2)])["turns"])
    assert resumed(file, monkeypatch) == [1, 2]
    turns = json.loads(file.read_text("utf-8"))["turns"]
    assert [(turn["round"], turn["failed"]) for turn in turns] == [(0, None), (1, None), (2, None)]


def test_a_run_goes_on_without_what_an_engine_lacks_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "peers.json"
    kept_in(file)
    both = ("--engines", "gyrfalcon,ctranslate2")
    lacking = {"ctranslate2 bf16": "in float32 only"}
    assert resumed(file, monkeypatch, more=both, missing=lacking) == [1, 2]
    with pytest.raises(AssertionError):
        resumed(file, monkeypatch, more=both)


def test_fewer_rounds_than_there_are_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "peers.json"
    kept_in(file, turns=results.to_json([], [replace(TURN, round=i) for i in range(4)])["turns"])
    before = file.read_bytes()
    assert resumed(file, monkeypatch) == []
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("changed", "more", "words"),
    [
        ({"versions": {"gyrfalcon": {}}}, (), "to be of this run, got other versions; repeat"),
        ({"threads": 3}, (), "got other threads"),
        ({}, ("--steps", "3"), "got other cases"),
        ({}, ("--batches", "1,2"), "got other cases"),
        ({"turns": [{}]}, (), "a result of cpu_peers.py in"),
        ({"machine": {}}, (), "a result of cpu_peers.py in"),
    ],
)
def test_rounds_of_another_run_are_refused(
    changed: dict[str, object],
    more: tuple[str, ...],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "peers.json"
    kept_in(file, **changed)
    before = file.read_bytes()
    with pytest.raises(AssertionError):
        resumed(file, monkeypatch, more=more)
    assert words in capsys.readouterr().err
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("ours", "peer", "code"),
    [
        ({}, {"ends": [0.2, 0.4, 0.6]}, 0),
        ({}, {"ends": [0.09, 0.4, 0.6]}, 1),  # a faster prefill
        ({}, {"ends": [0.2, 0.21, 0.22]}, 1),  # faster decoding
        ({"failed": "no memory", "ends": []}, {}, 1),
        ({}, {"failed": "no memory", "ends": []}, 0),
    ],
)
def test_the_exit_code_says_whether_a_row_is_behind(
    ours: dict[str, Any], peer: dict[str, Any], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = [replace(TURN, **ours), replace(TURN, engine="llama.cpp", **peer)]
    assert cpu_peers.report(planned(), turns, None) == code
    shown = capsys.readouterr().out
    assert ("BEHIND" in shown) == (code == 1 and not ours)
    assert ("failed: no memory" in shown) == bool(ours or "failed" in peer)


def test_where_there_is_no_peer_the_row_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert cpu_peers.report(planned(), [TURN], None) == 0
    assert capsys.readouterr().out.count("no peer") == 2


def test_an_engine_that_failed_once_has_no_figures() -> None:
    turns = [TURN, replace(TURN, round=1, ends=[], failed="why not")]
    assert [row.failed for row in results.rows_of(turns, {"A": CONFIG})] == ["why not"] * 2


def test_the_plot_is_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    cpu_peers.report(planned(), [TURN], tmp_path / "peers.png")
    assert (tmp_path / "peers.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("--engines onnx", "wanted --engines of gyrfalcon, transformers"),
        ("--models D", "wanted --models of A, B, C, got 'D'"),
        (
            "--models C --engines openvino",
            "wanted gyrfalcon among --engines for model C, got openvino",
        ),
        ("--precisions fp8", "wanted --precisions of bf16, int8, int4"),
        ("--rounds 0", "wanted a whole number from 1 to 1,000,000 for --rounds"),
        ("--hidden 100", "wanted a multiple of 256 for --hidden, got 100"),
        ("--threads 4096", "--threads, the cores usable here, got 4096"),
        ("--python llama.cpp=/nowhere", "wanted --python ENGINE=PYTHON"),
        ("--hidden 256 --layers 2 --batches 1,99999 --long", "TB of memory, got"),
        ("--resume", "wanted --json FILE to --resume, got none"),
        ("--layers 10000", "free; name another --folder, or fewer --models, --engines or --layers"),
    ],
)
def test_what_cannot_be_run_is_refused(
    argv: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cpu_peers.main([*argv.split(), "--folder", str(tmp_path)]) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_too_little_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = 10**13
    monkeypatch.setattr(plan, "parameters", lambda config: weights)
    free = shutil.disk_usage(tmp_path)._replace(free=100 * weights)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: free)
    with pytest.raises(plan.UsageError, match=r"TB of memory, got .* free; name fewer --models"):
        plan.check_room(planned(), tmp_path)


def interpreter(folder: Path, line: str) -> str:
    """A program that stands where a Python interpreter should."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{line}\n", "utf-8")
    path.chmod(0o755)
    return str(path)


def test_an_engine_that_cannot_be_imported_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = interpreter(tmp_path, f'exec {sys.executable} -S "$@"')  # without installed packages
    asked = replace(planned("--python", f"transformers={bare}"), engines=["transformers"])
    versions, missing = race.find_engines(asked, tmp_path)
    assert versions == {}
    assert missing == {"transformers": "ModuleNotFoundError: No module named 'torch'"}
    assert "missing: transformers" in capsys.readouterr().err


def test_a_precision_that_an_engine_lacks_on_this_processor_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = tmp_path / "ctranslate2"
    (engine / "converters").mkdir(parents=True)
    types = "get_supported_compute_types = lambda device: {'float32', 'int8'}"
    names = "Generator = GenerationStepResult = None"
    (engine / "__init__.py").write_text(f"__version__ = '4'\n{types}\n{names}\n", "utf-8")
    (engine / "converters" / "__init__.py").write_text("TransformersConverter = None\n", "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    asked = planned("--models", "A", "--engines", "ctranslate2")
    versions, missing = race.find_engines(asked, tmp_path)
    assert versions == {"ctranslate2": {"ctranslate2": "4"}}
    assert missing == {"ctranslate2 bf16": "on this processor it computes in float32, int8 only"}
    assert "missing: ctranslate2 bf16: on this processor" in capsys.readouterr().err
    assert asked.pairs("A", missing) == [("int8", "ctranslate2")]


def test_a_run_without_ours_is_refused(tmp_path: Path) -> None:
    asked = planned("--python", f"gyrfalcon={interpreter(tmp_path, 'exit 3')}")
    with pytest.raises(
        plan.UsageError, match=r"wanted gyrfalcon in .*python, got its process ended"
    ):
        race.find_engines(asked, tmp_path)


@pytest.mark.parametrize(
    ("line", "seconds", "words"),
    [
        ("echo no such kernel >&2; exit 3", 600, "its process ended with 3: no such kernel"),
        ("exec sleep 600", 1, "no answer in 1 s"),
    ],
)
def test_an_engine_that_ends_or_is_silent_is_a_failure(
    line: str, seconds: int, words: str, tmp_path: Path
) -> None:
    python = interpreter(tmp_path, line)
    with (
        process.EngineProcess("openvino", python, 1, tmp_path / "log") as engine,
        pytest.raises(process.EngineFailed, match=words),
    ):
        engine.ask("versions", seconds)


def test_what_an_engine_leaves_among_temporary_files_goes_with_it(tmp_path: Path) -> None:
    python = interpreter(tmp_path, f"mktemp -d > {tmp_path}/left; echo '{{}}'; exec sleep 600")
    with process.EngineProcess("openvino", python, 1, tmp_path / "log") as engine:
        engine.ask("prepare", 600)
        left = Path((tmp_path / "left").read_text().strip())
        assert left.is_dir()
        assert left.is_relative_to(tmp_path)
    assert not left.exists()
    assert not left.parent.exists()


def test_a_failure_becomes_a_turn_that_says_why(tmp_path: Path) -> None:
    asked = planned("--python", f"transformers={interpreter(tmp_path, 'exit 3')}")
    runner = race.Runner(asked, "A", "bf16", "transformers", tmp_path)
    first, second = runner.turn(0, LIMITS)
    assert (first.case.batch, second.case.batch) == (1, 8)
    assert first.failed == second.failed == "its process ended with 3: "
    assert first.ends == second.ends == []
