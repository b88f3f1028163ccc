"""A file written once, front to back, past the page cache where the disk allows it, and hashed meanwhile.

Direct writes cost a third of the time and none of the processor, and leave other files in the page cache.
"""

import errno
import fcntl
import hashlib
import mmap
import os
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from gyrfalcon.checkpoint.manifest import FileSum

BUFFER_BYTES = 2 << 20  # written and hashed at a time; each open file has two of them
SECTOR_BYTES = 4096  # a direct write begins at, and is as long as, a multiple of this


class Lanes:
    """The two threads that all files being written share: one hashes while the other writes."""

    def __init__(self) -> None:
        self.hashing = ThreadPoolExecutor(1, "hashing")
        self.writing = ThreadPoolExecutor(1, "writing")

    def __enter__(self) -> "Lanes":
        return self

    def __exit__(self, *_: object) -> None:
        self.hashing.shutdown()
        self.writing.shutdown()


class HashedFile:
    """Takes bytes in any portions; finish() says what they were. Errors of the disk come from any call."""

    def __init__(self, path: Path, lanes: Lanes) -> None:
        self._lanes = lanes
        self._descriptor = _open_direct(path)
        self._sha = hashlib.sha256()
        self._num_bytes = 0
        self._buffer, self._spare = _Buffer(), _Buffer()

    def write(self, data: Tensor) -> None:
        """Appends a one-dimensional tensor of bytes."""
        while len(data):
            count = min(len(data), BUFFER_BYTES - self._buffer.filled)
            self._buffer.append(data[:count])
            data = data[count:]
            if self._buffer.filled == BUFFER_BYTES:
                self._flush()

    def finish(self) -> FileSum:
        """Puts all of it on the disk; the file is whole from here on."""
        self._flush()
        self._spare.wait()
        os.fsync(self._descriptor)
        self.close()
        return FileSum(self._num_bytes, self._sha.hexdigest())

    def close(self) -> None:
        """Gives the file up where it is; harmless after finish()."""
        for buffer in (self._buffer, self._spare):
            with suppress(OSError):
                buffer.wait()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _flush(self) -> None:
        """Hands the buffer to the lanes and goes on with the other one as soon as that is free."""
        filled = memoryview(self._buffer.memory)[: self._buffer.filled]
        self._num_bytes += len(filled)
        self._buffer.pending = [
            self._lanes.hashing.submit(self._sha.update, filled),
            self._lanes.writing.submit(_write_all, self._descriptor, filled),
        ]
        self._buffer, self._spare = self._spare, self._buffer
        self._buffer.wait()


class _Buffer:
    """Memory that begins on a page, and the work that still needs its content."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, BUFFER_BYTES)
        self.filled = 0
        self.pending: list[Future[None]] = []
        self._bytes = torch.frombuffer(self.memory, dtype=torch.uint8)

    def append(self, data: Tensor) -> None:
        self._bytes[self.filled : self.filled + len(data)].copy_(data)
        self.filled += len(data)

    def wait(self) -> None:
        """Until the content is hashed and written; raises what either raised. Empty afterwards."""
        pending, self.pending = self.pending, []
        for future in pending:
            future.exception()
        for future in pending:
            future.result()
        self.filled = 0


def _open_direct(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    try:
        return os.open(path, flags | os.O_DIRECT, 0o666)
    except OSError as error:
        if error.errno != errno.EINVAL:  # file systems in memory know no direct writes
            raise
        return os.open(path, flags, 0o666)


def _write_all(descriptor: int, data: memoryview) -> None:
    if len(data) % SECTOR_BYTES:
        _use_cache(descriptor)
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except OSError as error:
            if error.errno != errno.EINVAL or not _use_cache(descriptor):
                raise


def _use_cache(descriptor: int) -> bool:
    """Ends direct writing: for a file's odd end and for disks with other rules. False when it had ended."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags & ~os.O_DIRECT)
    return bool(flags & os.O_DIRECT)
