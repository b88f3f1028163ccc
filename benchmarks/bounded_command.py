"""Commands that end in time, with every process that they started."""

import contextlib
import os
import signal
import subprocess
from pathlib import Path


def run_for(
    command: list[str], seconds: float, with_errors: bool = False
) -> tuple[int | None, str]:
    """Runs a command for at most this many seconds: its exit code and standard output, with_errors
    standard error as well. No exit code when it had to be killed, with every process it started.
    """
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if with_errors else subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired as error:
        until_then = error.output or b""
        return None, until_then.decode(errors="replace")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return process.returncode, output


def commit() -> str:
    """The commit of these sources; "unknown" without git or outside a repository."""
    try:
        git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
        code, output = run_for(git, seconds=10)
    except OSError:
        return "unknown"
    return output.strip() if code == 0 else "unknown"
