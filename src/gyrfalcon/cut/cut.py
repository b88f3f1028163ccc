"""Cuts a Hugging Face checkpoint into one part per rank."""

from collections.abc import Mapping
from pathlib import Path

import torch

from gyrfalcon.checkpoint.manifest import Quantisation
from gyrfalcon.checkpoint.source import Checkpoint, open_checkpoint
from gyrfalcon.console.format import counted
from gyrfalcon.cut.calibrate import Calibration, CalibrationText, sum_of, windows_of
from gyrfalcon.cut.folder_writer import BLOCK_BYTES, CutSummary, write_folder
from gyrfalcon.cut.plan import CUT, make_plan
from gyrfalcon.cut.quantise import QuantisedSource
from gyrfalcon.device.dtypes import DTYPE_OF_WORD
from gyrfalcon.errors import UsageError
from gyrfalcon.model.layout import Layout
from gyrfalcon.quant import GROUPS, KINDS

AUTO = "auto"
MAX_SHARD_BYTES = 5_000_000_000


def cut(  # noqa: PLR0913  # each is an option of the command
    source: Path,
    target: Path,
    world_size: int,
    *,
    dtype: str = AUTO,
    quant: str = "none",
    calibrate: CalibrationText | None = None,
    adapter: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    overwrite: bool = False,
) -> CutSummary:
    """Cuts the checkpoint in `source` for `world_size` ranks; "auto" keeps every tensor's stored dtype.

    quant: other than none, each matrix is quantised as load_model() would quantise it.
    calibrate: a text on which the kinds of int4 are calibrated (GPTQ).
    adapter: as open_checkpoint takes it; it is merged before weights are quantised and stored.
    `target` appears when it is whole. A run that was stopped is resumed by the same call.
    Raises CheckpointError, WorldSizeError, UsageError or DiskFull.
    """
    if dtype not in (AUTO, *DTYPE_OF_WORD):
        raise UsageError(
            f"a dtype of {AUTO}, {', '.join(DTYPE_OF_WORD)}", repr(dtype), "choose one of these"
        )
    if quant not in ("none", *KINDS):
        raise UsageError(
            f"none, {', '.join(KINDS)} to quantise to", repr(quant), "choose one of these"
        )
    if calibrate is not None and quant not in GROUPS:
        wanted = f"one of {', '.join(GROUPS)} to calibrate"
        raise UsageError(wanted, quant, "choose one, or leave the text out")
    checkpoint = open_checkpoint(source, adapter, dtype)
    if checkpoint.manifest is not None:
        raise UsageError("a Hugging Face folder to cut", f"the cut {source}", "use recut for a cut")
    aliases, notes = _head(checkpoint)
    windows = None
    if calibrate is not None:
        windows = windows_of(calibrate, checkpoint)
        notes = (*notes, _told(windows.numel(), checkpoint.config.ffn_size))
    layout = checkpoint.layout.quantised(quant)
    dtypes = {
        part: (
            part.dtype or _stored_dtype(checkpoint, spec.name, dtype),
            checkpoint.source.dtype(spec.name),
        )
        for spec in layout.tensors
        if spec.name not in aliases
        for part in layout.stored_as(spec)
    }
    plan = make_plan(
        layout,
        CUT,
        world_size,
        dtypes=dtypes,
        aliases=_stored_aliases(layout, aliases),
        max_shard_bytes=max_shard_bytes,
        quantisation=_quantisation(checkpoint, quant, dtype, windows),
        adapter=None if checkpoint.adapter is None else checkpoint.adapter.summed(),
    )
    calibration = None if windows is None else Calibration(checkpoint, windows)
    read = QuantisedSource(checkpoint.source, layout, calibration).read
    return write_folder(
        checkpoint, plan, read, target, overwrite=overwrite, notes=(*checkpoint.notes, *notes)
    )


def is_head_tied(checkpoint: Checkpoint) -> bool:
    """Whether the head is the embedding, bit for bit; reads both where a head is stored."""
    source, scheme = checkpoint.source, checkpoint.layout.scheme
    embedding, head = scheme.embedding, scheme.head
    if not checkpoint.has_head:
        return True
    if source.dtype(head) != source.dtype(embedding):
        return False
    rows, columns = source.shape(embedding)
    step = max(1, BLOCK_BYTES // (columns * source.dtype(embedding).itemsize))
    pieces = [range(start, min(start + step, rows)) for start in range(0, rows, step)]
    return all(
        torch.equal(
            _bits(source.read(scheme.head, 0, (part,))),
            _bits(source.read(scheme.embedding, 0, (part,))),
        )
        for part in pieces
    )


def _bits(block: torch.Tensor) -> torch.Tensor:
    return block.contiguous().view(torch.uint8)


def _told(tokens: int, widest: int) -> str:
    told = f"calibrated with {counted(tokens, 'token')} of the text"
    few = f", fewer than the {widest} weights of the widest rows: more would be better"
    return told + few if tokens < widest else told


def _stored_dtype(checkpoint: Checkpoint, name: str, word: str) -> torch.dtype:
    """What a tensor that is not quantised is stored in."""
    return checkpoint.source.dtype(name) if word == AUTO else DTYPE_OF_WORD[word]


def _quantisation(
    checkpoint: Checkpoint, quant: str, word: str, windows: torch.Tensor | None
) -> Quantisation | None:
    if quant == "none":
        return None
    text = None if windows is None else sum_of(windows)
    return Quantisation(
        quant, _stored_dtype(checkpoint, checkpoint.layout.scheme.embedding, word), text
    )


def _stored_aliases(layout: Layout, aliases: Mapping[str, str]) -> dict[str, str]:
    """The same for the tensors that are stored."""
    specs = layout.by_name
    return {
        other.name: kept.name
        for name, kept_name in aliases.items()
        for other, kept in zip(
            layout.stored_as(specs[name]), layout.stored_as(specs[kept_name]), strict=True
        )
    }


def _head(checkpoint: Checkpoint) -> tuple[dict[str, str], tuple[str, ...]]:
    """What to record as stored elsewhere, and what to tell about the head."""
    scheme = checkpoint.layout.scheme
    if not checkpoint.has_head:
        return {}, ()
    if is_head_tied(checkpoint):
        return {scheme.head: scheme.embedding}, (
            f"{scheme.head} equals the embedding and is stored once",
        )
    if checkpoint.config.tied:
        return {}, (
            f"{scheme.head} differs from the embedding although the config ties them: both are kept",
        )
    return {}, ()
