"""Reads one .bin file (torch.save of a state dict) without ever running code that hides in it."""

import warnings
import zipfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from gyrfalcon.checkpoint.tensors import damaged, take
from gyrfalcon.errors import CheckpointError, lack
from gyrfalcon.files.foreign import open_foreign, unreadable


class PickleFile:
    """The tensors of one .bin file; memory-mapped when it has torch's zip format, else read at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        state = _load(path)
        self.odd = {name: what for name, value in state.items() if (what := _odd(value))}
        self._tensors = {
            name: _plain(value)
            for name, value in state.items()
            if isinstance(value, Tensor) and name not in self.odd
        }

    def names(self) -> Collection[str]:
        return self._tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        return self._tensors[name].dtype

    def read(self, name: str, dim: int | None = None, ranges: Sequence[range] = ()) -> Tensor:
        return take(self._tensors[name], dim, ranges)


def _load(path: Path) -> dict[str, object]:
    """What is saved in the file, by name: a state dict, or something near it."""
    is_zip = _is_zip(path)
    if is_zip:
        _refuse_compressed(path)
    try:
        with warnings.catch_warnings(
            action="ignore"
        ):  # what is odd about a pickle ends in the error
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except UnpicklingError as error:
        raise CheckpointError(
            f"tensors alone in {path}",
            f"a pickle that is damaged or wants to run code ({_first_line(error)})",
            "use the .safetensors files, or fetch the file again",
        ) from None
    except OSError as error:
        raise unreadable(path, error) from None
    except Exception as error:  # a damaged file can make the unpickler raise anything
        shortage = lack(error, f"to read {path}")
        raise shortage or damaged(path, f"{type(error).__name__} ({_first_line(error)})") from None
    if not isinstance(state, dict):
        raise damaged(path, f"a {type(state).__name__} and no dict of tensors")
    _refuse_nested(path, state)
    return {str(name): value for name, value in state.items()}


def _refuse_compressed(path: Path) -> None:
    """torch stores what it saves as it is; a compressed entry could fill the memory from a small file."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        shortage = lack(error, f"to read {path}")
        raise shortage or damaged(path, f"no zip file ({_first_line(error)})") from None
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise damaged(path, f"a compressed {entry.filename!r:.80}")


def _refuse_nested(path: Path, state: Mapping[object, object]) -> None:
    """A training checkpoint holds the state dict in another dict; transformers finds no tensor in it."""
    if any(isinstance(value, Tensor) for value in state.values()):
        return
    for name, value in state.items():
        if isinstance(value, dict) and any(isinstance(inner, Tensor) for inner in value.values()):
            raise CheckpointError(
                f"a dict of tensors in {path}",
                f"one that has them under {name!r}",
                f"save what is under {name!r} alone",
            )


def _odd(value: object) -> str:
    """What a value is that is no tensor with all its numbers side by side in memory; "" for one that is."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__} and no tensor"
    if value.is_meta:
        return "a tensor without data (device meta)"
    if value.is_nested:
        return "a nested tensor"
    if value.layout != torch.strided:
        return f"a tensor of layout {str(value.layout).removeprefix('torch.')}"
    if value.is_quantized:
        return f"a quantised tensor ({value.dtype})"
    stored = value.untyped_storage().nbytes() // value.element_size()
    if value.numel() > stored:
        return f"a tensor of {value.numel()} numbers, of which {stored} are stored"
    return ""


def _plain(tensor: Tensor) -> Tensor:
    """A parameter as its data; signs and conjugates that are only noted are carried out."""
    return tensor.detach().resolve_conj().resolve_neg()


def _is_zip(path: Path) -> bool:
    with open_foreign(path) as file:
        return file.read(4) == b"PK\x03\x04"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["no reason given"])[0][:200]
