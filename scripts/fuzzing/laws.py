"""What must hold of any file that a reader is given, and how it is watched.

A reader may accept it, or refuse it with one line of three parts. It reads nothing outside of the folder,
writes nothing, starts nothing, imports nothing that lies there, takes no memory far beyond the file's size,
and ends soon.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from gyrfalcon.errors import GyrfalconError

MOST_SECONDS = 10.0  # of processor time
# Memory that a reader may take for any file: libraries, caches, the allocator.
FREE_BYTES = 48 << 20
BYTES_PER_BYTE = 64  # … and for each of the file's: JSON becomes objects
STARTS = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "pickle.find_class",
)
NETWORK = ("socket.connect", "socket.bind")
LIBRARIES = tuple({os.path.realpath(path) for path in (sys.prefix, sys.base_prefix)})
SYSTEM = ("/proc/", "/sys/", "/dev/", "/usr/lib", "/usr/share", "/etc/mime.types", "/etc/localtime")
SOURCES = (".py", ".pyc", ".so", ".json", ".typed")


class Broken(AssertionError):
    """A law does not hold; the message says which, and what was seen."""


@dataclass(slots=True)
class Watch:
    """What the process did while a reader was at work."""

    folder: str  # the only one that may be read, links in it followed
    outside: list[str] = field(default_factory=list)


class Auditor:
    """Sees what Python opens and starts; one for a process, since its hook cannot be taken back."""

    def __init__(self, own: Path) -> None:
        self._own = os.path.realpath(own)  # the package: its data files may be read
        self._watch: Watch | None = None
        sys.addaudithook(self._see)

    @contextmanager
    def watching(self, folder: Path) -> Iterator[Watch]:
        """Notes what happens in here."""
        watch = Watch(os.path.abspath(folder))
        self._watch = watch
        try:
            yield watch
        finally:
            self._watch = None

    def _see(self, event: str, arguments: "tuple[object, ...]") -> None:
        watch = self._watch
        if watch is None:
            return
        if event in STARTS or event in NETWORK:
            watch.outside.append(f"{event} {arguments!r:.200}")
        elif event == "open":
            self._opened(watch, *arguments[:3])

    def _opened(self, watch: Watch, path: object, mode: object, flags: object) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return  # a file that is open already
        place = os.path.abspath(os.fsdecode(path))
        is_write = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if is_write:
            watch.outside.append(f"opened {place!r:.200} for writing")
        elif place.startswith(watch.folder + "/"):
            if place.endswith((".py", ".pyc", ".so")):
                watch.outside.append(f"read code, {place!r:.200}")
        elif not place.startswith(SYSTEM) and not self._is_library(place):
            watch.outside.append(f"read {place!r:.200}")

    def _is_library(self, place: str) -> bool:
        real = os.path.realpath(place)
        return real.startswith((*LIBRARIES, self._own)) or real.endswith(SOURCES[:3])


def check(read: Callable[[], object], folder: Path, num_bytes: int, auditor: Auditor) -> str:
    """Runs a reader of a file of `num_bytes` in a folder; the line that refused it, "" where it was accepted.

    Raises Broken where a law does not hold.
    """
    before, start = _peak_after_reset(), time.process_time()
    with auditor.watching(folder) as watch:
        line = _line_of(read)
    seconds, grown = time.process_time() - start, _peak_bytes() - before
    if watch.outside:
        raise Broken(f"wanted nothing outside of the folder, got {watch.outside[0]}")
    if seconds > MOST_SECONDS:
        raise Broken(f"wanted an end within {MOST_SECONDS:g} s, got {seconds:.1f}")
    most = FREE_BYTES + BYTES_PER_BYTE * num_bytes
    if grown > most:
        raise Broken(f"wanted at most {most >> 20} MB for {num_bytes} B, got {grown >> 20}")
    return line


def _line_of(read: Callable[[], object]) -> str:
    try:
        with _deadline():
            read()
    except GyrfalconError as error:
        line = str(error)
        if not (line.startswith("wanted ") and ", got " in line and "; " in line):
            raise Broken(f"wanted a line of three parts, got {line!r:.300}") from error
        if error.exit_code != 2:
            raise Broken(f"wanted exit code 2, got {error.exit_code} for {line:.300}") from error
        if not error.got.strip() or len(shown_line(error)) > 8000:
            raise Broken(f"wanted a short line that says what came, got {line!r:.300}") from error
        return line
    except Broken:
        raise
    except Exception as error:
        raise Broken(
            f"wanted an error of ours, got {type(error).__name__}: {error!s:.300}"
        ) from error
    return ""


def shown_line(error: GyrfalconError) -> str:
    """The line as the command prints it."""
    return error.on_command_line({})


@contextmanager
def _deadline() -> Iterator[None]:
    """Ends a reader that nothing would end, where signals can."""

    def end(*_: object) -> None:
        raise Broken(f"wanted an end within {MOST_SECONDS:g} s, got none")

    before = signal.signal(signal.SIGPROF, end)
    signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS + 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _peak_after_reset() -> int:
    """The peak of resident memory, which begins anew with this call."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return _peak_bytes()


def _peak_bytes() -> int:
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    return 0
