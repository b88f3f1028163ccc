"""The manifest of a cut: which tensor, which ranges, in which file of which rank, and every file's checksum.

Reads and writes manifest.json; opens no other file.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gyrfalcon.errors import CheckpointError
from gyrfalcon.files.foreign import is_inside, read_json
from gyrfalcon.model.layout import local_shape
from gyrfalcon.quant import KINDS

MANIFEST = "manifest.json"
FORMAT = "gyrfalcon-cut"
VERSION = 1
MOST_ELEMENTS = 1 << 60  # of a tensor: what torch and Python can count
TOKENIZER_FOLDER = "tokenizer"


@dataclass(frozen=True, slots=True)
class Content:
    """One tensor as a file holds it."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Part:
    """What one rank holds of a tensor: `ranges` along the shared dimension, or all of it without."""

    file: str  # path inside the cut
    ranges: tuple[range, ...]


@dataclass(frozen=True, slots=True)
class CutTensor:
    """One tensor of a cut: its whole shape and each rank's part."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    source_dtype: torch.dtype  # what the checkpoint that was cut stored
    dim: int | None
    parts: tuple[Part, ...]  # by rank

    def content(self, rank: int) -> Content:
        """What `rank` holds."""
        return Content(local_shape(self.shape, self.dim, self.parts[rank].ranges), self.dtype)


@dataclass(frozen=True, slots=True)
class TextSum:
    """The tokens of a text that matrices were calibrated on."""

    num_tokens: int
    sha256: str  # of their ids as int64, lowest byte first


@dataclass(frozen=True, slots=True)
class Quantisation:
    """How the matrices of a cut are quantised: each is a tensor of data and one of scales."""

    kind: str  # int8, fp8 or one of int4
    dtype: torch.dtype  # of the model before: what it is computed in when nothing else is asked for
    text: TextSum | None = None


@dataclass(frozen=True, slots=True)
class FileSum:
    """What a file of the cut must be."""

    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class AdapterSum:
    """The adapter that is merged into the tensors of a cut."""

    name: str  # of its folder
    base_model: str | None  # what it says it was trained on
    files: Mapping[str, FileSum]  # its config and its tensors


@dataclass(frozen=True, slots=True)
class Manifest:
    """All a reader needs to know about a cut."""

    raw_config: Mapping[str, object]  # of the checkpoint that was cut, word for word
    world_size: int
    tensors: Mapping[str, CutTensor]
    # Stored twice, bit for bit, in the checkpoint → the name it is kept under.
    aliases: Mapping[str, str]
    files: Mapping[str, FileSum]
    quantisation: Quantisation | None = None
    adapter: AdapterSum | None = None

    @property
    def quant(self) -> str:
        """What the matrices are quantised to, or none."""
        return "none" if self.quantisation is None else self.quantisation.kind

    def dtype_names(self) -> str:
        """The dtypes in the parts, such as "bfloat16" or "bfloat16+float32"."""
        return "+".join(sorted({dtype_name(tensor.dtype) for tensor in self.tensors.values()}))

    def contents(self) -> dict[str, dict[str, Content]]:
        """The tensors of every weights file."""
        files: dict[str, dict[str, Content]] = {}
        for name, tensor in self.tensors.items():
            for rank, part in enumerate(tensor.parts):
                files.setdefault(part.file, {})[name] = tensor.content(rank)
        return files

    def text(self) -> str:
        """The content of manifest.json; the same cut always has the same text."""
        plain = _plain(self)
        checksum = hashlib.sha256(json.dumps(plain).encode()).hexdigest()
        return json.dumps(plain | {"sha256": checksum}, indent=1) + "\n"

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """The manifest of a cut folder; CheckpointError when it is damaged or from another version."""
        path = folder / MANIFEST
        raw = read_json(path)
        if raw.get("format") != FORMAT or raw.get("version") != VERSION:
            raise CheckpointError(
                f"{FORMAT} version {VERSION} in {path}",
                f"{raw.get('format')!r} version {raw.get('version')!r}",
                "cut the checkpoint again with this version",
            )
        try:
            manifest = _parsed(raw)
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            raise CheckpointError(
                f"a whole {path}", f"{type(error).__name__}: {error}", "cut the checkpoint again"
            ) from None
        if manifest.text() != path.read_text("utf-8"):
            raise CheckpointError(
                f"{path} as it was written",
                "one that was changed since",
                "cut the checkpoint again",
            )
        return manifest


def has_manifest(folder: Path) -> bool:
    """Whether a folder is a cut: other programs put files of that name beside a model's config."""
    path = folder / MANIFEST
    if not (folder / "config.json").exists():
        return path.exists()
    with suppress(CheckpointError):
        return read_json(path).get("format") == FORMAT
    return False


def dtype_name(dtype: torch.dtype) -> str:
    """torch.bfloat16 → "bfloat16"."""
    return str(dtype).removeprefix("torch.")


DTYPES_BY_NAME = {
    dtype_name(dtype): dtype
    for dtype in (
        torch.bfloat16,
        torch.float16,
        torch.float32,
        torch.float64,
        torch.int8,
        torch.uint8,
        torch.float8_e4m3fn,
    )
}


