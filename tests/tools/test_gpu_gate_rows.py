"""The gate's rows: found in a process that may hang or break, kept after each, and not found twice."""

import ctypes
import json
import os
import signal
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import gpu_document
import gpu_gate
import psutil
import pytest
from gpu_document import CannotResume, Document
from gpu_worker import CannotStart, Loaded, RowProcess, Skipped

FACTS = {
    "date": "2026-12-01",
    "command": [],
    "commit": "abc",
    "dry_run": False,
    "device": "a card",
    "sources": "0123",
    "torch": "2.11",
    "triton": "3.6",
}
Row = Callable[[], dict[str, Any]]


def stub_load(options: Namespace) -> Loaded:
    """Steps of a card that breaks in many ways."""
    if options.no_card:
        raise CannotStart("wanted a card, got none")
    steps: dict[str, dict[str, Row]] = {
        "limits": {"card": lambda: {"passed": True}},
        "good": {name: partial(note, options, name) for name in ("one", "two")},
        "bad": {"raises": fail, "skipped": skip, "dies": die, "behind": lambda: {"passed": True}},
        "hanging": {"first": partial(note, options, "first"), "hangs": hang, "last": fail},
        "good again": {"three": partial(note, options, "three")},
    }
    return Loaded(
        facts={name: FACTS[name] for name in ("date", "commit", "device", "torch", "triton")},
        deadlines={**dict.fromkeys(steps, 60.0), "hanging": options.deadline},
        steps={name: partial(dict, rows) for name, rows in steps.items()},
        is_usable=lambda: options.usable,
    )


def note(options: Namespace, name: str) -> dict[str, Any]:
    """Tells in a file that the row was found, by which process."""
    with (options.folder / "found").open("a") as file:
        file.write(f"{name}\n")
    return {"passed": True, "process": os.getpid()}


def fail() -> NoReturn:
    raise ValueError("no")


def skip() -> NoReturn:
    raise Skipped("too large")


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def hang() -> NoReturn:
    """As in a kernel that does not end: Python's code is not reached again, whatever signal comes."""
    while True:
        ctypes.PyDLL(None).sleep(1000)


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Callable[..., RowProcess]]:
    started: list[RowProcess] = []

    def start(**changed: Any) -> RowProcess:
        usual = {"folder": tmp_path, "no_card": False, "deadline": 1.0, "usable": True}
        started.append(RowProcess(stub_load, Namespace(**{**usual, **changed})))
        return started[-1]

    yield start
    for one in started:
        one.end()


def run(process: RowProcess, document: Document, *steps: str, seconds: float = 300) -> bool:
    return gpu_gate.find_rows(process, document, steps, time.monotonic() + seconds)


def test_rows_that_fail_or_break_their_process_leave_the_others(
    process: Callable[..., RowProcess], tmp_path: Path
) -> None:
    document = Document.begin(tmp_path / "gate.json", FACTS)
    assert run(process(), document, "bad", "good")
    bad = document.rows["bad"]
    assert bad["raises"] == {"passed": False, "error": "ValueError: no", "seconds": 0.0}
    assert bad["skipped"] == {"skipped": "too large", "seconds": 0.0}
    assert bad["dies"] == {"passed": False, "error": "its process ended with code -9"}
    assert bad["behind"]["passed"]
    assert [*document.rows["good"]] == ["one", "two"]
    assert not document.holds()


def test_a_hanging_kernel_is_ended_at_its_steps_deadline_and_the_next_step_begins(
    process: Callable[..., RowProcess], tmp_path: Path
) -> None:
    document = Document.begin(tmp_path / "gate.json", FACTS)
    assert run(process(), document, "hanging", "good again")
    hanging = document.rows["hanging"]
    assert [*hanging] == ["first", "hangs"]
    assert hanging["hangs"] == {"passed": False, "error": "ended 1 s after its step began"}
    after = document.rows["good again"]["three"]
    assert after["passed"]
    assert after["process"] != hanging["first"]["process"]
    assert not psutil.pid_exists(hanging["first"]["process"])


def test_when_the_time_is_over_a_row_under_way_is_left_for_a_resumed_run(
    process: Callable[..., RowProcess], tmp_path: Path
) -> None:
    document = Document.begin(tmp_path / "gate.json", FACTS)
    assert not run(process(deadline=500.0), document, "hanging", "good again", seconds=3)
    assert [*document.rows["hanging"]] == ["first"]
    assert "good again" not in document.rows


@pytest.mark.parametrize("usable", [True, False])
def test_after_an_error_a_process_goes_on_only_if_the_card_does(
    process: Callable[..., RowProcess], tmp_path: Path, usable: bool
) -> None:
    document = Document.begin(tmp_path / "gate.json", FACTS)
    rows = process(usable=usable)
    until = time.monotonic() + 300
    before = rows.find("good", "one", until)["process"]
    assert rows.find("bad", "raises", until)["error"] == "ValueError: no"
    after = rows.find("good", "one", until)["process"]
    assert (before == after) == usable
    assert document.holds()


