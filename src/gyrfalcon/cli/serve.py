"""`gyrfalcon serve`: an OpenAI-compatible server."""

import argparse
import importlib.util
import re

from gyrfalcon.bounds import ENGINE, Bounds
from gyrfalcon.cli.engine_options import add_engine, add_model, add_speculation
from gyrfalcon.cli.option_types import Number, Whole, one_of
from gyrfalcon.errors import PIP_INSTALL, UsageError
from gyrfalcon.parallel.interrupts import ending_interrupts
from gyrfalcon.serve.queue import MOST_REQUESTS, MOST_TOKENS

SUMMARY = "answer OpenAI's API over HTTP"

STEP_TARGET_MS = Bounds(0, 3_600_000, above=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Answer OpenAI's API over HTTP, many requests at once: completions, chat, models, tokenizer, metrics.

    An address other than this machine's own needs an API key, in GYRFALCON_API_KEY or --api-key-file.
    SIGTERM and Ctrl-C let what is being answered finish.

    examples:
      gyrfalcon serve nestling
      gyrfalcon serve falcon-40b-4 --host 0.0.0.0 --api-key-file keys.txt
      torchrun --nproc-per-node 4 -m gyrfalcon serve falcon-40b-4
    """
    add_model(parser)
    _add_address(parser.add_argument_group("where it listens, and to whom"))
    _add_requests(parser.add_argument_group("which requests it takes"))
    add_engine(parser)
    parser.set_defaults(check=_check, has_result=False)


def run(args: argparse.Namespace) -> int:
    """Serves until SIGTERM or Ctrl-C."""
    with ending_interrupts():
        from gyrfalcon.cli import serve_run
    return serve_run.run(args)


def _add_address(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--host", metavar="HOST", default="127.0.0.1", help="the address")
    group.add_argument(
        "--port",
        metavar="N",
        type=Whole("--port", Bounds(0, 65535, shown_as="0 to 65535")),
        default=8000,
        help="the port; 0 takes a free one",
    )
    group.add_argument(
        "--api-key",
        metavar="KEY",
        help="a key that requests must have, for trials: other users see it in the list of processes "
        "(default: none, or GYRFALCON_API_KEY)",
    )
    group.add_argument(
        "--api-key-file", metavar="FILE", help="a file of keys, one a line (default: no file)"
    )
    group.add_argument(
        "--allowed-host",
        metavar="NAME",
        dest="allowed_hosts",
        action="append",
        help="a Host header that is served; may be given several times (default: on loopback its own names, "
        "elsewhere any)",
    )
    group.add_argument(
        "--allow-origin",
        metavar="ORIGIN",
        dest="allowed_origins",
        action="append",
        type=_origin,
        help="a web page's origin, such as https://chat.example, whose scripts may ask; * is every one; may "
        "be given several times (default: none)",
    )
    group.add_argument(
        "--public-metrics", action="store_true", help="show /metrics without a key, too"
    )
    group.add_argument(
        "--shutdown-timeout",
        metavar="SECONDS",
        type=Number("--shutdown-timeout", Bounds(0, 86_400)),
        default=30.0,
        help="how long what is being answered may take to finish after SIGTERM",
    )


def _add_requests(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--served-model-name",
        metavar="NAME",
        dest="served_model_names",
        action="append",
        help="what requests call the model; may be given several times (default: its hub id, else its "
        "folder's name)",
    )
    group.add_argument(
        "--unknown-options",
        type=one_of("--unknown-options", "refuse", "ignore"),
        metavar="refuse|ignore",
        default="refuse",
        help="what happens to a request with options that no one knows; ignore names them in a header",
    )
    group.add_argument(
        "--max-queued-requests",
        metavar="N",
        type=Whole("--max-queued-requests", ENGINE["max_queued_requests"]),
        default=MOST_REQUESTS,
        help="requests that may wait for their first token, one of n samples counted n times; what comes "
        f"beyond gets 429 (default: {MOST_REQUESTS})",
    )
    group.add_argument(
        "--max-queued-tokens",
        metavar="N",
        type=Whole("--max-queued-tokens", ENGINE["max_queued_tokens"]),
        default=MOST_TOKENS,
        help=f"the same for the tokens of their prompts (default: {MOST_TOKENS})",
    )
    group.add_argument(
        "--max-sequences",
        metavar="N",
        type=Whole("--max-sequences", ENGINE["max_sequences"]),
        default=64,
        help="sequences that run at once, one of n samples counted n times; further ones wait",
    )
    group.add_argument(
        "--max-batch-tokens",
        metavar="N",
        type=Whole("--max-batch-tokens", ENGINE["max_batch_tokens"]),
        help="tokens of a step; longer prompts are prefilled in chunks (default: 192 on a CPU, else 512)",
    )
    group.add_argument(
        "--step-target",
        metavar="MS",
        type=Number("--step-target", STEP_TARGET_MS),
        help="milliseconds that a step may take: prompts are prefilled in smaller chunks, so that streams "
        "keep their pace beside them (default: as many prompt tokens as fit into a step)",
    )
    add_speculation(group)


def _origin(text: str) -> str:
    """An origin as browsers send it."""
    if text != "*" and not re.fullmatch(r"https?://[^/\s]+", text):
        do = "write it without a path, such as https://chat.example"
        raise UsageError("an origin for --allow-origin", repr(text), do)
    return text.lower()


def _check(args: argparse.Namespace) -> None:
    if args.json is not None:
        raise UsageError("serve without --json: it has no result", "--json", "leave it out")
    needed = ("starlette", "uvicorn", "prometheus_client", "llguidance")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        do = f"{PIP_INSTALL} {' '.join(missing)}"
        raise UsageError("what serves HTTP (the extra serve)", f"no {missing[0]}", do)