def _plain(manifest: Manifest) -> dict[str, object]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "world_size": manifest.world_size,
        "dtype": manifest.dtype_names(),
        **_plain_quantisation(manifest.quantisation),
        **_plain_adapter(manifest.adapter),
        "config": manifest.raw_config,
        "aliases": dict(manifest.aliases),
        "tensors": {name: _plain_tensor(tensor) for name, tensor in manifest.tensors.items()},
        "files": _plain_files(manifest.files),
    }


def _plain_files(files: Mapping[str, FileSum]) -> dict[str, object]:
    return {
        name: {"bytes": file.num_bytes, "sha256": file.sha256}
        for name, file in sorted(files.items())
    }


def _plain_adapter(adapter: AdapterSum | None) -> dict[str, object]:
    """Nothing for a cut without one."""
    if adapter is None:
        return {}
    plain = {"name": adapter.name, "base_model": adapter.base_model}
    return {"adapter": plain | {"files": _plain_files(adapter.files)}}


def _plain_quantisation(quantisation: Quantisation | None) -> dict[str, object]:
    """Nothing for a cut that is not quantised."""
    if quantisation is None:
        return {}
    plain: dict[str, object] = {"kind": quantisation.kind, "dtype": dtype_name(quantisation.dtype)}
    if quantisation.text is not None:
        plain["text"] = {"tokens": quantisation.text.num_tokens, "sha256": quantisation.text.sha256}
    return {"quant": plain}


def _plain_tensor(tensor: CutTensor) -> dict[str, object]:
    return {
        "shape": list(tensor.shape),
        "dtype": dtype_name(tensor.dtype),
        "source_dtype": dtype_name(tensor.source_dtype),
        "dim": tensor.dim,
        "parts": [
            {"file": part.file, "ranges": [[run.start, run.stop] for run in part.ranges]}
            for part in tensor.parts
        ],
    }


def _parsed(raw: dict[str, Any]) -> Manifest:
    world_size = int(raw["world_size"])
    tensors = {str(name): _parsed_tensor(tensor) for name, tensor in raw["tensors"].items()}
    for name, tensor in tensors.items():
        if len(tensor.parts) != world_size or not _is_covered(tensor):
            raise ValueError(
                f"the parts of {name} do not make up {world_size} ranks' shares of all of it"
            )
    files = _parsed_files(raw["files"])
    unsafe = [path for path in files if not is_inside(path)]
    if unsafe:
        raise ValueError(f"a file that cannot be inside of the cut: {unsafe[0]!r}")
    unknown = {part.file for tensor in tensors.values() for part in tensor.parts} - files.keys()
    if unknown:
        raise ValueError(f"a part in a file that is not listed: {min(unknown)}")
    aliases = {str(name): str(kept) for name, kept in raw["aliases"].items()}
    if not aliases.keys().isdisjoint(tensors) or not set(aliases.values()) <= tensors.keys():
        raise ValueError("an alias of a tensor that is not there")
    return Manifest(
        dict(raw["config"]),
        world_size,
        tensors,
        aliases,
        files,
        _parsed_quantisation(raw.get("quant")),
        _parsed_adapter(raw.get("adapter")),
    )


def _parsed_files(raw: dict[str, Any]) -> dict[str, FileSum]:
    return {
        str(path): FileSum(int(file["bytes"]), str(file["sha256"])) for path, file in raw.items()
    }


def _parsed_adapter(raw: dict[str, Any] | None) -> AdapterSum | None:
    if raw is None:
        return None
    base = raw["base_model"]
    return AdapterSum(
        str(raw["name"]), None if base is None else str(base), _parsed_files(raw["files"])
    )


def _parsed_quantisation(raw: dict[str, Any] | None) -> Quantisation | None:
    if raw is None:
        return None
    if raw["kind"] not in KINDS:
        raise ValueError(f"weights quantised to {raw['kind']}")
    text = raw.get("text")
    return Quantisation(
        raw["kind"],
        DTYPES_BY_NAME[raw["dtype"]],
        None if text is None else TextSum(int(text["tokens"]), str(text["sha256"])),
    )


def _parsed_tensor(raw: dict[str, Any]) -> CutTensor:
    shape = tuple(int(size) for size in raw["shape"])
    if min(shape, default=0) < 0 or math.prod(max(size, 1) for size in shape) > MOST_ELEMENTS:
        raise ValueError(f"a tensor of shape {list(shape)!r:.200}")
    return CutTensor(
        shape=shape,
        dtype=DTYPES_BY_NAME[raw["dtype"]],
        source_dtype=DTYPES_BY_NAME[raw["source_dtype"]],
        dim=None if raw["dim"] is None else int(raw["dim"]),
        parts=tuple(
            Part(str(part["file"]), tuple(_parsed_range(a, b) for a, b in part["ranges"]))
            for part in raw["parts"]
        ),
    )


def _parsed_range(start: Any, stop: Any) -> range:
    run = range(int(start), int(stop))
    if not 0 <= run.start <= run.stop:
        raise ValueError(f"a range from {start} to {stop}")
    return run


def _is_covered(tensor: CutTensor) -> bool:
    """Whether the parts make up the whole tensor; several ranks may hold the same rows."""
    runs = [run for part in tensor.parts for run in part.ranges]
    if tensor.dim is None:
        return not runs
    if tensor.dim not in range(len(tensor.shape)):
        return False
    covered = 0
    for run in sorted(runs, key=lambda run: (run.start, run.stop)):
        if run.start > covered:
            return False
        covered = max(covered, run.stop)
    return covered == tensor.shape[tensor.dim]
