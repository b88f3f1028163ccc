"""Makes another folder from a cut alone: for another number of ranks, or in Hugging Face's form."""

from collections import Counter
from pathlib import Path

import torch

from gyrfalcon.checkpoint.manifest import Manifest, dtype_name
from gyrfalcon.checkpoint.source import Checkpoint, open_checkpoint
from gyrfalcon.console.format import counted
from gyrfalcon.cut.cut import MAX_SHARD_BYTES
from gyrfalcon.cut.folder_writer import CutSummary, write_folder
from gyrfalcon.cut.plan import CUT, HUGGING_FACE, make_plan
from gyrfalcon.cut.quantise import dequantising_reader
from gyrfalcon.errors import UsageError
from gyrfalcon.model.layout import Layout, TensorSpec


def recut(
    folder: Path,
    target: Path,
    world_size: int,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    overwrite: bool = False,
) -> CutSummary:
    """Cuts a cut again for another number of ranks: the same files as a cut of the checkpoint would have.

    Atomic and resumable as cut() is, and raises the same errors.
    """
    checkpoint, manifest = _open_cut(folder)
    tensors = [(spec, manifest.tensors[spec.name]) for spec in checkpoint.layout.stored]
    plan = make_plan(
        checkpoint.layout,
        CUT,
        world_size,
        dtypes={spec: (tensor.dtype, tensor.source_dtype) for spec, tensor in tensors},
        aliases=manifest.aliases,
        max_shard_bytes=max_shard_bytes,
        quantisation=manifest.quantisation,
        adapter=manifest.adapter,
    )
    read = checkpoint.source.read
    return write_folder(checkpoint, plan, read, target, overwrite=overwrite, notes=())


def merge(
    folder: Path,
    target: Path,
    *,
    dequantise: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    overwrite: bool = False,
) -> CutSummary:
    """Puts a cut together to the Hugging Face folder it came from, every tensor bit for bit.

    A cut in another dtype, or a quantised one, asks for `dequantise`: the tensors get their first
    dtype back, and the notes say what was lost. Atomic and resumable as cut() is, and raises the same
    errors.
    """
    checkpoint, manifest = _open_cut(folder)
    losses = _losses(checkpoint, manifest)
    if losses and not dequantise:
        raise UsageError(
            "a cut in the dtype of its checkpoint",
            "; ".join(losses),
            "add `dequantise=True` to accept that",
        )
    layout = checkpoint.layout
    aliased = layout.stored_name(layout.scheme.head) in manifest.aliases
    layout = layout.with_head(layout.has_head or aliased)
    firsts = [(spec, _first_dtype(manifest, layout, spec)) for spec in layout.tensors]
    plan = make_plan(
        layout,
        HUGGING_FACE,
        1,
        dtypes={spec: (first, first) for spec, first in firsts},
        aliases={},
        max_shard_bytes=max_shard_bytes,
    )
    read = dequantising_reader(checkpoint.source, layout)
    return write_folder(checkpoint, plan, read, target, overwrite=overwrite, notes=losses)


def _open_cut(folder: Path) -> tuple[Checkpoint, Manifest]:
    checkpoint = open_checkpoint(folder)
    if checkpoint.manifest is None:
        raise UsageError("a cut", f"the Hugging Face folder {folder}", "cut it first")
    return checkpoint, checkpoint.manifest


def _first_dtype(manifest: Manifest, layout: Layout, spec: TensorSpec) -> torch.dtype:
    """The dtype of one of the model's tensors in the checkpoint that was cut."""
    name = layout.stored_as(spec)[0].name
    return manifest.tensors[manifest.aliases.get(name, name)].source_dtype


def _losses(checkpoint: Checkpoint, manifest: Manifest) -> tuple[str, ...]:
    """A line per pair of dtypes, such as "12 tensors float32 → bfloat16: the low bits are lost"."""
    layout = checkpoint.layout
    pairs = Counter(_change(manifest, layout, spec) for spec in layout.tensors)
    return tuple(
        f"{counted(count, 'tensor')} {change}" for change, count in pairs.items() if change
    )


def _change(manifest: Manifest, layout: Layout, spec: TensorSpec) -> str:
    """What became of one of the model's tensors; "" for nothing."""
    part = layout.stored_as(spec)[0]
    first, kept = _first_dtype(manifest, layout, spec), manifest.tensors[part.name].dtype
    if part.kind != "none":
        return f"{dtype_name(first)} → {part.kind}: quantised, with an unknown error"
    return (
        "" if first == kept else f"{dtype_name(first)} → {dtype_name(kept)}: {_loss(first, kept)}"
    )


def _loss(first: torch.dtype, kept: torch.dtype) -> str:
    """Promotion says whether every value of the first dtype has a place in the other."""
    return (
        "nothing is lost"
        if torch.promote_types(first, kept) == kept
        else "the lowest bits are lost"
    )
