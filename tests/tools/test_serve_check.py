"""scripts/serve-check: its exit codes, the document it writes, and how its parts read answers."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from serve_checks.__main__ import main
from serve_checks.asking import Streamed, _take
from serve_checks.checks import CHECKS, Check
from serve_checks.context import Context
from serve_checks.environment import PINS, environment
from serve_checks.memory import claim_steady
from serve_checks.report import FAILED, HELD, NOT_RUN, NotRun, Report


def _holds(context: Context, report: Report) -> None:
    report.claim("one", True, "seen")
    report.figure("rate", 2.5)


def _fails(context: Context, report: Report) -> None:
    report.claim("one", True)
    report.claim("two", False)


def _claims_nothing(context: Context, report: Report) -> None:
    assert context.folder.is_dir()


def _breaks(context: Context, report: Report) -> None:
    report.claim("one", True)
    raise ValueError("no answer")


def _lacks_a_client(context: Context, report: Report) -> None:
    raise NotRun("a client cannot be had")


@pytest.mark.parametrize(
    ("run", "verdict", "code"),
    [
        (_holds, HELD, 0),
        (_fails, FAILED, 1),
        (_claims_nothing, FAILED, 1),
        (_breaks, FAILED, 1),
        (_lacks_a_client, NOT_RUN, 77),
    ],
)
def test_a_check_s_verdict_is_its_exit_code_and_in_its_file(
    run: Callable[[Context, Report], None], verdict: str, code: int, tmp_path: Path
) -> None:
    arguments = ["one", "--out", str(tmp_path), "--environments", str(tmp_path / "environments")]
    assert main(arguments, {"one": Check("a check", run)}) == code
    document = json.loads((tmp_path / "serve-check-one.json").read_text("utf-8"))
    assert document["verdict"] == verdict
    assert document["command"] == f"scripts/serve-check {' '.join(arguments)}"
    assert document["machine"]["cores"]
    if run is _holds:
        assert document["claims"] == [{"claim": "one", "holds": True, "got": "seen"}]
        assert document["figures"] == {"rate": 2.5}


def test_a_failure_outweighs_a_check_that_was_not_run(tmp_path: Path) -> None:
    checks = {"one": Check("", _lacks_a_client), "two": Check("", _fails)}
    options = ["--out", str(tmp_path), "--environments", str(tmp_path)]
    assert main(["all", *options], checks) == 1


def test_a_check_is_told_what_to_serve_and_how(tmp_path: Path) -> None:
    told: list[Context] = []

    def run(context: Context, report: Report) -> None:
        told.append(context)
        report.claim("one", True)

    words = ["one", "--out", str(tmp_path), "--environments", str(tmp_path / "environments")]
    assert main(words, {"one": Check("", run)}) == 0
    served = ["--model", "folder", "--serve", "--quant int8 --threads 2"]
    assert main([*words, *served], {"one": Check("", run)}) == 0
    assert [(one.model, one.options) for one in told] == [
        ("nestling", ()),
        ("folder", ("--quant", "int8", "--threads", "2")),
    ]


@pytest.mark.parametrize("words", [["opena"], [], ["curl", "--minutes", "0"]])
def test_wrong_usage_is_one_line_and_exit_code_2(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("serve-check: error: wanted ")


def test_the_list_names_every_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(CHECKS)


@pytest.mark.parametrize("path", sorted(PINS.glob("*.txt")), ids=lambda path: path.stem)
def test_pins_are_exact_and_hold_what_was_asked_for(path: Path) -> None:
    first, *pins = path.read_text("utf-8").splitlines()
    assert all(pin.count("==") == 1 and " " not in pin for pin in pins)
    asked = [word.strip().lower() for word in first.removeprefix("#").split(",")]
    names = {pin.lower().replace("_", "-") for pin in pins}
    assert {one.replace("_", "-") for one in asked} <= names
    assert not any(pin.startswith(("torch==", "nvidia")) for pin in pins)


def test_packages_that_cannot_be_had_are_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pins = tmp_path / "pins"
    pins.mkdir()
    (pins / "one.txt").write_text("# one==1\n/nowhere/one-1-py3-none-any.whl\n")
    monkeypatch.setattr("serve_checks.environment.PINS", pins)
    with pytest.raises(NotRun, match="packages cannot be had: ERROR"):
        environment("one", tmp_path)


@pytest.mark.parametrize(("last", "holds"), [(1.019, True), (1.03, False), (0.97, False)])
def test_memory_is_compared_after_the_warm_up(last: float, holds: bool) -> None:
    report = Report("soak")
    claim_steady(report, [50] * 10 + [100_000] * 30 + [int(100_000 * last)] * 10)
    assert [one.holds for one in report.claims] == [holds]


@pytest.mark.parametrize(
    ("blocks", "whole"),
    [
        (
            [
                {"text": "a", "finish_reason": None},
                {"text": "b", "finish_reason": "length"},
                "[DONE]",
            ],
            True,
        ),
        ([{"text": "a", "finish_reason": "length"}], False),
        ([{"text": "a", "finish_reason": None}, "[DONE]"], False),
    ],
)
def test_a_stream_is_whole_when_it_has_a_reason_and_done(blocks: list[object], whole: bool) -> None:
    answer = Streamed()
    data = [one if isinstance(one, str) else json.dumps({"choices": [one]}) for one in blocks]
    _take(answer, [b": ping", *(f"data: {one}".encode() for one in data)], 1.0)
    assert answer.is_whole is whole
    assert "ab".startswith(answer.text)
    assert len(answer.times) == len(answer.text)
