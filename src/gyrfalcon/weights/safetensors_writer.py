"""Writes one .safetensors file front to back, in chunks, with its checksum computed on the way."""

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from gyrfalcon.weights.manifest import Content, FileSum
from gyrfalcon.weights.safetensors_file import DTYPES, LENGTH_BYTES

ALIGNMENT = 64  # the first tensor begins at a multiple of this
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def header_bytes(contents: Mapping[str, Content]) -> bytes:
    """The length and the JSON header of a file that holds these tensors one after the other."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, content in contents.items():
        start, end = end, end + content.num_bytes
        header[name] = {
            "dtype": DTYPE_NAMES[content.dtype],
            "shape": content.shape,
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(LENGTH_BYTES + len(text)) % ALIGNMENT)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def entry_bound(name: str, content: Content) -> int:
    """No less than the bytes that a tensor adds to the header of any file."""
    return len(header_bytes({name: content})) + 2 * len(str(1 << 63))


class SafetensorsWriter:
    """A file being written: the tensors of `contents` follow in order, each in as many blocks as is handy.

    Every block is hashed by `hashing`'s thread while this one writes it.
    """

    def __init__(self, path: Path, contents: Mapping[str, Content], hashing: ThreadPoolExecutor) -> None:
        self._expected = len(header_bytes(contents)) + sum(content.num_bytes for content in contents.values())
        self._sha = hashlib.sha256()
        self._hashing = hashing
        self._written = 0
        self._file = path.open("wb", buffering=0)
        self._append(memoryview(header_bytes(contents)))

    def write(self, block: Tensor) -> None:
        """Appends the elements of a tensor that lies in memory without gaps."""
        self._append(block.view(-1).view(torch.uint8).numpy().data)

    def finish(self) -> FileSum:
        """Puts all of it on the disk; the file is whole from here on."""
        assert self._written == self._expected
        os.fsync(self._file.fileno())
        self._file.close()
        return FileSum(self._written, self._sha.hexdigest())

    def close(self) -> None:
        """Gives the file up where it is; harmless after finish()."""
        self._file.close()

    def _append(self, block: memoryview) -> None:
        hashed = self._hashing.submit(self._sha.update, block)
        try:
            written = 0
            while written < len(block):
                written += self._file.write(block[written:])
        finally:
            hashed.result()
        self._written += len(block)
