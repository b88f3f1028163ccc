"""Long work in a log tells how far it is: a line a minute, with what remains."""

import io
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import make_checkpoint
from tqdm import tqdm

from gyrfalcon.cli.main import main
from gyrfalcon.console import progress
from gyrfalcon.console.progress import Lines, LogBar, bar, print_each


class Log(io.StringIO):
    """A stream that is no terminal and says when something was written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = threading.Event()

    def write(self, text: str) -> int:
        count = super().write(text)
        self.written.set()
        return count


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.mark.parametrize(
    ("total", "unit", "done", "seconds", "line"),
    [
        (433, "tensors", 120, 60, "loading: 120 of 433 tensors, 3 min left"),
        (433, "tensors", 0, 60, "loading: 0 of 433 tensors, after 1 min"),
        (433, "tensors", 432, 600, "loading: 432 of 433 tensors, less than a minute left"),
        (8e9, "B", 2e9, 3600, "loading: 2.0 GB of 8.0 GB, 3 h 0 min left"),
        (0, "tensors", 7, 120, "loading: 7 tensors, after 2 min"),
    ],
)
def test_a_line_tells_what_is_done_and_what_remains(
    total: float, unit: str, done: float, seconds: float, line: str
) -> None:
    clock = Clock()
    lines = Lines(total, unit, "loading", clock)
    lines.update(done)
    clock.seconds = seconds
    assert lines.line() == line


def test_updates_from_several_threads_all_count() -> None:
    lines = Lines(40_000, "B", "verifying", Clock())
    threads = [
        threading.Thread(target=lambda: list(map(lines.update, [1] * 10_000))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lines.line().startswith("verifying: 40.0 kB of 40.0 kB,")


def test_lines_come_while_a_unit_takes_long_and_end_with_the_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = Log()
    monkeypatch.setattr(sys, "stderr", log)
    with print_each(0.001, Lines(5, "cases", "speed")):
        assert log.written.wait(60)
    told = log.getvalue()
    assert told.startswith("speed: 0 of 5 cases, after less than a minute\n")
    assert not [thread for thread in threading.enumerate() if thread.name == "progress"]


def test_short_work_in_a_log_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log()
    monkeypatch.setattr(sys, "stderr", log)
    with bar(5, "cases", "speed") as shown:
        shown.update(5)
    assert log.getvalue() == ""


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log()
    monkeypatch.setattr(log, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", log)
    with bar(5, "cases", "speed") as shown:
        assert isinstance(shown, tqdm)


COMMANDS: dict[str, Callable[[Path, Path], list[str]]] = {
    "writing": lambda hf, cut: ["cut", str(hf), f"{cut}-2", "-w", "2"],
    "verifying": lambda hf, cut: ["verify", str(cut)],
    "our logits": lambda hf, cut: ["precision", str(hf), "--reference", "fp32", "--decode-steps=1"],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    hf, cut = (tmp_path_factory.mktemp("model") / name for name in ("hf", "cut"))
    make_checkpoint(hf, "40b", hidden_size=64, num_attention_heads=8, num_kv_heads=2)
    assert main(["cut", str(hf), str(cut), "-w", "1"]) == 0
    return hf, cut


@pytest.mark.parametrize("label", COMMANDS)
def test_commands_in_a_log_tell_lines(
    label: str, model: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each update waits for a line here, as if it took a minute."""
    log, whole = Log(), Lines.update

    def slow(self: Lines, n: float = 1) -> None:
        whole(self, n)
        log.written.clear()
        assert log.written.wait(60)

    monkeypatch.setattr(progress, "LINE_SECONDS", 0.001)
    monkeypatch.setattr(Lines, "update", slow)
    monkeypatch.setattr(sys, "stderr", log)
    main(COMMANDS[label](*model))
    assert f"\n{label}: " in f"\n{log.getvalue()}"
    assert "\r" not in log.getvalue()


def test_a_download_in_a_log_tells_lines_and_draws_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = Log()
    monkeypatch.setattr(sys, "stderr", log)
    with LogBar(seconds=0, total=10, unit="B", desc="Fetching") as shown:
        shown.update(5)
    assert "\r" not in log.getvalue()
    assert log.getvalue().splitlines()[1].startswith("Fetching:  50%")
    with LogBar(total=10, unit="B", desc="Fetching") as shown:
        shown.update(10)
    assert "100%" not in log.getvalue()
