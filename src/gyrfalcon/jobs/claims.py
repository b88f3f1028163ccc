"""Who works on which part: one lock of the system for each, a byte of one file, which is released when its
process dies, however that happens. What is written there says in words who holds it.
"""

import errno
import fcntl
import os
import socket
from contextlib import suppress
from pathlib import Path

from gyrfalcon.errors import UsageError

RECORD_BYTES = 64  # of each lock: its first byte is locked, all say who holds it
SETUP, PRESENT, FINISH = range(3)
FIRST_PART = 3
TAKEN = (errno.EACCES, errno.EAGAIN)


class Claims:
    """The locks of one job's folder. They are a process's, not a thread's: one Claims in each process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._owner = f"process {os.getpid()} on {socket.gethostname()}"

    def take(self, number: int, *, shared: bool = False, wait: bool = False) -> bool:
        """Takes a lock; False where another process holds it. UsageError on a disk without locks."""
        kind = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
        try:
            fcntl.lockf(self._descriptor, kind, 1, number * RECORD_BYTES)
        except OSError as error:
            if error.errno in TAKEN:
                return False
            wanted = f"a disk with file locks for {self._path.parent}"
            do = "name a folder on another disk"
            raise UsageError(wanted, error.strerror or str(error), do) from None
        if not shared:
            record = self._owner.encode()[: RECORD_BYTES - 1].ljust(RECORD_BYTES)
            os.pwrite(self._descriptor, record, number * RECORD_BYTES)
        return True

    @property
    def is_in_place(self) -> bool:
        """Whether the file is still the one at its path: another process may have removed it."""
        with suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(self._descriptor), self._path.stat())
        return False

    def is_free(self, number: int) -> bool:
        """Whether no other process holds a lock now."""
        if not self.take(number, shared=True):
            return False
        self.release(number)
        return True

    def release(self, number: int) -> None:
        """Gives a lock back."""
        fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, number * RECORD_BYTES)

    def owner(self, number: int) -> str:
        """Who took a lock last, in words."""
        record = os.pread(self._descriptor, RECORD_BYTES, number * RECORD_BYTES)
        return record.strip(b" \0").decode(errors="replace") or "another process"

    def close(self) -> None:
        """Gives all locks back."""
        os.close(self._descriptor)
