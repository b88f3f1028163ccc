"""The server's log: lines to standard error from a thread of their own, so that nobody waits for their
reader.
"""

import logging
import os
import queue
import threading
from contextlib import suppress

from gyrfalcon.errors import DISK_FULL

MOST_LINES = 4096  # that wait to be written; further ones are left out and counted
LAST_LINES_SECONDS = 1.0  # for what is left when the server ends


class LogWriter(logging.Handler):
    """Formats records where they are made and writes them elsewhere."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._lines: queue.Queue[bytes | None] = queue.Queue(MOST_LINES)
        self._num_left_out = 0
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.put_nowait(self.format(record).encode("utf-8", "backslashreplace") + b"\n")
        except queue.Full:
            self._num_left_out += 1

    def close(self) -> None:
        """Waits for what is left, but not for a reader that reads nothing."""
        try:
            self._lines.put(None, timeout=LAST_LINES_SECONDS)
            self._thread.join(LAST_LINES_SECONDS)
        except queue.Full:
            pass
        super().close()

    def _write(self) -> None:
        """The thread. Not through sys.stderr, whose lock would be held while nobody reads."""
        while (line := self._lines.get()) is not None:
            try:
                self._write_all(line)
                if self._lines.empty():
                    self._tell_left_out()
            except OSError as error:
                if error.errno not in DISK_FULL:  # nobody can read it any more
                    break
                self._num_left_out += 1
        if line is None:
            with suppress(OSError):
                self._tell_left_out()
        while line is not None:
            line = self._lines.get()

    def _tell_left_out(self) -> None:
        if number := self._num_left_out:
            self._write_all(b"%d lines of the log were left out\n" % number)
            self._num_left_out -= number

    def _write_all(self, line: bytes) -> None:
        while line:
            line = line[os.write(self._descriptor, line) :]


def log_to_stderr() -> LogWriter:
    """Sends all records from INFO on to standard error."""
    writer = LogWriter(2)
    writer.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[writer])
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    return writer
