"""A LoRA adapter's tensors as changes of a model's. Knows no checkpoint."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from gyrfalcon.checkpoint.adapter_config import ADAPTER_CONFIG, AdapterConfig
from gyrfalcon.checkpoint.adapter_folder import ADAPTER_WEIGHTS
from gyrfalcon.checkpoint.manifest import AdapterSum, FileSum
from gyrfalcon.checkpoint.pickle_file import PickleFile
from gyrfalcon.checkpoint.safetensors_file import SafetensorsFile
from gyrfalcon.checkpoint.tensors import WeightsFile, listed
from gyrfalcon.errors import CheckpointError

CHECKED_ELEMENTS = 1 << 24  # of a tensor at a time

PREFIX = "base_model.model."
ADAPTER_NAME = re.compile(
    r"(?<=\.)(lora_[AB]|lora_embedding_[AB]|modules_to_save)\.default(?=\.|$)"
)
HALF = re.compile(r"(?P<module>.+)\.(lora_(?P<half>[AB])\.weight|lora_embedding_(?P<row>[AB]))")
COPY, BASE = ".modules_to_save.", ".base_layer."


@dataclass(frozen=True, slots=True)
class LowRank:
    """A change of a matrix: scale · left · right."""

    left: Tensor  # [rows, rank]
    right: Tensor  # [rank, columns]
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix."""
        return self.left.shape[0], self.right.shape[1]

    def transposed(self) -> "LowRank":
        """The change of the matrix stored the other way round."""
        return LowRank(self.right.t(), self.left.t(), self.scale)

    def rows(self, part: range) -> Tensor:
        """Some rows of the change, float32 [rows, columns]."""
        return (self.left[part.start : part.stop].float() @ self.right.float()) * self.scale


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter whose tensors are whole, by the names of a model's tensors."""

    folder: Path
    config: AdapterConfig
    files: tuple[Path, ...]  # its config and its tensors
    source: WeightsFile
    low_rank: dict[str, LowRank] = field(default_factory=dict)
    own: dict[str, str] = field(default_factory=dict)  # replaced → its name in `source`
    # The same, of a tied embedding and head both.
    shared: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What its folder is called."""
        return self.folder.resolve().name

    def summed(self) -> AdapterSum:
        """What a manifest keeps of it; reads its files."""
        files = {path.name: _sum_of(path) for path in self.files}
        return AdapterSum(self.name, self.config.base_model, files)


def open_adapter(folder: Path) -> Adapter:
    """Reads an adapter; CheckpointError or ConfigError, naming what cannot be merged."""
    if not (folder / ADAPTER_CONFIG).exists():
        inside = sorted(path.parent for path in folder.glob(f"*/{ADAPTER_CONFIG}"))
        do = f"did you mean {inside[-1]}?" if inside else "give the folder that peft saved"
        raise CheckpointError(f"an adapter in {folder}", f"no {ADAPTER_CONFIG}", do)
    config = AdapterConfig.read(folder)
    files = [folder / name for name in ADAPTER_WEIGHTS if (folder / name).exists()]
    if not files:
        wanted = f"{' or '.join(ADAPTER_WEIGHTS)} in {folder}"
        raise CheckpointError(wanted, "neither", "copy the adapter's weights there")
    notes = [f"{other.name} is ignored: {files[0].name} is used" for other in files[1:]]
    safe = files[0].suffix == ".safetensors"
    source: WeightsFile = SafetensorsFile(files[0]) if safe else PickleFile(files[0])
    _check_numbers(source)
    adapter = Adapter(
        folder, config, (folder / ADAPTER_CONFIG, files[0]), source, notes=tuple(notes)
    )
    faults = [*_fill(adapter)]
    if faults:
        raise refused(adapter, listed(faults, "; "))
    return adapter


def refused(adapter: Adapter, got: str) -> CheckpointError:
    """The error for an adapter whose tensors do not fit."""
    base = adapter.config.base_model
    trained = f"the model that it was trained on ({base})" if base else "its own model"
    do = f"give {trained}, or merge it with peft and give the merged model"
    return CheckpointError(f"an adapter that can be merged in {adapter.folder}", got, do)


def _fill(adapter: Adapter) -> Iterator[str]:
    """Sorts the tensors by what they do; yields what is wrong with them."""
    halves: dict[str, dict[str, str]] = defaultdict(dict)
    for stored in adapter.source.names():
        name = ADAPTER_NAME.sub(r"\1", stored.removeprefix(PREFIX))
        if match := HALF.fullmatch(name):
            halves[match["module"]][match["half"] or f"embedding {match['row']}"] = stored
        elif COPY in name or adapter.config.saves(name.rpartition(".")[0]):
            adapter.own[name.replace(COPY, ".")] = stored
        else:
            adapter.shared[name.replace(BASE, ".")] = stored
    for module, found in halves.items():
        yield from _pair(adapter, module, found)


def _pair(adapter: Adapter, module: str, found: dict[str, str]) -> Iterator[str]:
    """One layer's two matrices; those of an embedding give the change transposed."""
    ending = "embedding " if any(half.startswith("embedding") for half in found) else ""
    if set(found) != {f"{ending}A", f"{ending}B"}:
        yield f"half of a pair: {listed(list(found.values()))}"
        return
    a, b = (adapter.source.read(found[ending + half]) for half in "AB")
    rank = adapter.config.rank_of(module)
    if a.ndim != 2 or b.ndim != 2 or {a.shape[0], b.shape[1]} != {rank}:
        yield f"{module} of rank {rank} with {list(a.shape)} and {list(b.shape)}"
        return
    left, right = (a.t(), b.t()) if ending else (b, a)
    name = f"{module}.weight"
    adapter.low_rank[name] = LowRank(left, right, adapter.config.scale_of(module))


def _sum_of(path: Path) -> FileSum:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileSum(path.stat().st_size, digest)


def _check_numbers(file: WeightsFile) -> None:
    """CheckpointError for a file without tensors, with others than plain floats, or with a NaN."""
    names, path = sorted(file.names()), file.path
    kinds = {name: str(file.dtype(name)) for name in names if not _is_float(file.dtype(name))}
    for name, kind in {**kinds, **file.odd}.items():
        do = "save the adapter in fp32 or bf16"
        raise CheckpointError(f"tensors of bf16, fp16 or fp32 in {path}", f"{name}: {kind}", do)
    if not names:
        do = "save the adapter again: its training script wrote an empty file"
        raise CheckpointError(f"an adapter's tensors in {path}", "none", do)
    for name in names:
        if not all(part.isfinite().all() for part in _parts(file.read(name))):
            got, do = f"a NaN or infinity in {name}", "train or fetch the adapter again"
            raise CheckpointError(f"finite numbers in {path}", got, do)


def _is_float(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point and dtype.itemsize > 1


def _parts(tensor: Tensor) -> Iterable[Tensor]:
    return tensor.reshape(-1).split(CHECKED_ELEMENTS) if tensor.numel() else ()
