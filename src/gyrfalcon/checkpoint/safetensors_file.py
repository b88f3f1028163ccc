"""Reads one .safetensors file: eight bytes of header length, a JSON header, then the tensors, mapped lazily.

No header is believed: every offset is checked against the shape, its neighbours and the size of the file.
"""

import json
import math
import mmap
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from gyrfalcon.checkpoint.tensors import damaged, take
from gyrfalcon.files.foreign import open_foreign, unreadable

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
MOST_ELEMENTS = 1 << 60  # torch cannot count more, not even of a tensor that has none
# MAP_NORESERVE: a private map of a big file needs no swap.
NO_RESERVE = 0x4000 if sys.platform == "linux" else 0


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor in the file; offset and bytes are counted from the start of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a file holds; `odd` are tensors of dtypes that are not computed with, and what these are."""

    entries: dict[str, Entry]
    odd: dict[str, str]


class SafetensorsFile:
    """The tensors of one file, as views of a private memory map (nothing can be written back)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        header = read_header(path)
        self.entries, self.odd = header.entries, header.odd

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
        try:
            with self.path.open("rb") as file:
                return mmap.mmap(
                    file.fileno(),
                    0,
                    flags=mmap.MAP_PRIVATE | NO_RESERVE,
                    prot=mmap.PROT_READ | mmap.PROT_WRITE,
                )
        except OSError as error:
            raise unreadable(self.path, error) from None


def read_header(path: Path) -> Header:
    """The tensors a file holds, by name; CheckpointError when header and file do not fit each other."""
    try:
        with open_foreign(path) as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            if size < LENGTH_BYTES or length > min(size - LENGTH_BYTES, LONGEST_HEADER):
                raise damaged(path, f"a header of {length} B in {size} B")
            text = file.read(length)
    except OSError as error:
        raise unreadable(path, error) from None
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"a header that is no JSON ({type(error).__name__})") from None
    if not isinstance(raw, dict):
        raise damaged(path, "a header that is no object")
    raw.pop("__metadata__", None)
    return _parsed(path, raw, LENGTH_BYTES + length, size)


def _parsed(path: Path, raw: Mapping[str, object], data_start: int, size: int) -> Header:
    entries: dict[str, Entry] = {}
    odd: dict[str, str] = {}
    spans: dict[str, range] = {}
    for name, fields in raw.items():
        dtype, shape, spans[name] = _fields(path, name, fields, data_start)
        if dtype in DTYPES:
            entries[name] = _entry(path, name, dtype, shape, spans[name])
        else:
            odd[name] = f"a tensor of dtype {dtype}"
    _check_tiling(path, spans, data_start, size)
    return Header(entries, odd)


def _fields(
    path: Path, name: str, fields: object, data_start: int
) -> tuple[str, tuple[int, ...], range]:
    """A tensor's dtype and shape, and its bytes in the file."""
    match fields:
        case {
            "dtype": str(dtype),
            "shape": list(shape),
            "data_offsets": [int(start), int(stop)],
        } if start <= stop and all(type(size) is int and size >= 0 for size in shape):
            if math.prod(max(size, 1) for size in shape) > MOST_ELEMENTS:
                raise damaged(path, f"{name} of shape {shape!r:.200}")
            return dtype, tuple(shape), range(data_start + start, data_start + stop)
    raise damaged(path, f"an entry {name} that cannot be read ({fields!r:.200})")


def _entry(path: Path, name: str, dtype: str, shape: tuple[int, ...], span: range) -> Entry:
    entry = Entry(DTYPES[dtype], shape, span.start, span.stop - span.start)
    if entry.num_bytes != math.prod(shape) * entry.dtype.itemsize:
        raise damaged(
            path, f"{entry.num_bytes} B for {name} of shape {list(shape)} and dtype {dtype}"
        )
    return entry


def _check_tiling(path: Path, spans: Mapping[str, range], data_start: int, size: int) -> None:
    """The tensors must follow each other without holes or overlaps up to the end of the file."""
    end = data_start
    for name, span in sorted(spans.items(), key=lambda item: (item[1].start, item[1].stop)):
        if span.start != end:
            raise damaged(path, f"{name} at byte {span.start} where {end} is next")
        end = span.stop
    if end != size:
        raise damaged(path, f"{size} B where the header promises {end} B")
