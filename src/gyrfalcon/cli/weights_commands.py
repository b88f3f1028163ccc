"""The commands on checkpoints and cuts: run what was asked for and say what came of it."""

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from gyrfalcon.checkpoint.hub import resolve_model
from gyrfalcon.console.format import counted, goes_to_stdout, shown_bytes, write_json
from gyrfalcon.console.suggestion import path_meant
from gyrfalcon.cut.calibrate import CalibrationText
from gyrfalcon.cut.cut import cut
from gyrfalcon.cut.folder_writer import CutSummary
from gyrfalcon.cut.inspect import Inspection, TensorRow, inspect_model
from gyrfalcon.cut.recut import merge, recut
from gyrfalcon.cut.staged_folder import check_target
from gyrfalcon.cut.verify import verify
from gyrfalcon.errors import CheckFailed, CheckpointError, UsageError
from gyrfalcon.files.output import OutputFile
from gyrfalcon.files.text import contents, decoded

SAVED = "save succcessfully"  # spelt as scripts around the guide look for it


def run_cut(args: argparse.Namespace) -> int:
    """Hugging Face folder → cut; the last line says that it is saved."""
    check_target(Path(args.target), args.overwrite)
    summary = cut(
        resolve_model(args.source),
        Path(args.target),
        args.world_size,
        dtype=args.dtype,
        quant=args.quant,
        calibrate=_text(args.calibrate, args.calibrate_tokens),
        adapter=args.adapter,
        max_shard_bytes=args.max_shard_size,
        overwrite=args.overwrite,
    )
    return _tell(summary, f"{SAVED}: {summary.target} (world size {summary.world_size})", args.json)


def run_recut(args: argparse.Namespace) -> int:
    """Cut → cut for another number of ranks."""
    summary = recut(
        _cut_folder(args.cut),
        Path(args.target),
        args.world_size,
        max_shard_bytes=args.max_shard_size,
        overwrite=args.overwrite,
    )
    return _tell(summary, f"{SAVED}: {summary.target} (world size {summary.world_size})", args.json)


def run_merge(args: argparse.Namespace) -> int:
    """Cut → Hugging Face folder."""
    summary = merge(
        _cut_folder(args.cut),
        Path(args.target),
        dequantise=args.dequantise,
        max_shard_bytes=args.max_shard_size,
        overwrite=args.overwrite,
    )
    return _tell(summary, f"merged: {summary.target}", args.json)


def run_verify(args: argparse.Namespace) -> int:
    """Every fault is a line; CheckFailed when there is one."""
    report = verify(_cut_folder(args.cut))
    if args.json is not None:
        write_json(asdict(report), args.json)
    if not goes_to_stdout(args.json):
        for fault in report.faults:
            print(f"fault: {fault}")
        size = f"{counted(report.num_files, 'file')}, {shown_bytes(report.num_bytes)}"
        faults = counted(len(report.faults), "fault") if report.faults else "no faults"
        print(f"{report.folder}: {size}, {faults}")
    if report.faults:
        raise CheckFailed("no faults", f"{len(report.faults)}", "cut the checkpoint again")
    return 0


def run_inspect(args: argparse.Namespace) -> int:
    """Tensor by tensor what each rank holds, then each rank's sum."""
    inspection = inspect_model(resolve_model(args.model), args.world_size, args.adapter)
    if args.json is not None:
        write_json(_plain(inspection), args.json)
    if not goes_to_stdout(args.json):
        for note in inspection.notes:
            print(f"note: {note}")
        for row in inspection.rows:
            print("\n".join(_row_lines(row)))
        for rank, num_bytes in enumerate(inspection.rank_bytes):
            print(f"rank {rank} holds {shown_bytes(num_bytes)} of weights")
    return 0


COMMANDS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "cut": run_cut,
    "verify": run_verify,
    "recut": run_recut,
    "merge": run_merge,
    "inspect": run_inspect,
}


def _cut_folder(name: str) -> Path:
    """The folder of a cut; CheckpointError where there is no folder of this name."""
    folder = Path(name)
    if not folder.is_dir():
        got = "a file" if folder.exists() else "no such folder"
        do = path_meant(name, "give the folder that gyrfalcon cut wrote")
        raise CheckpointError(f"a cut in {name}", got, do)
    return folder


def _text(file: str | None, tokens: int | None) -> CalibrationText | None:
    """What is in the file to calibrate by; tokens of none are refused."""
    if file is not None:
        text = decoded(contents(file), file)
        return CalibrationText(text) if tokens is None else CalibrationText(text, tokens)
    if tokens is not None:
        raise UsageError("--calibrate with --calibrate-tokens", "none", "name a text")
    return None


def _tell(summary: CutSummary, last_line: str, json_target: OutputFile | None) -> int:
    print(f"done in {summary.seconds:.1f} s", file=sys.stderr)
    if json_target is not None:
        write_json(asdict(summary), json_target)
    if not goes_to_stdout(json_target):
        for note in summary.notes:
            print(f"note: {note}")
        rounded = "" if summary.quant == "none" else f", rounded to {summary.quant}"
        files = counted(summary.num_files, "file")
        print(f"{files}, {shown_bytes(summary.num_bytes)}, {summary.dtype}{rounded}")
        if summary.resumed_bytes:
            print(f"{shown_bytes(summary.resumed_bytes)} of it were there from an earlier run")
        print(last_line)
    return 0


def _row_lines(row: TensorRow) -> list[str]:
    title = f"{row.name} {list(row.shape)} {row.dtype}"
    if row.dim is None:
        return [title, f"  every rank  whole  {shown_bytes(row.rank_bytes[0])}"]
    word = ("rows", "columns")[row.dim]
    held = [" + ".join(f"{part.start}:{part.stop}" for part in parts) for parts in row.ranges]
    return [
        title,
        *(
            f"  rank {rank}  {word} {ranges}  {shown_bytes(num_bytes)}"
            for rank, (ranges, num_bytes) in enumerate(zip(held, row.rank_bytes, strict=True))
        ),
    ]


def _plain(inspection: Inspection) -> dict[str, object]:
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
