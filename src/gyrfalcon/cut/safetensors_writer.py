"""Writes one .safetensors file front to back, its header first, in blocks that come as they are read."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from gyrfalcon.checkpoint.manifest import Content, FileSum
from gyrfalcon.checkpoint.safetensors_file import DTYPES, LENGTH_BYTES
from gyrfalcon.cut.hashed_file import HashedFile, Lanes

ALIGNMENT = 64  # the first tensor begins at a multiple of this
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
METADATA: Mapping[str, str] = {"format": "pt"}


def header_bytes(contents: Mapping[str, Content], metadata: Mapping[str, str] = METADATA) -> bytes:
    """The length and the JSON header of a file that holds these tensors one after the other."""
    header: dict[str, object] = {"__metadata__": metadata}
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
    """A file being written: the tensors of `contents` follow in order, each in as many blocks as is handy."""

    def __init__(
        self,
        path: Path,
        contents: Mapping[str, Content],
        lanes: Lanes,
        metadata: Mapping[str, str] = METADATA,
    ) -> None:
        header = header_bytes(contents, metadata)
        self._expected = len(header) + sum(content.num_bytes for content in contents.values())
        self._file = HashedFile(path, lanes)
        self._file.write(torch.frombuffer(bytearray(header), dtype=torch.uint8))

    def write(self, block: Tensor) -> None:
        """Appends the elements of a tensor that lies in memory without gaps."""
        self._file.write(block.view(-1).view(torch.uint8))

    def finish(self) -> FileSum:
        """Puts all of it on the disk; the file is whole from here on."""
        result = self._file.finish()
        assert result.num_bytes == self._expected
        return result

    def close(self) -> None:
        """Gives the file up where it is; harmless after finish()."""
        self._file.close()
