"""Talking to the process of one engine (cpu_peers_worker.py)."""

import json
import os
import subprocess
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

WORKER = Path(__file__).with_name("cpu_peers_worker.py")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
SHOWN_LETTERS = 200  # of what an engine said last


class EngineFailed(Exception):
    """An engine failed; the message says why."""


class EngineProcess:
    """A process with one engine, until the `with` ends. Its output goes to `log`; its temporary
    files lie beside that and are removed with it.
    """

    def __init__(self, engine: str, python: str, threads: int, log: Path) -> None:
        self._log = log
        self._temporary = tempfile.TemporaryDirectory(dir=log.parent)
        environment = {
            **os.environ,
            **dict.fromkeys(THREADS, str(threads)),
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
            "TMPDIR": self._temporary.name,
        }
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [python, str(WORKER), engine],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                encoding="utf-8",
            )

    def __enter__(self) -> "EngineProcess":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._temporary.cleanup()

    def ask(self, do: str, limit_seconds: float, **arguments: object) -> dict[str, Any]:
        """The process's answer; EngineFailed when that is not a result."""
        timer = threading.Timer(limit_seconds, self._process.kill)
        timer.start()
        try:
            line = self._exchange(json.dumps({"do": do, **arguments}))
        finally:
            late = not timer.is_alive()
            timer.cancel()
        if not line:
            why = f"no answer in {limit_seconds:.0f} s" if late else self._last_words()
            raise EngineFailed(why)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise EngineFailed(" ".join(answer["error"].split()))
        return answer

    def _exchange(self, line: str) -> str:
        """The answer to one line; nothing when the process has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return ""
        return self._process.stdout.readline()

    def _last_words(self) -> str:
        code = self._process.wait()
        lines = self._log.read_text("utf-8", "replace").split("\n")
        said = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"its process ended with {code}: {said[-SHOWN_LETTERS:]}"
