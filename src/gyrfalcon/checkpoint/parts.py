"""A cut folder as a tensor source: whole tensors, or any ranges of them, assembled from the ranks' parts."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from gyrfalcon.checkpoint.manifest import Content, CutTensor, Manifest, dtype_name
from gyrfalcon.checkpoint.safetensors_file import SafetensorsFile, read_header
from gyrfalcon.checkpoint.tensors import take
from gyrfalcon.errors import CheckpointError


class PartsSource:
    """The tensors of a cut in whole shapes, by checkpoint names; an alias can be read like any other."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._folder = folder
        self._manifest = manifest
        self._files: dict[str, SafetensorsFile] = {}

    def names(self) -> Collection[str]:
        return self._manifest.tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensor(name).shape

    def dtype(self, name: str) -> torch.dtype:
        return self._tensor(name).dtype

    def read(self, name: str, dim: int | None = None, ranges: Sequence[range] = ()) -> Tensor:
        tensor = self._tensor(name)
        if tensor.dim is None:
            return take(self.part(name, 0), dim, ranges)
        along = ranges if dim == tensor.dim else (range(tensor.shape[tensor.dim]),)
        across = None if dim == tensor.dim else dim
        pieces = [
            take(self.part(name, rank), across, ranges).narrow(tensor.dim, start, count)
            for wanted in along
            for rank, start, count in _owners(tensor, wanted)
        ]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, tensor.dim)

    def part(self, name: str, rank: int) -> Tensor:
        """What `rank` holds of a tensor, as a view of its file."""
        path = self._tensor(name).parts[rank].file
        file = self._files.get(path) or self._files.setdefault(
            path, SafetensorsFile(self._folder / path)
        )
        return file.read(self._manifest.aliases.get(name, name))

    def faults(self) -> list[str]:
        """Where the files are not what the manifest says, found from sizes and headers alone."""
        contents = self._manifest.contents()
        return [
            fault
            for path in self._manifest.files
            for fault in self._file_faults(path, contents.get(path, {}))
        ]

    def _tensor(self, name: str) -> CutTensor:
        return self._manifest.tensors[self._manifest.aliases.get(name, name)]

    def _file_faults(self, path: str, expected: Mapping[str, Content]) -> Iterable[str]:
        try:
            size = (self._folder / path).stat().st_size
        except OSError as error:
            return [f"{path}: {error.strerror}"]
        expected_size = self._manifest.files[path].num_bytes
        if size != expected_size:
            return [f"{path}: {size} B instead of {expected_size}"]
        if not path.endswith(".safetensors"):
            return []
        try:
            header = read_header(self._folder / path)
        except CheckpointError as error:
            return [f"{path}: {error.got}"]
        found = {name: Content(entry.shape, entry.dtype) for name, entry in header.entries.items()}
        return [
            *(f"{path}: {name} is {what}" for name, what in header.odd.items()),
            *(
                f"{path}: {name} is {_shown(found.get(name))} instead of {_shown(expected.get(name))}"
                for name in sorted(found.keys() | expected.keys())
                if found.get(name) != expected.get(name)
            ),
        ]


def _owners(tensor: CutTensor, wanted: range) -> Iterator[tuple[int, int, int]]:
    """(rank, first index inside its part, count) for the runs that make up `wanted`, in order."""
    runs = list(_runs(tensor))
    position = wanted.start
    while position < wanted.stop:
        run, rank, start = next((run, rank, start) for run, rank, start in runs if position in run)
        count = min(run.stop, wanted.stop) - position
        yield rank, start + position - run.start, count
        position += count


def _runs(tensor: CutTensor) -> Iterator[tuple[range, int, int]]:
    """(range of the whole tensor, rank, where it begins inside the rank's part)."""
    for rank, part in enumerate(tensor.parts):
        start = 0
        for run in part.ranges:
            yield run, rank, start
            start += len(run)


def _shown(content: Content | None) -> str:
    return "missing" if content is None else f"{list(content.shape)} {dtype_name(content.dtype)}"
