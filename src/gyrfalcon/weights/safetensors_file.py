"""Reads one .safetensors file: eight bytes of header length, a JSON header, then the tensors, mapped lazily.

No header is believed: every offset is checked against the shape, its neighbours and the size of the file.
"""

import json
import math
import mmap
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from gyrfalcon.errors import CheckpointError
from gyrfalcon.weights.tensors import damaged, take

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
LENGTH_BYTES = 8  # the header's length, little-endian, opens the file
LONGEST_HEADER = 100_000_000  # the format's own limit
NO_RESERVE = (
    0x4000 if sys.platform == "linux" else 0
)  # MAP_NORESERVE: a private map of a big file needs no swap


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor in the file; offset and bytes are counted from the start of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


class SafetensorsFile:
    """The tensors of one file, as views of a private memory map (nothing can be written back)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries = read_header(path)

    def names(self) -> Collection[str]:
        return self.entries.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self.entries[name].shape

    def dtype(self, name: str) -> torch.dtype:
        return self.entries[name].dtype

    def read(self, name: str, dim: int | None = None, ranges: Sequence[range] = ()) -> Tensor:
        entry = self.entries[name]
        spans = [range(entry.num_bytes)]
        if dim == 0:
            row_bytes = entry.num_bytes // entry.shape[0]
            spans = [range(rows.start * row_bytes, rows.stop * row_bytes) for rows in ranges]
        for span in spans:
            self._announce(range(entry.offset + span.start, entry.offset + span.stop))
        return take(self._tensor(entry), dim, ranges)

    def _announce(self, span: range) -> None:
        """Has a cold disk read these bytes in one go instead of a few pages at each first touch."""
        start = span.start - span.start % mmap.PAGESIZE
        if len(span):
            self._map.madvise(mmap.MADV_WILLNEED, start, span.stop - start)

    def _tensor(self, entry: Entry) -> Tensor:
        if entry.num_bytes == 0:
            return torch.empty(entry.shape, dtype=entry.dtype)
        if entry.offset % entry.dtype.itemsize:  # written without padding: only a copy is aligned
            raw = torch.frombuffer(
                self._map, dtype=torch.uint8, offset=entry.offset, count=entry.num_bytes
            )
            return raw.clone().view(entry.dtype).view(entry.shape)
        count = math.prod(entry.shape)
        return torch.frombuffer(
            self._map, dtype=entry.dtype, offset=entry.offset, count=count
        ).view(entry.shape)

    @cached_property
    def _map(self) -> mmap.mmap:
        with self.path.open("rb") as file:
            return mmap.mmap(
                file.fileno(),
                0,
                flags=mmap.MAP_PRIVATE | NO_RESERVE,
                prot=mmap.PROT_READ | mmap.PROT_WRITE,
            )


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors a file holds, by name; CheckpointError when header and file do not fit each other."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            if size < LENGTH_BYTES or length > min(size - LENGTH_BYTES, LONGEST_HEADER):
                raise damaged(path, f"a header of {length} B in {size} B")
            header = file.read(length)
    except OSError as error:
        raise CheckpointError(
            f"a readable file {path}", error.strerror or "none", "check the folder"
        ) from None
    try:
        raw = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"a header that is no JSON ({type(error).__name__})") from None
    if not isinstance(raw, dict):
        raise damaged(path, "a header that is no object")
    raw.pop("__metadata__", None)
    entries = {
        name: _entry(path, name, fields, LENGTH_BYTES + length) for name, fields in raw.items()
    }
    _check_tiling(path, entries, LENGTH_BYTES + length, size)
    return entries


def _entry(path: Path, name: str, fields: object, data_start: int) -> Entry:
    match fields:
        case {
            "dtype": str(dtype),
            "shape": list(shape),
            "data_offsets": [int(start), int(stop)],
        } if dtype in DTYPES and all(type(size) is int and size >= 0 for size in shape):
            entry = Entry(DTYPES[dtype], tuple(shape), data_start + start, stop - start)
        case _:
            raise damaged(path, f"an entry {name} that cannot be read ({fields!r:.200})")
    if entry.num_bytes != math.prod(entry.shape) * entry.dtype.itemsize:
        raise damaged(
            path, f"{entry.num_bytes} B for {name} of shape {list(shape)} and dtype {dtype}"
        )
    return entry


def _check_tiling(path: Path, entries: Mapping[str, Entry], data_start: int, size: int) -> None:
    """The tensors must follow each other without holes or overlaps up to the end of the file."""
    end = data_start
    for name, entry in sorted(
        entries.items(), key=lambda item: (item[1].offset, item[1].num_bytes)
    ):
        if entry.offset != end:
            raise damaged(path, f"{name} at byte {entry.offset} where {end} is next")
        end += entry.num_bytes
    if end != size:
        raise damaged(path, f"{size} B where the header promises {end} B")
