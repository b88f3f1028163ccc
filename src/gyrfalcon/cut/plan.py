"""What a cut will consist of: which tensor goes where, in which file, decided before a byte is written.

Knows names, shapes and sizes; reads no tensor and writes no file.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

import torch

from gyrfalcon.checkpoint.manifest import (
    TOKENIZER_FOLDER,
    AdapterSum,
    Content,
    CutTensor,
    Part,
    Quantisation,
)
from gyrfalcon.checkpoint.source import PART_FOLDER
from gyrfalcon.cut.safetensors_writer import entry_bound, header_bytes
from gyrfalcon.errors import UsageError
from gyrfalcon.model.layout import DATA, SCALES, Layout, TensorSpec
from gyrfalcon.parallel.shards import shares_of


@dataclass(frozen=True, slots=True)
class Form:
    """How the files of a folder are laid out."""

    part_folder: str  # holds a folder per rank; "" puts the only rank's files at the top
    tokenizer_folder: str
    has_manifest: bool

    def rank_folder(self, rank: int) -> str:
        """Where a rank's files lie, "" or ending in a slash."""
        return f"{self.part_folder}/{rank}/" if self.part_folder else ""


CUT = Form(PART_FOLDER, TOKENIZER_FOLDER, has_manifest=True)
HUGGING_FACE = Form("", "", has_manifest=False)


@dataclass(frozen=True, slots=True)
class Plan:
    """Every tensor with its place. A stage is one file of each rank; its tensors are written together."""

    form: Form
    world_size: int
    tensors: Mapping[str, CutTensor]
    aliases: Mapping[str, str]
    stages: tuple[tuple[str, ...], ...]  # the tensors of each, in file order
    quantisation: Quantisation | None
    adapter: AdapterSum | None

    def rank_files(self, rank: int) -> list[str]:
        """A rank's weight files, by stage."""
        return [self.tensors[stage[0]].parts[rank].file for stage in self.stages]

    def contents(self, stage: Iterable[str], rank: int) -> dict[str, Content]:
        """What a rank's file of a stage holds."""
        return {name: self.tensors[name].content(rank) for name in stage}

    def stage_bytes(self, stage: Iterable[str]) -> int:
        """The size of a stage's files together."""
        return sum(_file_bytes(self.contents(stage, rank)) for rank in range(self.world_size))


def make_plan(
    layout: Layout,
    form: Form,
    world_size: int,
    *,
    dtypes: Mapping[TensorSpec, tuple[torch.dtype, torch.dtype]],
    aliases: Mapping[str, str],
    max_shard_bytes: int,
    quantisation: Quantisation | None = None,
    adapter: AdapterSum | None = None,
) -> Plan:
    """Shares tensors over ranks and files. `dtypes`: each tensor's own, and that of the checkpoint that
    was cut; `aliases` are recorded, not stored.

    Raises WorldSizeError, and UsageError when one tensor alone is larger than a file may be or cannot
    be shared over the ranks.
    """
    shares = shares_of(layout.config, world_size)
    tensors = {
        spec.name: CutTensor(
            shape=spec.shape,
            dtype=dtype,
            source_dtype=source_dtype,
            dim=spec.dim,
            parts=tuple(Part("", layout.ranges(spec, share)) for share in shares),
        )
        for spec, (dtype, source_dtype) in dtypes.items()
    }
    stages = tuple(_stages(tensors, max_shard_bytes))
    for number, stage in enumerate(stages):
        name = _file_name(number, len(stages))
        for tensor in stage:
            tensors[tensor] = _placed(tensors[tensor], form, name)
    return Plan(form, world_size, tensors, aliases, stages, quantisation, adapter)


def _stages(tensors: Mapping[str, CutTensor], max_shard_bytes: int) -> Iterator[tuple[str, ...]]:
    """As many tensors as fit into one file of the rank that holds most of them, in order. A matrix's data
    and scales are not split up: a cut that is resumed cannot mix those of two quantisations.
    """
    stage: list[str] = []
    sizes = [0] * max(len(tensor.parts) for tensor in tensors.values())
    for matrix, parts in groupby(tensors, key=_matrix):
        names = list(parts)
        added = [
            sum(_bound(name, tensors[name].content(rank)) for name in names)
            for rank in range(len(sizes))
        ]
        if max(added) > max_shard_bytes:
            raise UsageError(
                f"files of at least {max(added)} B for {matrix}",
                f"{max_shard_bytes} B",
                "raise `max_shard_bytes` or use more ranks",
            )
        if max(a + b for a, b in zip(sizes, added, strict=True)) > max_shard_bytes:
            yield _file_order(stage, tensors)
            stage, sizes = [], [0] * len(sizes)
        stage += names
        sizes = [a + b for a, b in zip(sizes, added, strict=True)]
    yield _file_order(stage, tensors)


def _matrix(name: str) -> str:
    """The name of the matrix that a tensor is a part of, or its own."""
    return name.removesuffix(DATA).removesuffix(SCALES)


def _file_order(stage: list[str], tensors: Mapping[str, CutTensor]) -> tuple[str, ...]:
    """Wider dtypes first, so that every tensor begins at a multiple of its element size. A matrix's
    data and scales stay together: it is quantised once for both.
    """
    return tuple(sorted(stage, key=lambda name: -_width(name, tensors[name])))


def _width(name: str, tensor: CutTensor) -> int:
    return 1 if name.endswith(SCALES) else tensor.dtype.itemsize


def _bound(name: str, content: Content) -> int:
    return entry_bound(name, content) + content.num_bytes


def _file_bytes(contents: Mapping[str, Content]) -> int:
    return len(header_bytes(contents)) + sum(content.num_bytes for content in contents.values())


def _file_name(number: int, count: int) -> str:
    """Hugging Face's names: one file alone has no number."""
    return (
        "model.safetensors" if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors"
    )


def _placed(tensor: CutTensor, form: Form, file: str) -> CutTensor:
    parts = tuple(
        Part(form.rank_folder(rank) + file, part.ranges) for rank, part in enumerate(tensor.parts)
    )
    return CutTensor(tensor.shape, tensor.dtype, tensor.source_dtype, tensor.dim, parts)
