"""Stand-ins for shared libraries that a wheel was built against and this machine lacks.

A wheel for a card wants the card maker's libraries when it is imported, though operators' schemas and
shapes need none of them. What the wheel's files leave undefined, and no library here defines, is
defined here: functions that return 0 and do nothing. Needs a C compiler, nm and readelf (binutils).
"""

import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from shutil import which

from serve_checks.report import NotRun

# While it is set, the stand-in of CANN says that there is one card.
CARD = "GYRFALCON_STAND_IN_CARD"
# Those whose answer is looked at.
SPECIAL = {
    "aclrtGetDeviceCount": f"""
        extern char *getenv(const char *);
        int aclrtGetDeviceCount(unsigned *n) {{ *n = getenv("{CARD}") != 0; return 0; }}""",
    "aclrtGetSocName": 'const char *aclrtGetSocName(void) { return "Ascend910B3"; }',
    "aclGetRecentErrMsg": 'const char *aclGetRecentErrMsg(void) { return "a stand-in of CANN"; }',
    "cudaGetDeviceCount": "int cudaGetDeviceCount(int *n) { *n = 0; return 100; }",
}
DATA = re.compile(r"_ZT[VIS]|_ZGV")  # vtables, type information and guards are not called
INTERPRETER = re.compile(r"_?Py[A-Z_]")  # the Python that loads the file defines these
DATA_WORDS = 64  # of 8 bytes, each: as many as any table that is copied from


def make_stand_ins(packages: Sequence[Path], folder: Path, also: Sequence[str] = ()) -> list[str]:
    """Writes a stand-in of each library that the shared objects in `packages` want and this machine
    lacks, and of those in `also`, which they open while they run; returns the names. NotRun without a
    compiler or binutils.
    """
    objects = [path for package in packages for path in package.rglob("*.so*") if path.is_file()]
    wanted = {name for path in objects for name in needed(path)} - {path.name for path in objects}
    system = system_libraries()
    libraries = sorted((wanted | set(also)) - set(system))
    here = [system[name] for name in wanted if name in system]
    defined = {name for name, _ in symbols([*objects, *here], "--defined-only")}
    lacking = {
        (name, version)
        for name, version in symbols(objects, "--undefined-only")
        if name not in defined and not INTERPRETER.match(name)
    }
    folder.mkdir(parents=True, exist_ok=True)
    _build(lacking, libraries, folder)
    return libraries


def needed(path: Path) -> list[str]:
    """The libraries that a shared object asks the loader for."""
    return re.findall(r"\(NEEDED\).*\[(.+)\]", _read("readelf", "--dynamic", "--wide", str(path)))


def symbols(paths: Iterable[Path], kinds: str) -> set[tuple[str, str]]:
    """Dynamic symbols, each with its version or "". Weak ones may stay undefined: they count where
    defined.
    """
    found = set()
    for path in paths:
        for line in _read("nm", "--dynamic", kinds, str(path)).splitlines():
            kind, name = line.split()[-2:]
            if kinds == "--defined-only" or kind == "U":
                name, _, version = name.partition("@")
                found.add((name, version.lstrip("@")))
    return found


def definition(name: str) -> str:
    """A symbol in C."""
    if name in SPECIAL:
        return SPECIAL[name]
    return (
        f"long {name}[{DATA_WORDS}];" if DATA.match(name) else f"long {name}(void) {{ return 0; }}"
    )


@cache
def system_libraries() -> dict[str, Path]:
    """Those that the loader finds by itself, by name."""
    program = which("ldconfig", path=f"{os.environ.get('PATH', '')}:/sbin:/usr/sbin")
    listed = _read(program or "ldconfig", "-p")
    found = re.findall(r"^\s*(\S+) \(.*\) => (\S+)$", listed, re.MULTILINE)
    return {name: Path(path) for name, path in reversed(found)}


def _build(symbols: Iterable[tuple[str, str]], libraries: Sequence[str], folder: Path) -> None:
    """Each library has all symbols, for which of them a file looks in depends on what it asks for; and
    those versions that are named like it, as makers of libraries name them.
    """
    with tempfile.TemporaryDirectory() as name:
        text, compiled, versions = (Path(name, f"all.{ending}") for ending in ("c", "o", "map"))
        text.write_text("\n".join(sorted({definition(one) for one, _ in symbols})), "utf-8")
        _read("cc", "-w", "-fPIC", "-O1", "-c", str(text), "-o", str(compiled))
        for library in libraries:
            own = "".join(f"{one};" for one, version in sorted(symbols) if version == library)
            versions.write_text(f"{library} {{ global: {own} }};" if own else "", "utf-8")
            options = ["-shared", f"-Wl,-soname,{library}", "-o", str(folder / library)]
            options += [f"-Wl,--version-script={versions}"] if own else []
            _read("cc", *options, str(compiled))


def _read(*command: str) -> str:
    """What a program prints; NotRun where there is none."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        raise NotRun(f"wanted {command[0]} to make stand-ins of libraries, got none") from None
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"{command[0]} failed: {error.stderr.strip()[-300:]}") from None
