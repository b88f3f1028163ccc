"""Output files: checked before the work starts, so that no result is lost after it.

A regular file is replaced atomically by a new one beside it. Anything else (a pipe, a terminal,
/dev/stdout) is opened once, before the work, and written through.
"""

import errno
import fcntl
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gyrfalcon.errors import DISK_FULL, DiskFull, UsageError

STDOUT = "-"
MAX_LINKS = 40  # as Linux follows
MAX_NAME_BYTES = 255
PART = ".part"  # suffix of a file that is still being written
CANNOT_SYNC = (errno.EACCES, errno.EPERM, errno.EINVAL, errno.ENOTSUP)


@dataclass(frozen=True, slots=True)
class OutputFile:
    """Where a result is written: `path` as typed, and either `file` or `descriptor`."""

    path: str
    file: Path | None = None  # a regular file, links followed; it need not exist
    descriptor: int | None = None  # of anything else, open for writing

    @property
    def is_stdout(self) -> bool:
        """Whether it was typed as "-": the result alone goes to standard output."""
        return self.path == STDOUT

    def write(self, text: str) -> None:
        """Writes the whole result in UTF-8: replaces a regular file, writes through anything else.

        Half a surrogate pair, as in a file name that is not UTF-8, is escaped as in JSON: \\udcff.
        """
        if self.is_stdout:
            sys.stdout.write(text)
            return
        content = text.encode(errors="backslashreplace")
        with _errors_name(self.path):
            if self.file is not None:
                replace_file(self.file, content)
            elif self.descriptor is not None:
                sys.stdout.flush()  # it may go to the same place
                _write_all(self.descriptor, content)


def open_output(path: str, option: str, *, regular: bool = False) -> OutputFile:
    """Opens the output that `option` names; UsageError where it cannot be written, DiskFull without room.

    Waits for the reader of a named pipe. `regular`: accept a regular file only.
    """
    if path == STDOUT and not regular:
        return OutputFile(path)
    try:
        return _opened(path, option, regular)
    except OSError as error:
        raise _unusable(f"a file for {option} that can be written", path, error) from None


def check_folder(path: str | Path, option: str) -> Path:
    """A folder that can be written to or created, links followed; else UsageError, or DiskFull."""
    folder = Path(os.path.realpath(path))
    try:
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"a folder for {option}", f"the file {path}", "name a folder")
        _check_room(folder)
    except OSError as error:
        raise _unusable(f"a folder for {option} that can be written", str(path), error) from None
    return folder


def replace_file(file: Path, content: bytes) -> None:
    """Replaces a file atomically and creates its folder; a kill or a loss of power leaves the old content or
    the new, and after it the new.
    """
    with replacing(file) as part, part.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Yields a path beside `file` to write to. On success it replaces `file`, permissions kept, and its name
    is put on the disk, as its bytes have to be by then; after an error it is removed.
    """
    make_folder(file.parent)
    part = _part_of(file)
    with _locked(part):
        try:
            yield part
            with suppress(FileNotFoundError):
                part.chmod(stat.S_IMODE(file.stat().st_mode))
            _move(part, file)
            sync_names(file.parent)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def remove_parts(folder: Path, name: str = "") -> None:
    """Removes partial files that killed processes left for `name`, or for any file in the folder;
    none that is still being written.
    """
    for part in folder.glob(f".*{PART}"):
        if part.name.startswith((f".{name}.", _part_of(folder / name).name) if name else "."):
            with suppress(OSError), part.open("ab") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                part.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Puts a folder's list of names on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_names(folder: Path) -> None:
    """sync_folder() where it can be done: not in a folder that may not be read, nor on some network disks."""
    try:
        sync_folder(folder)
    except OSError as error:
        if error.errno not in CANNOT_SYNC:
            raise


def make_folder(folder: Path) -> None:
    """Makes a folder with its parents where they are not there, and puts their names on the disk."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_names(folder.parent)


