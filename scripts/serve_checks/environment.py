"""Virtual environments for clients: one each, with exactly the versions in pins/NAME.txt.

A pins file lists all that pip installs, so pip resolves nothing and downloads nothing else. Its first line,
`# NAME==VERSION, …`, says which of it was asked for; a client that needs torch borrows the project's own
packages by a .pth file, behind those of its environment. To renew a file, resolve it in such an environment:

    pip --python ENVIRONMENT/bin/python install --dry-run --quiet --report - NAME==VERSION
"""

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from serve_checks.report import NotRun

PINS = Path(__file__).with_name("pins")
SCRIPTS = Path(__file__).parents[1]
INSTALL_SECONDS = 900
OURS = "zz_project.pth"  # the last of the environment's own packages


@dataclass(frozen=True, slots=True)
class Environment:
    """A finished environment."""

    folder: Path
    versions: dict[str, str]  # of what was asked for

    @property
    def python(self) -> str:
        return str(self.folder / "bin" / "python")

    def command(self, name: str) -> str:
        """The path of a command that a package brings."""
        return str(self.folder / "bin" / name)

    def client(self, name: str) -> list[str]:
        """The command of a module in clients/."""
        return ["env", f"PYTHONPATH={SCRIPTS}", self.python, "-m", f"serve_checks.clients.{name}"]


def environment(
    name: str, parent: Path, *, borrows: bool = False, pins_folder: Path | None = None
) -> Environment:
    """The environment for NAME.txt of a folder of pins (default: pins/ here), made where it is not there
    yet or is another. `borrows`: sees the project's packages, too. NotRun when a package cannot be had.
    """
    pins = (pins_folder or PINS) / f"{name}.txt"
    text = pins.read_text("utf-8")
    folder, wanted = parent / name, _digest(text, borrows)
    stamp = folder / ".complete"
    if not stamp.is_file() or stamp.read_text("utf-8") != wanted:
        print(f"  making the environment {folder}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        _call([sys.executable, "-m", "venv", "--without-pip", str(folder)])
        if borrows:
            _borrow(folder)
        pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python")]
        options = ["--no-deps", "--prefer-binary", "--quiet", "-r", str(pins)]
        _call([*pip, "--disable-pip-version-check", "install", *options])
        stamp.write_text(wanted, "utf-8")
    return Environment(folder, _asked_for(text))


def clean_environ() -> dict[str, str]:
    """This process's variables, without those that lead to other packages or options of pip."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PIP_CONSTRAINT")
    }


def _borrow(folder: Path) -> None:
    [packages] = (folder / "lib").glob("python*/site-packages")
    (packages / OURS).write_text(sysconfig.get_path("purelib") + "\n", "utf-8")


def _digest(pins: str, borrows: bool) -> str:
    what = f"{sys.version}\n{borrows}\n{sysconfig.get_path('purelib') if borrows else ''}\n{pins}"
    return hashlib.sha256(what.encode()).hexdigest()


def _asked_for(pins: str) -> dict[str, str]:
    words = pins.splitlines()[0].removeprefix("#").split(",")
    return dict(word.strip().split("==") for word in words)


def _call(command: list[str]) -> None:
    """Runs pip or venv; NotRun with its last line when it fails."""
    try:
        done = subprocess.run(
            command, env=clean_environ(), capture_output=True, text=True, timeout=INSTALL_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise NotRun(f"packages cannot be had: pip took more than {INSTALL_SECONDS} s") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
        errors = [line for line in lines if "ERROR" in line] or lines
        raise NotRun(f"packages cannot be had: {errors[-1].strip()}")
