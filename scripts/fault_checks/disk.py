"""A disk that fails at the n-th call that changes it: the process is killed there, the power fails, or the
disk is full or read-only from there on. Works on this process's file operations below one folder; takes
nothing back.
"""

import builtins
import errno
import io
import os
import random
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fault_checks.power import SHARES, DurableState, put

KILL, FULL, READ_ONLY, POWER = "kill", "full disk", "read-only disk", "power loss"
FAULTS = (KILL, FULL, READ_ONLY, POWER)
CODES = {FULL: errno.ENOSPC, READ_ONLY: errno.EROFS}
# What takes paths and changes a folder. A full disk still removes and renames.
PATH_CALLS = ("mkdir", "rename", "replace", "link", "symlink", "unlink", "remove", "rmdir")
ROOMLESS = ("rename", "replace", "unlink", "remove", "rmdir", "fsync", "ftruncate")
GOING = ("rename", "replace", "unlink", "remove", "rmdir")  # what may take a file away
DESCRIPTOR_CALLS = ("write", "pwrite", "fsync", "ftruncate")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class FaultyDisk:
    """Counts the calls that change files below `folder`, and does what `fault` says from number `at` on,
    counted from 1; `at` 0 only counts.
    """

    def __init__(self, folder: Path, fault: str, at: int) -> None:
        self.count = 0
        self._folder = os.path.realpath(folder)
        self._fault, self._at = fault, at
        self._lock = threading.Lock()
        self._durable = DurableState(self._folder) if fault == POWER else None
        self._ending: int | None = None  # the thread that puts on the disk what is left

    def install(self) -> None:
        """Puts itself between this process and its files, for good."""
        for name in PATH_CALLS:
            setattr(os, name, self._path_call(name, getattr(os, name)))
        for name in DESCRIPTOR_CALLS:
            setattr(os, name, self._descriptor_call(name, getattr(os, name)))
        os.open = self._opening(os.open)
        builtins.open = io.open = self._opened(io.open)

    def reach(self, call: str, half: Callable[[], object] | None = None) -> None:
        """Notes a call, and fails it where it has to; `half` does half of it before a kill."""
        if self._ending == threading.get_ident():
            return
        with self._lock:
            self.count += 1
            if not self._at or self.count < self._at:
                return
            if self._durable is not None:
                self._lose_power(self._durable, SHARES[self._at % len(SHARES)])
        if self._fault == KILL:
            if half is not None:
                half()
            os.kill(os.getpid(), signal.SIGKILL)
        if self._fault != FULL or call not in ROOMLESS:
            code = CODES[self._fault]
            raise OSError(code, os.strerror(code))

    def end(self) -> None:
        """The power fails after the command has ended: what it has promised is there."""
        with self._lock:
            if self._durable is not None:
                self._lose_power(self._durable, 0.0)

    def _lose_power(self, durable: DurableState, share: float) -> None:
        self._ending, root = threading.get_ident(), Path(self._folder)
        if root.exists():
            left = durable.left(share, random.Random(self._at))
            shutil.rmtree(root)
            root.mkdir()
            put(root, left)
        os.kill(os.getpid(), signal.SIGKILL)

    def holds(self, path: object) -> bool:
        """Whether a path or an open file lies below the folder."""
        if isinstance(path, int):
            try:
                path = os.readlink(f"/proc/self/fd/{path}")
            except OSError:
                return False
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        place = os.path.abspath(os.fsdecode(path))
        return place == self._folder or place.startswith(self._folder + "/")

    def _path_call(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(path: Any, *more: Any, **named: Any) -> Any:
            inside = named.get("dir_fd") is not None and self.holds(named["dir_fd"])
            if not inside and not self.holds(path):
                return call(path, *more, **named)
            self.reach(name)
            if self._durable is None or name not in GOING:
                return call(path, *more, **named)
            goes = self._durable.inode(_full(more[0] if more else path, named.get("dir_fd")))
            result = call(path, *more, **named)
            if goes is not None:
                self._durable.forget(goes)
            return result

        return counted

    def _descriptor_call(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(descriptor: int, *more: Any) -> Any:
            if self.holds(descriptor):
                is_write = name in ("write", "pwrite")
                self.reach(name, (lambda: _half(call, descriptor, *more)) if is_write else None)
                if name == "fsync" and self._durable is not None:
                    with self._lock:
                        call(descriptor)
                        self._durable.synchronise(os.readlink(f"/proc/self/fd/{descriptor}"))
                    return None
            return call(descriptor, *more)

        return counted

    def _opening(self, call: Callable[..., int]) -> Callable[..., int]:
        def counted(path: Any, flags: int, *more: Any, **named: Any) -> int:
            if flags & WRITING and self.holds(path):
                self.reach("open")
            return call(path, flags, *more, **named)

        return counted

    def _opened(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(
            file: Any, mode: str = "r", buffering: int = -1, *more: Any, **named: Any
        ) -> Any:
            if not set("wax+") & set(mode) or not self.holds(file):
                return call(file, mode, buffering, *more, **named)
            self.reach("open")
            opener = named.pop("opener", None)
            raw = _Raw(file, mode.replace("b", "").replace("t", ""), self, opener)
            buffered = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, *more, **named)

        return counted


class _Raw(io.FileIO):
    """An open file whose every write to the system is counted."""

    def __init__(self, file: Any, mode: str, disk: FaultyDisk, opener: Any) -> None:
        super().__init__(file, mode, opener=opener)
        self._disk = disk

    def write(self, data: Any, /) -> int:
        """Writes, or half of it before a kill."""
        self._disk.reach("write", lambda: io.FileIO.write(self, memoryview(data)[: len(data) // 2]))
        return super().write(data)


def _full(path: Any, descriptor: int | None) -> str:
    """The path of a name that may be one of an open folder."""
    name = os.fsdecode(path)
    return name if descriptor is None else f"{os.readlink(f'/proc/self/fd/{descriptor}')}/{name}"


def _half(call: Callable[..., Any], descriptor: int, data: Any, *more: Any) -> None:
    """As much as half of the data, where the system takes an odd end."""
    half = memoryview(data)[: len(data) // 2]
    try:
        call(descriptor, half, *more)
    except OSError:
        return  # a direct write takes whole sectors alone
