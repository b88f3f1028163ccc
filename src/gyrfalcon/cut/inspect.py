"""Says which rank holds which range of which tensor, and how many bytes that is. Reads no tensor."""

from dataclasses import dataclass
from pathlib import Path

from gyrfalcon.checkpoint.manifest import Content, dtype_name
from gyrfalcon.checkpoint.source import Checkpoint, open_checkpoint
from gyrfalcon.config import ModelConfig
from gyrfalcon.model.layout import TensorSpec, local_shape
from gyrfalcon.parallel.shards import Share, shares_of


@dataclass(frozen=True, slots=True)
class TensorRow:
    """One tensor and what each rank holds of it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    dim: int | None  # the shared dimension; None: every rank holds all of it
    ranges: tuple[tuple[range, ...], ...]  # by rank, along `dim`
    rank_bytes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Inspection:
    """A model's tensors as `world_size` ranks would hold them."""

    folder: Path
    config: ModelConfig
    world_size: int
    rows: tuple[TensorRow, ...]
    notes: tuple[str, ...]

    @property
    def rank_bytes(self) -> tuple[int, ...]:
        """Bytes of all tensors, by rank."""
        return tuple(
            sum(row.rank_bytes[rank] for row in self.rows) for rank in range(self.world_size)
        )


def inspect_model(
    folder: Path, world_size: int | None = None, adapter: str | None = None
) -> Inspection:
    """Looks at a Hugging Face folder or a cut; without `world_size`, a cut's own or 1; `adapter` as
    open_checkpoint takes it.

    Raises CheckpointError, ConfigError, UsageError or WorldSizeError.
    """
    checkpoint = open_checkpoint(folder, adapter)
    ranks = world_size if world_size is not None else checkpoint.world_size or 1
    shares = shares_of(checkpoint.config, ranks)
    rows = tuple(_row(checkpoint, spec, shares) for spec in checkpoint.layout.stored)
    return Inspection(folder, checkpoint.config, ranks, rows, checkpoint.notes)


def _row(checkpoint: Checkpoint, spec: TensorSpec, shares: list[Share]) -> TensorRow:
    manifest, dtype = checkpoint.manifest, checkpoint.source.dtype(spec.name)
    if manifest is not None and manifest.world_size == len(shares):
        ranges = tuple(part.ranges for part in manifest.tensors[spec.name].parts)
    else:
        ranges = tuple(checkpoint.layout.ranges(spec, share) for share in shares)
    contents = [Content(local_shape(spec.shape, spec.dim, own), dtype) for own in ranges]
    return TensorRow(
        name=spec.name,
        shape=spec.shape,
        dtype=dtype_name(dtype),
        dim=spec.dim,
        ranges=ranges,
        rank_bytes=tuple(content.num_bytes for content in contents),
    )
