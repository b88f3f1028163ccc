"""What a check is given, and how it starts the programs of its clients."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from serve_checks.environment import clean_environ


@dataclass(frozen=True, slots=True)
class Context:
    """What a check is given. minutes: how long a load lasts; None: as long as its figures need.
    model, options: what is served, and options of `serve`, where a check leaves that open.
    """

    folder: Path  # empty, removed after the check
    environments: Path  # where virtual environments are kept
    minutes: float | None
    seed: int
    model: str = "nestling"
    options: tuple[str, ...] = ()


def run_client(
    command: list[str], seconds: float, cwd: Path | None = None
) -> "subprocess.CompletedProcess[str]":
    """A program's end, whatever its exit code; RuntimeError when it takes too long. `cwd`: where it may
    leave files.
    """
    environ = clean_environ()
    try:
        return subprocess.run(
            command, env=environ, cwd=cwd, capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"wanted an end within {seconds:g} s, got none: {command[0]}") from None


def json_of(command: list[str], seconds: float) -> dict[str, object]:
    """The JSON object that a client prints as its last line; RuntimeError when it fails."""
    done = run_client(command, seconds)
    if done.returncode:
        raise RuntimeError(f"wanted exit code 0, got {done.returncode}: {done.stderr[-1500:]}")
    value = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(value, dict)
    return value
