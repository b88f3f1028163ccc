"""`gyrfalcon inspect`: which rank holds which range of which tensor."""

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from gyrfalcon.cli.engine_options import add_adapter, add_model, add_world_size
from gyrfalcon.console.format import note_line, show_result, shown_bytes
from gyrfalcon.parallel.interrupts import ending_interrupts

if TYPE_CHECKING:
    from gyrfalcon.cut.inspect import Inspection, TensorRow

SUMMARY = "list which rank holds what"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """List which rank holds which tensor, which range of it, and how many bytes that takes.

    examples:
      gyrfalcon inspect falcon-40b -w 4
    """
    add_model(parser)
    add_world_size(parser, "for this many ranks (default: the cut's own, else 1)")
    add_adapter(parser)


def run(args: argparse.Namespace) -> int:
    """Lists tensor by tensor what each rank holds, then the bytes of each rank."""
    with ending_interrupts():
        from gyrfalcon.checkpoint.hub import resolve_model
        from gyrfalcon.cut.inspect import inspect_model
    inspection = inspect_model(resolve_model(args.model), args.world_size, args.adapter)
    show_result(_plain(inspection), _lines(inspection), args.json)
    return 0


def _lines(inspection: "Inspection") -> Iterator[str]:
    for note in inspection.notes:
        yield note_line(note)
    for row in inspection.rows:
        yield from _row_lines(row)
    for rank, num_bytes in enumerate(inspection.rank_bytes):
        yield f"rank {rank} holds {shown_bytes(num_bytes)} of weights"


def _row_lines(row: "TensorRow") -> Iterator[str]:
    yield f"{row.name} {list(row.shape)} {row.dtype}"
    if row.dim is None:
        yield f"  every rank  whole  {shown_bytes(row.rank_bytes[0])}"
        return
    word = ("rows", "columns")[row.dim]
    for rank, (parts, num_bytes) in enumerate(zip(row.ranges, row.rank_bytes, strict=True)):
        ranges = " + ".join(f"{part.start}:{part.stop}" for part in parts)
        yield f"  rank {rank}  {word} {ranges}  {shown_bytes(num_bytes)}"


def _plain(inspection: "Inspection") -> dict[str, object]:
    """The inspection as JSON holds it: a range is [start, stop]."""
    rows = [
        asdict(row)
        | {"ranges": [[[part.start, part.stop] for part in parts] for parts in row.ranges]}
        for row in inspection.rows
    ]
    return {
        "folder": str(inspection.folder),
        "world_size": inspection.world_size,
        "notes": inspection.notes,
        "rank_bytes": inspection.rank_bytes,
        "tensors": rows,
    }
