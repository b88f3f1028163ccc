"""Makes another folder from a cut alone: for another number of ranks, or in Hugging Face's form."""

from collections import Counter
from pathlib import Path

import torch

from gyrfalcon.errors import UsageError
from gyrfalcon.output import counted
from gyrfalcon.weights.cut import MAX_SHARD_BYTES
from gyrfalcon.weights.folder_writer import CutSummary, write_folder
from gyrfalcon.weights.manifest import Manifest, dtype_name
from gyrfalcon.weights.plan import CUT, HUGGING_FACE, make_plan
from gyrfalcon.weights.source import Checkpoint, open_checkpoint


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
    dtypes = {name: tensor.dtype for name, tensor in manifest.tensors.items()}
    plan = make_plan(
        checkpoint,
        CUT,
        world_size,
        dtypes=dtypes,
        aliases=manifest.aliases,
        max_shard_bytes=max_shard_bytes,
    )
    return write_folder(checkpoint, plan, target, overwrite=overwrite, notes=())


def merge(
    folder: Path,
    target: Path,
    *,
    dequantise: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    overwrite: bool = False,
) -> CutSummary:
    """Puts a cut together to the Hugging Face folder it came from, every tensor bit for bit.

    A cut in another dtype asks for `dequantise`: the tensors get their first dtype back, and the notes
    say what was lost. Atomic and resumable as cut() is, and raises the same errors.
    """
    checkpoint, manifest = _open_cut(folder)
    losses = _losses(manifest)
    if losses and not dequantise:
        raise UsageError(
            "a cut in the dtype of its checkpoint",
            "; ".join(losses),
            "add --dequantise to accept that",
        )
    dtypes = {name: tensor.source_dtype for name, tensor in manifest.tensors.items()}
    dtypes |= {name: dtypes[kept] for name, kept in manifest.aliases.items()}
    plan = make_plan(
        checkpoint, HUGGING_FACE, 1, dtypes=dtypes, aliases={}, max_shard_bytes=max_shard_bytes
    )
    return write_folder(checkpoint, plan, target, overwrite=overwrite, notes=losses)


def _open_cut(folder: Path) -> tuple[Checkpoint, Manifest]:
    checkpoint = open_checkpoint(folder)
    if checkpoint.manifest is None:
        raise UsageError("a cut", f"the Hugging Face folder {folder}", "cut it first")
    return checkpoint, checkpoint.manifest


def _losses(manifest: Manifest) -> tuple[str, ...]:
    """A line per pair of dtypes, such as "12 tensors float32 → bfloat16: the low bits are lost"."""
    pairs = Counter((tensor.source_dtype, tensor.dtype) for tensor in manifest.tensors.values())
    return tuple(
        f"{counted(count, 'tensor')} {dtype_name(first)} → {dtype_name(kept)}: {_loss(first, kept)}"
        for (first, kept), count in pairs.items()
        if first != kept
    )


def _loss(first: torch.dtype, kept: torch.dtype) -> str:
    """Promotion says whether every value of the first dtype has a place in the other."""
    return (
        "nothing is lost"
        if torch.promote_types(first, kept) == kept
        else "the lowest bits are lost"
    )
