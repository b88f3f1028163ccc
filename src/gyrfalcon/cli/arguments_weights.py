"""The arguments of the commands on folders of weights: cut, verify, recut, merge, inspect."""

import argparse
from collections.abc import Callable

from gyrfalcon.bounds import ONE_TOKEN_OR_MORE
from gyrfalcon.cli.engine_options import add_adapter, add_dtype, add_quant, add_world_size
from gyrfalcon.cli.option_types import Size, Whole
from gyrfalcon.engine_config import CALIBRATE_TOKENS


def _add_cut(parser: argparse.ArgumentParser) -> None:
    """Cut a Hugging Face checkpoint for N ranks: CUT/tokenizer, CUT/part_model/<rank> and CUT/manifest.json.

    Streams tensor by tensor, so memory does not grow with the model; --calibrate needs one block of it and
    four times the square of its widest row in fp32 (7b 5 GB, 40b 17 GB). Run the same command again after
    an interruption and it goes on where it stopped.

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
    add_quant(
        parser, "quantise the matrices and store them so, as the other commands do when they load"
    )
    add_adapter(parser)
    parser.add_argument(
        "--calibrate",
        metavar="FILE",
        help="with int4, int4-32 or int4-128: calibrate on this text to minimise the output error "
        "(GPTQ), which is closer on other texts, too; takes minutes to hours, on the CPU "
        "(default: no text)",
    )
    parser.add_argument(
        "--calibrate-tokens",
        type=Whole("--calibrate-tokens", ONE_TOKEN_OR_MORE),
        metavar="N",
        help=f"read so many tokens of it, spread over the text (default {CALIBRATE_TOKENS})",
    )
    _add_writing(parser)


def _add_verify(parser: argparse.ArgumentParser) -> None:
    """Check every file of a cut against its manifest: size, checksum, tensor names and shapes.

    Prints each fault; exits 1 when there is one.

    examples:
      gyrfalcon verify falcon-40b-4
    """
    parser.add_argument("cut", metavar="CUT", help="a folder written by gyrfalcon cut")


def _add_recut(parser: argparse.ArgumentParser) -> None:
    """Re-shard a cut for another number of ranks, without the checkpoint it came from.

    examples:
      gyrfalcon recut falcon-40b-4 falcon-40b-2 -w 2
    """
    parser.add_argument("cut", metavar="CUT", help="a folder written by gyrfalcon cut")
    parser.add_argument("target", metavar="NEW", help="the folder to write")
    add_world_size(parser, "how many ranks to cut for", required=True)
    _add_writing(parser)


def _add_merge(parser: argparse.ArgumentParser) -> None:
    """Merge a cut back into a Hugging Face folder, bit for bit.

    examples:
      gyrfalcon merge falcon-40b-4 falcon-40b-again
    """
    parser.add_argument("cut", metavar="CUT", help="a folder written by gyrfalcon cut")
    parser.add_argument("target", metavar="HF", help="the folder to write")
    parser.add_argument(
        "--dequantise",
        action="store_true",
        help="merge a cut that is quantised or in another dtype than its source, too; says what was lost",
    )
    _add_writing(parser)


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    """List which rank holds which tensor, which range of it, and how many bytes that takes.

    examples:
      gyrfalcon inspect falcon-40b -w 4
    """
    parser.add_argument(
        "model", metavar="MODEL", help="a Hugging Face folder, a cut, a hub id or nestling"
    )
    add_world_size(parser, "for so many ranks (default: the cut's own, else 1)")
    add_adapter(parser)


def _add_writing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-shard-size",
        type=Size("--max-shard-size"),
        default=5_000_000_000,
        metavar="SIZE",
        help="no file of weights becomes larger; up to 1000 TB (default 5GB)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what already is in the folder to write"
    )


COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "cut": ("cut a Hugging Face checkpoint for N ranks", _add_cut),
    "verify": ("check every file of a cut", _add_verify),
    "recut": ("re-shard a cut for another number of ranks", _add_recut),
    "merge": ("merge a cut back into a Hugging Face folder", _add_merge),
    "inspect": ("list which rank holds what", _add_inspect),
}
