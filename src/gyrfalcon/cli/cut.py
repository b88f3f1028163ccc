"""`gyrfalcon cut`: Hugging Face folder → cut."""

import argparse
from pathlib import Path

from gyrfalcon.bounds import ONE_TOKEN_OR_MORE
from gyrfalcon.cli.cut_options import SAVED, add_writing, show_written
from gyrfalcon.cli.engine_options import add_adapter, add_dtype, add_quant, add_world_size
from gyrfalcon.cli.option_types import Whole
from gyrfalcon.engine_config import CALIBRATE_TOKENS
from gyrfalcon.errors import UsageError
from gyrfalcon.files.text import contents, decoded
from gyrfalcon.parallel.interrupts import ending_interrupts

SUMMARY = "cut a Hugging Face checkpoint for N ranks"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Cut a Hugging Face checkpoint for N ranks: CUT/tokenizer, CUT/part_model/<rank> and CUT/manifest.json.

    Streams tensor by tensor, so memory does not grow with the model; --calibrate holds one block and
    four times the square of its widest row in fp32 (7b 5 GB, 40b 17 GB). After an interruption, run the same
    command again to resume.

    examples:
      gyrfalcon cut falcon-40b falcon-40b-4 -w 4
      gyrfalcon cut falcon-7b falcon-7b-int4 -w 1 --quant int4 --calibrate novel.txt
    """
    parser.add_argument(
        "source", metavar="HF", help="a Hugging Face folder (.safetensors or .bin) or a hub id"
    )
    parser.add_argument("target", metavar="CUT", help="the folder to write")
    add_world_size(parser, "how many ranks to cut for", required=True)
    add_dtype(parser, "the dtype to store; auto keeps the checkpoint's")
    add_quant(parser, "quantise the matrices before they are stored")
    add_adapter(parser)
    parser.add_argument(
        "--calibrate",
        metavar="FILE",
        help="with int4, int4-32 or int4-128: calibrate on this text to minimise the output error "
        "(GPTQ), on other texts too; takes minutes to hours, on the CPU "
        "(default: no text)",
    )
    parser.add_argument(
        "--calibrate-tokens",
        type=Whole("--calibrate-tokens", ONE_TOKEN_OR_MORE),
        metavar="N",
        help=f"calibrate on this many tokens, spread over the text (default {CALIBRATE_TOKENS})",
    )
    add_writing(parser)
    parser.set_defaults(check=_check)


def run(args: argparse.Namespace) -> int:
    """Cuts; the last line says that it is saved."""
    with ending_interrupts():
        from gyrfalcon.checkpoint.hub import resolve_model
        from gyrfalcon.cut.calibrate import CalibrationText
        from gyrfalcon.cut.cut import cut
        from gyrfalcon.cut.staged_folder import check_target
    check_target(Path(args.target), args.overwrite)
    calibrate = None
    if args.calibrate is not None:
        text = decoded(contents(args.calibrate), args.calibrate)
        calibrate = CalibrationText(text, args.calibrate_tokens or CALIBRATE_TOKENS)
    summary = cut(
        resolve_model(args.source),
        Path(args.target),
        args.world_size,
        dtype=args.dtype,
        quant=args.quant,
        calibrate=calibrate,
        adapter=args.adapter,
        max_shard_bytes=args.max_shard_bytes,
        overwrite=args.overwrite,
    )
    show_written(summary, f"{SAVED}: {summary.target} (world size {summary.world_size})", args.json)
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.calibrate_tokens is not None and args.calibrate is None:
        raise UsageError("--calibrate with --calibrate-tokens", "none", "name a text")