def is_at(stream: BinaryIO, path: Path) -> bool:
    """Whether an open file still lies at a path, neither moved nor removed."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _opened(path: str, option: str, regular: bool) -> OutputFile:
    descriptor = _inherited(path)
    file = Path(os.path.realpath(path))
    if descriptor is None and (not path or path.endswith("/")):
        raise UsageError(f"a file for {option}", f"the folder {path!r}", "name a file in it")
    mode = _mode(file if descriptor is None else descriptor)
    if stat.S_ISDIR(mode):
        raise UsageError(f"a file for {option}", f"the folder {path}", "name a file in it")
    if stat.S_ISBLK(mode) or (regular and (descriptor is not None or not stat.S_ISREG(mode))):
        raise UsageError(f"a regular file for {option}", path, "name another")
    if descriptor is not None:
        _check_writable(descriptor)
        return OutputFile(path, descriptor=descriptor)
    if not stat.S_ISREG(mode):
        return OutputFile(path, descriptor=_open_stream(file, path))
    _check_room(file.parent)
    if file.exists() and not os.access(file, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    remove_parts(file.parent, file.name)
    return OutputFile(path, file)


def _inherited(path: str) -> int | None:
    """The number of the open file that a path such as /dev/stdout or /dev/fd/63 leads to."""
    folders = {os.path.realpath("/proc/self/fd"), os.path.realpath("/dev/fd")}
    place = Path(path)
    for _ in range(MAX_LINKS):
        folder = Path(os.path.realpath(place.parent))
        if str(folder) in folders and place.name.isdecimal():
            return int(place.name)
        if not place.is_symlink():
            return None
        place = folder / place.readlink()
    return None


def _mode(place: Path | int) -> int:
    """What kind of file it is; a new one will be regular."""
    try:
        return os.stat(place).st_mode
    except FileNotFoundError:
        return stat.S_IFREG


def _check_writable(descriptor: int) -> None:
    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, "open for reading only")


def _check_room(folder: Path) -> None:
    """OSError unless a file can be made in the folder, or in the nearest one that is there already."""
    while not folder.exists():
        folder = folder.parent
    with tempfile.TemporaryFile(dir=folder):
        pass


def _open_stream(file: Path, shown: str) -> int:
    """Opens anything but a regular file; waits for the reader of a named pipe."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
        os.set_blocking(descriptor, True)
        return descriptor
    except OSError as error:
        if error.errno != errno.ENXIO or not file.is_fifo():
            raise
    print(f"gyrfalcon: waiting for a reader of {shown}", file=sys.stderr, flush=True)
    return os.open(file, os.O_WRONLY)


def _unusable(wanted: str, path: str, error: OSError) -> UsageError | DiskFull:
    """In the user's words: which temporary file could not be created does not matter."""
    got = f"{path} ({error.strerror or error})"
    if error.errno in DISK_FULL:
        return DiskFull(wanted, got, "free some space or name another place")
    return UsageError(wanted, got, "name another place")


@contextmanager
def _errors_name(path: str) -> Iterator[None]:
    """An OSError in here names `path`."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = path, None
        raise


def _write_all(descriptor: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _part_of(file: Path) -> Path:
    name = os.fsdecode(os.fsencode(file.name)[: MAX_NAME_BYTES - len(f".{PART}")])
    return file.with_name(f".{name}{PART}")


@contextmanager
def _locked(part: Path) -> Iterator[None]:
    """Holds the lock of `part`, which it creates or takes over from a killed process."""
    while True:
        with part.open("ab") as stream:
            with suppress(OSError):  # some network disks know no locks
                fcntl.flock(stream, fcntl.LOCK_EX)
            if not is_at(stream, part):  # its last holder has moved it into place
                continue
            yield
            return


def _move(part: Path, file: Path) -> None:
    """Replaces the file; where that is impossible (the file is a mount), its content."""
    try:
        part.replace(file)
    except OSError:
        with part.open("rb") as new, file.open("r+b") as old:
            shutil.copyfileobj(new, old)
            old.truncate()
        part.unlink()
