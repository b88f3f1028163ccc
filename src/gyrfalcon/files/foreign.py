"""Opens files that others made, and checks that they are regular files with their content present."""

import json
import stat
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from gyrfalcon.errors import CheckpointError, GyrfalconError, lack

# The content of a file that was not fetched.
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
DEEPEST = 100  # nesting of a JSON file: every writer of ours goes as far
SPECIAL = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_foreign(path: Path) -> BinaryIO:
    """Opens the file at `path`, links followed, for reading; CheckpointError says why it cannot be.

    Never blocks: a FIFO, which has no content before somebody writes to it, is refused.
    """
    try:
        mode = path.stat().st_mode
        for is_kind, kind in SPECIAL:
            if is_kind(mode):
                raise CheckpointError(f"a file {path}", kind, "put the file there")
        file = path.open("rb")
        if file.read(len(LFS_POINTER)) != LFS_POINTER:
            file.seek(0)
            return file
    except OSError as error:
        raise unreadable(path, error) from None
    file.close()
    raise CheckpointError(
        f"the content of {path}", "a Git LFS pointer to it", "run git lfs pull in that folder"
    )


def read_json(path: Path) -> dict[str, object]:
    """The JSON object in a file; CheckpointError for anything else."""
    try:
        with open_foreign(path) as file:
            value = json.loads(file.read().decode("utf-8"))
        if is_deep(value):
            raise ValueError(f"objects or lists more than {DEEPEST} deep")
    except OSError as error:
        raise unreadable(path, error) from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"JSON in {path}", str(error), "fetch or write the file again"
        ) from None
    if not isinstance(value, dict):
        raise CheckpointError(
            f"a JSON object in {path}", type(value).__name__, "fetch or write it again"
        )
    return value


def unreadable(path: Path, error: OSError) -> GyrfalconError:
    """The error for a file that cannot be opened or read."""
    return lack(error, f"to read {path}") or CheckpointError(
        f"a readable file {path}", error.strerror or str(error), "check it"
    )


def is_inside(path: str) -> bool:
    """Whether a path named by a foreign file stays inside its folder, on any system."""
    parts = PurePosixPath(path).parts
    unsafe = "\0" in path or "\\" in path or PurePosixPath(path).is_absolute()
    return bool(parts) and not unsafe and ".." not in parts


def is_deep(value: object) -> bool:
    """Whether a value is nested too deeply for Python to serialise reliably."""
    layer = [value]
    for _ in range(DEEPEST):
        layer = [inner for outer in layer for inner in _children(outer)]
        if not layer:
            return False
    return True


def _children(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()
