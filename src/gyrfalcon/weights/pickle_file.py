"""Reads one .bin file (torch.save of a state dict) without ever running code that hides in it."""

import warnings
from collections.abc import Collection, Sequence
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from gyrfalcon.errors import CheckpointError
from gyrfalcon.weights.tensors import damaged, take


class PickleFile:
    """The tensors of one .bin file; memory-mapped when it has torch's zip format, else read at once."""

    def __init__(self, path: Path) -> None:
        self._tensors = _load(path)

    def names(self) -> Collection[str]:
        return self._tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        return self._tensors[name].dtype

    def read(self, name: str, dim: int | None = None, ranges: Sequence[range] = ()) -> Tensor:
        return take(self._tensors[name], dim, ranges)


def _load(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings(
            action="ignore"
        ):  # what is odd about a pickle ends in the error
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except UnpicklingError as error:
        raise CheckpointError(
            f"tensors alone in {path}",
            f"a pickle that is damaged or wants to run code ({_first_line(error)})",
            "use the .safetensors files, or fetch the file again",
        ) from None
    except OSError as error:
        raise CheckpointError(
            f"a readable file {path}", error.strerror or "none", "check the folder"
        ) from None
    except Exception as error:  # a damaged file can make the unpickler raise anything
        raise damaged(path, f"{type(error).__name__} ({_first_line(error)})") from None
    if not isinstance(state, dict) or not all(
        isinstance(value, Tensor) for value in state.values()
    ):
        raise damaged(path, "something else than a dict of tensors")
    return {str(name): tensor.detach() for name, tensor in state.items()}


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["no reason given"])[0][:200]
