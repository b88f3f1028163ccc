"""`gyrfalcon load`: puts a server under load and measures its answers."""

import argparse
import re

from gyrfalcon.bounds import SEEDS, Bounds
from gyrfalcon.cli.option_types import Number, Whole, one_of
from gyrfalcon.cli.pictures import check_picture
from gyrfalcon.errors import UsageError
from gyrfalcon.load.goodput import OPTION, parse_limits
from gyrfalcon.load.lengths import LengthsOption
from gyrfalcon.load.plan import CONSTANT, POISSON
from gyrfalcon.load.target import ENDPOINTS, target_of
from gyrfalcon.parallel.interrupts import ending_interrupts

SUMMARY = "put an OpenAI-compatible server under load and measure it"

DEFAULT_RATE = 1.0
DEFAULT_REQUESTS = 100
VARIABLE = r"[A-Za-z_][A-Za-z0-9_]*"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Put an OpenAI-compatible server under load and measure its streamed answers.

    Requests arrive at a given rate whatever becomes of those before them (open loop), and all times count
    from when a request was due. The URL is the server's, with or without /v1. Needs no model and no torch.

    examples:
      gyrfalcon load http://127.0.0.1:8000 --rate 8 --in lognormal:256,128 --out uniform:16-128
      gyrfalcon load http://127.0.0.1:8000 --endpoint chat --concurrency 16 --requests 200
      gyrfalcon load https://host/v1 --rate 2 --duration 60 --goodput ttft:500,itl:50 --json load.json
    """
    parser.add_argument("url", metavar="URL", type=target_of, help="such as http://127.0.0.1:8000")
    _add_arrivals(parser.add_argument_group("when requests are sent"))
    _add_requests(parser.add_argument_group("what is asked"))
    _add_results(parser.add_argument_group("results"))
    parser.set_defaults(check=_check)


def run(args: argparse.Namespace) -> int:
    """Sends the load and shows its figures."""
    with ending_interrupts():
        from gyrfalcon.cli import load_run
    return load_run.run(args)


def _add_arrivals(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--rate",
        metavar="R",
        type=Number("--rate", Bounds(0, 100_000, above=True)),
        help="requests a second, on average (default 1, unless --concurrency or a trace's arrivals say when)",
    )
    group.add_argument(
        "--arrivals",
        metavar=f"{POISSON}|{CONSTANT}",
        type=one_of("--arrivals", POISSON, CONSTANT),
        default=POISSON,
        help="how requests arrive at that rate",
    )
    group.add_argument(
        "--concurrency",
        metavar="N",
        type=Whole("--concurrency", Bounds(1, 100_000)),
        help="instead of a rate: N requests at a time, the next when one ends (default: open loop)",
    )
    group.add_argument(
        "--requests",
        metavar="N",
        type=Whole("--requests", Bounds(1, 10_000_000)),
        help="how many to send (default 100, or the trace's lines; with --duration no limit)",
    )
    group.add_argument(
        "--duration",
        metavar="S",
        type=Number("--duration", Bounds(0, 10_000_000, above=True)),
        help="send for that many seconds, then wait for the answers (default: until --requests are sent)",
    )
    group.add_argument(
        "--timeout",
        metavar="S",
        type=Number("--timeout", Bounds(0, 1_000_000, above=True)),
        default=300.0,
        help="seconds from sending a request to the end of its answer (default 300)",
    )


def _add_requests(group: argparse._ArgumentGroup) -> None:
    for option, name, what in (
        ("--in", "input_lens", "prompt"),
        ("--out", "output_lens", "output"),
    ):
        group.add_argument(
            option,
            dest=name,
            metavar="LENGTHS",
            type=LengthsOption(option),
            help=f"{what} lengths in tokens: 128, uniform:64-256, or lognormal:MEAN,SD (default 128)",
        )
    group.add_argument(
        "--trace",
        metavar="FILE",
        help="take requests from a file of JSON lines with prompt or input_len, and perhaps output_len and "
        "arrival in seconds (default: made-up prompts)",
    )
    group.add_argument(
        "--endpoint",
        metavar="|".join(ENDPOINTS),
        type=one_of("--endpoint", *ENDPOINTS),
        default="completions",
        help="/v1/completions or /v1/chat/completions (default completions)",
    )
    group.add_argument(
        "--model",
        dest="model_name",
        metavar="NAME",
        help="the model to ask for (default: the first that the server lists)",
    )
    group.add_argument(
        "--extra-body",
        metavar="JSON",
        help='fields added to every request, such as {"temperature": 0, "ignore_eos": true}; null removes '
        "one (default: none)",
    )
    group.add_argument(
        "--seed",
        metavar="N",
        type=Whole("--seed", SEEDS),
        default=0,
        help="of arrivals, lengths and prompts (default 0)",
    )
    group.add_argument(
        "--api-key-env",
        metavar="NAME",
        help="environment variable with the key to send (default: no key)",
    )
    group.add_argument(
        "--api-key-file",
        metavar="FILE",
        help="file with the key on its first line (default: no key)",
    )


def _add_results(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        OPTION,
        metavar="NAME:MS,…",
        type=parse_limits,
        default={},
        help="count the requests within limits in milliseconds: ttft (first token), itl (p99 of its "
        "inter-token times), tpot (mean time per token), e2e (end to end) (default: none)",
    )
    group.add_argument(
        "--plot",
        metavar="FILE",
        help="draw the run as .png or .svg; needs matplotlib (default: no plot)",
    )


def _check(args: argparse.Namespace) -> None:
    """No option that another one makes meaningless."""
    contradictions = (
        ("--concurrency", args.concurrency, "--rate", args.rate),
        ("--trace", args.trace, "--in", args.input_lens),
        ("--api-key-env", args.api_key_env, "--api-key-file", args.api_key_file),
    )
    for one, value, other, other_value in contradictions:
        if value is not None and other_value is not None:
            raise UsageError(f"{one} or {other}", "both", "leave one out")
    if args.concurrency is not None and args.arrivals != POISSON:
        raise UsageError("--arrivals with a rate", "--concurrency", "leave one out")
    if args.api_key_env is not None and not re.fullmatch(VARIABLE, args.api_key_env):
        raise UsageError(
            "the name of a variable for --api-key-env",
            "something else",
            "export the key, then name it",
        )
    if args.plot is not None:
        check_picture(args.plot)