def test_without_a_card_the_process_says_so(process: Callable[..., RowProcess]) -> None:
    with pytest.raises(CannotStart, match="wanted a card, got none"):
        process(no_card=True)


def test_the_file_is_whole_after_every_row_and_rows_in_it_are_not_found_again(
    process: Callable[..., RowProcess], tmp_path: Path
) -> None:
    path = tmp_path / "gate.json"
    run(process(), Document.begin(path, FACTS), "limits", "good")
    resumed = Document.resume(path, {**FACTS, "command": ["--resume"]})
    assert [*json.loads(path.read_text())["rows"]] == ["limits", "good"]
    del resumed.rows["good"]["two"]
    run(process(), resumed, "limits", "good", "good again")
    assert (tmp_path / "found").read_text().split() == ["one", "two", "two", "three"]
    found = json.loads(path.read_text())
    assert [*found["rows"]] == ["limits", "good", "good again"]
    assert [one["command"] for one in found["runs"]] == [[], ["--resume"]]
    assert not list(tmp_path.glob("*.partial"))


def test_a_file_stays_whole_when_writing_breaks_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = Document.begin(tmp_path / "gate.json", FACTS)
    document.add("limits", "card", {"passed": True})
    before = document.path.read_text()
    write = Path.write_text

    def break_off(self: Path, text: str, *rest: str) -> NoReturn:
        write(self, text[: len(text) // 2])
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_text", break_off)
    with pytest.raises(OSError, match="no space"):
        document.add("good", "one", {"passed": True})
    assert document.path.read_text() == before


@pytest.mark.parametrize("name", gpu_document.SAME)
def test_rows_of_something_else_are_refused(tmp_path: Path, name: str) -> None:
    document = Document.begin(tmp_path / "gate.json", FACTS)
    document.add("limits", "card", {"passed": True})
    other = {**FACTS, name: "another"}
    with pytest.raises(CannotResume, match=rf"of {name} .* \(now another\); begin a new file"):
        Document.resume(document.path, other)


@pytest.mark.parametrize("text", ["", "{}", '{"format": "gyrfalcon-gpu-gate", "version": 1}'])
def test_a_file_of_no_run_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "gate.json").write_text(text)
    with pytest.raises(CannotResume, match="wanted"):
        Document.resume(tmp_path / "gate.json", FACTS)
    with pytest.raises(CannotResume, match="No such file"):
        Document.resume(tmp_path / "none.json", FACTS)


NAMES = [
    "compile speed",
    "limits",
    "layers",
    "speed 40b bf16",
    "speed 7b int4",
    "compile laws",
    "laws",
    "tests",
]


@pytest.mark.parametrize(
    ("only", "steps"),
    [
        ([], NAMES),
        (["speed"], ["compile speed", "limits", "speed 40b bf16", "speed 7b int4"]),
        (["laws", "tests"], ["limits", "compile laws", "laws", "tests"]),
        (["speed 7b"], ["compile speed", "limits", "speed 7b int4"]),
    ],
)
def test_steps_are_chosen_by_their_first_words(only: list[str], steps: list[str]) -> None:
    assert gpu_gate.chosen(NAMES, only) == steps


def test_a_step_that_is_none_is_refused_with_the_list() -> None:
    with pytest.raises(gpu_gate.WrongUsage, match=r"compile speed, limits, .*tests; got 'law'"):
        gpu_gate.chosen(NAMES, ["law"])


def test_the_digest_changes_with_any_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "src/gyrfalcon/ops/one.py"
    source.parent.mkdir(parents=True)
    monkeypatch.setattr(gpu_document, "ROOT", tmp_path)
    digests = set()
    for text in ("a = 1", "a = 2", "a = 2"):
        source.write_text(text)
        digests.add(gpu_document.digest_of_sources())
    source.rename(source.with_name("two.py"))
    digests.add(gpu_document.digest_of_sources())
    assert len(digests) == 3


@pytest.mark.slow
def test_a_resumed_dry_run_finds_the_rest_and_tells_of_both(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "gate.json"
    assert gpu_gate.main(["--dry-run", "--only", "nestling", "--json", str(path)]) == 0
    assert gpu_gate.main(["--dry-run", "--only", "gemlite", "--resume", str(path)]) == 0
    out = capfd.readouterr().out
    rows = json.loads(path.read_text())["rows"]
    assert [*rows] == ["limits", "compile nestling", "nestling", "gemlite"]
    assert out.count("nestling   skipped: its prompts take hours in the interpreter") == 2
