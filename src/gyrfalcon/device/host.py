"""What is asked of a machine outside torch: its files, environment, installed packages and programs. A test
gives a folder as the root, and what it likes for the rest.

Imports no torch: `gyrfalcon doctor` asks even where torch cannot be imported.
"""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

END_SECONDS = 1.0  # for a killed program to go: one that waits for a broken driver never does


@dataclass(frozen=True, slots=True)
class Answer:
    """What a program printed, and its exit code; None where it took too long."""

    code: int | None
    text: str


def run_program(words: Sequence[str], seconds: float) -> Answer | None:
    """Runs a program for at most this long; None where there is no such program."""
    with tempfile.TemporaryFile() as output:  # no pipe, which a grandchild could hold open
        try:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError:
            return None
        code: int | None = None
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_SECONDS)
        except BaseException:
            process.kill()
            raise
        output.seek(0)
        return Answer(code, output.read().decode("utf-8", "replace"))


def installed_version(package: str) -> str | None:
    """The version of an installed package, without importing it; None when it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def package_file(package: str, name: str) -> str:
    """The text of a file of an installed package, which is not imported; nothing without one."""
    with contextlib.suppress(OSError, ValueError):
        spec = find_spec(package)
        if spec is not None and spec.origin:
            return Path(spec.origin).with_name(name).read_text("utf-8", "replace")
    return ""


@dataclass(frozen=True, slots=True)
class Host:
    """A machine, or a folder that looks like one."""

    root: Path = Path("/")
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    version: Callable[[str], str | None] = installed_version
    package_file: Callable[[str, str], str] = package_file
    run: Callable[[Sequence[str], float], Answer | None] = run_program

    def read(self, path: str) -> str:
        """The text of a file; nothing where it cannot be read."""
        with contextlib.suppress(OSError):
            return self._at(path).read_text("utf-8", "replace")
        return ""

    def find(self, *patterns: str) -> list[str]:
        """The paths that match any of these patterns, in their order."""
        found = [path for pattern in patterns for path in sorted(self.root.glob(pattern[1:]))]
        return [f"/{path.relative_to(self.root)}" for path in found]

    def modified(self, path: str) -> float:
        """When a file was last written, in seconds; 0 where there is none."""
        with contextlib.suppress(OSError):
            return self._at(path).stat().st_mtime
        return 0.0

    def may_use(self, path: str) -> bool:
        """Whether this process may read and write it."""
        return os.access(self._at(path), os.R_OK | os.W_OK)

    def _at(self, path: str) -> Path:
        return self.root / path.lstrip("/")


def numbers(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with: 2.7.1.post2+cpu and 8.3.RC1 are 2, 7, 1 and 8, 3."""
    found: list[int] = []
    for part in version.strip().lstrip("vV").split("+")[0].split("."):
        digits = part[
            : next((at for at, char in enumerate(part) if not char.isdecimal()), len(part))
        ]
        if not digits:
            break
        found.append(int(digits))
        if digits != part:
            break
    return tuple(found)
