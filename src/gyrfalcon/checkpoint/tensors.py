"""What every place that holds named tensors can do, and how ranges of one are taken. Knows no file format."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from gyrfalcon.errors import CheckpointError

MOST_NAMED = 12  # tensors or files named in one error


class TensorSource(Protocol):
    """Named tensors that are read only when asked for."""

    def names(self) -> Collection[str]:
        """Every tensor that can be read."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Without reading the tensor."""
        ...

    def dtype(self, name: str) -> torch.dtype:
        """Without reading the tensor."""
        ...

    def read(self, name: str, dim: int | None = None, ranges: Sequence[range] = ()) -> Tensor:
        """The tensor, or its `ranges` along `dim` one after the other, on the CPU in its stored dtype.

        A whole tensor or a single range comes as a view of the mapped file where the format allows it:
        copy before writing to it.
        """
        ...


class WeightsFile(TensorSource, Protocol):
    """The tensors of one file."""

    @property
    def path(self) -> Path: ...

    @property
    def odd(self) -> Mapping[str, str]:
        """What the file holds beside them that cannot be read as a tensor: what each is, by name."""
        ...


@dataclass(frozen=True, slots=True)
class TensorLocation:
    """Where a tensor is stored, and under which name."""

    source: TensorSource
    name: str


class MultiFileSource:
    """Tensors spread over several files, each at its location."""

    def __init__(self, locations: Mapping[str, TensorLocation]) -> None:
        self._locations = locations

    def names(self) -> Collection[str]:
        return self._locations.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        location = self._locations[name]
        return location.source.shape(location.name)

    def dtype(self, name: str) -> torch.dtype:
        location = self._locations[name]
        return location.source.dtype(location.name)

    def read(self, name: str, dim: int | None = None, ranges: Sequence[range] = ()) -> Tensor:
        location = self._locations[name]
        return location.source.read(location.name, dim, ranges)


class Zeros:
    """A tensor of zeros, by any name."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self._shape, self._dtype = shape, dtype

    def names(self) -> Collection[str]:
        return ()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shape

    def dtype(self, name: str) -> torch.dtype:
        return self._dtype

    def read(self, name: str, dim: int | None = None, ranges: Sequence[range] = ()) -> Tensor:
        return take(torch.zeros(self._shape, dtype=self._dtype), dim, ranges)


def take(tensor: Tensor, dim: int | None, ranges: Sequence[range]) -> Tensor:
    """The indices in `ranges` along `dim`: a view for one range, a copy for more; all of it without `dim`."""
    if dim is None:
        return tensor
    pieces = [tensor.narrow(dim, part.start, len(part)) for part in ranges]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim)


def listed(names: Sequence[str], separator: str = ", ") -> str:
    """Names for an error line, cut short when there are too many to read."""
    more = len(names) - MOST_NAMED
    return separator.join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def damaged(path: Path, got: str) -> CheckpointError:
    """The error for a file whose content cannot be what its name promises."""
    return CheckpointError(
        f"a whole {path.name}", f"{got} in {path}", "fetch or write the file again"
    )
