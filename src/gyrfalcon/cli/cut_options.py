"""What the commands that read or write a cut share: its argument, the options for what is written, and how
the result is shown.
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from gyrfalcon.cli.option_types import Size
from gyrfalcon.console.format import counted, note_line, show_result, shown_bytes
from gyrfalcon.console.suggestion import path_meant
from gyrfalcon.errors import CheckpointError
from gyrfalcon.files.output import OutputFile

if TYPE_CHECKING:
    from gyrfalcon.cut.folder_writer import CutSummary

SAVED = "save succcessfully"  # spelt as scripts around the guide look for it


def add_cut(parser: argparse.ArgumentParser) -> None:
    """The argument CUT."""
    parser.add_argument("cut", metavar="CUT", help="a folder written by gyrfalcon cut")


def add_writing(parser: argparse.ArgumentParser) -> None:
    """--max-shard-size and --overwrite."""
    parser.add_argument(
        "--max-shard-size",
        dest="max_shard_bytes",
        type=Size("--max-shard-size"),
        default=5_000_000_000,
        metavar="SIZE",
        help="the largest a file of weights may be; up to 1000 TB (default 5GB)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what the folder to write already holds"
    )


def cut_folder(name: str) -> Path:
    """The folder of a cut; CheckpointError where there is no folder of this name."""
    folder = Path(name)
    if not folder.is_dir():
        got = "a file" if folder.exists() else "no such folder"
        do = path_meant(name, "give the folder that gyrfalcon cut wrote")
        raise CheckpointError(f"a cut in {name}", got, do)
    return folder


def show_written(summary: "CutSummary", last_line: str, json: OutputFile | None) -> None:
    """The summary of a folder that was written, which ends with `last_line`."""
    print(f"done in {summary.seconds:.1f} s", file=sys.stderr)
    lines = [note_line(note) for note in summary.notes]
    quantised = "" if summary.quant == "none" else f", quantised to {summary.quant}"
    files = counted(summary.num_files, "file")
    lines.append(f"{files}, {shown_bytes(summary.num_bytes)}, {summary.dtype}{quantised}")
    if summary.resumed_bytes:
        lines.append(f"{shown_bytes(summary.resumed_bytes)} of it were there from an earlier run")
    show_result(asdict(summary), [*lines, last_line], json)
