"""The server's log: what becomes of lines that cannot be written."""

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from gyrfalcon.serve.log import LogWriter

PATIENCE = 60.0


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("server", logging.INFO, __file__, 1, text, None, None)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_full_disk_takes_lines_and_not_the_log(tmp_path: Path) -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    writer = LogWriter(descriptor)
    for number in range(3):
        writer.emit(record(f"lost {number}"))
    wait_until(lambda: writer._num_left_out == 3)
    with (tmp_path / "log").open("wb") as file:
        os.dup2(file.fileno(), descriptor)
    writer.emit(record("kept"))
    writer.close()
    os.close(descriptor)
    assert (tmp_path / "log").read_text() == "kept\n3 lines of the log were left out\n"


def test_nobody_waits_for_a_reader_that_has_gone() -> None:
    reader, descriptor = os.pipe()
    os.close(reader)
    writer = LogWriter(descriptor)
    for number in range(10_000):
        writer.emit(record(f"line {number}"))
    writer.close()
    os.close(descriptor)
    assert not writer._thread.is_alive()
