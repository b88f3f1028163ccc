"""The options of `gyrfalcon plan --trace`: what load is simulated, on how many replicas."""

import argparse
import re

from gyrfalcon.bounds import ENGINE, SEEDS, Bounds, shown
from gyrfalcon.cli.option_types import Number, Whole, one_of
from gyrfalcon.errors import UsageError
from gyrfalcon.plan.router import ROUND_ROBIN, ROUTERS
from gyrfalcon.plan.trace import PAGE_TOKENS

POISSON = "poisson:"
RATES = Bounds(0, 1_000_000, above=True)  # a second
SECONDS = Bounds(0, 1_000_000, above=True)
STEP_TARGET_MS = Bounds(0, 3_600_000, above=True)
DEFAULT_REQUESTS = 1000
OF_RANDOM = {
    "input_lens": "--in",
    "output_lens": "--out",
    "requests": "--requests",
    "seed": "--seed",
}
OF_FILE = {"page_tokens": "--page-tokens"}
OF_ANY = {
    "replicas": "--replicas",
    "router": "--router",
    "max_batch_tokens": "--max-batch-tokens",
    "step_target": "--step-target",
    "step_times": "--step-times",
    "itl": "--itl",
    "warm_up": "--warm-up",
}
OF_OTHERS = {
    "target": "--target",
    "batch": "--batch",
    "price": "--price",
    "think": "--think",
    "rate": "--rate",
    "spare": "--spare",
    "verify": "--verify",
    "plot": "--plot",
}


def add_trace(group: argparse._ArgumentGroup) -> None:
    """All these options; --in, --out and --ttft are a target's, too."""
    group.add_argument(
        "--trace",
        metavar=f"FILE|{POISSON}RATE",
        help="simulate the scheduler under the requests of a file of JSON lines (arrival_s, prompt_tokens, "
        "output_tokens, and maybe prefix_ids, priority, deadline), or under that many random arrivals a "
        "second; takes --in, --out, --ttft, -w and --context, too (default: no simulation)",
    )
    group.add_argument(
        "--requests",
        metavar="N",
        type=Whole("--requests", Bounds(1, 100_000_000)),
        help=f"random arrivals to simulate (default {DEFAULT_REQUESTS})",
    )
    group.add_argument(
        "--seed",
        metavar="N",
        type=Whole("--seed", SEEDS),
        help="of random arrivals and lengths (default 0)",
    )
    group.add_argument(
        "--page-tokens",
        metavar="N",
        type=Whole("--page-tokens", ENGINE["block_size"]),
        help=f"tokens that one of a trace's prefix_ids stands for (default {PAGE_TOKENS})",
    )
    group.add_argument(
        "--itl",
        metavar="S",
        type=Number("--itl", SECONDS),
        help="seconds between tokens, in 99 %% of a request's: one that keeps this and --ttft counts as "
        "goodput (default: --ttft alone)",
    )
    group.add_argument(
        "--warm-up",
        metavar="S",
        type=Number("--warm-up", Bounds(0, 1_000_000_000)),
        help="leave requests that arrive in the first S seconds, and what replicas do then, out of the "
        "figures (default 0)",
    )
    _add_replicas(group)


def _add_replicas(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--replicas",
        metavar="N",
        type=Whole("--replicas", Bounds(1, 100_000)),
        help="engines behind a router (default: as many as the cards of --hardware are enough for, else 1)",
    )
    group.add_argument(
        "--router",
        metavar="|".join(ROUTERS),
        type=one_of("--router", *ROUTERS),
        help="who gets a request: each in turn, the one with the fewest, or the one that is likely to hold "
        f"most of the prompt in its cache (default {ROUND_ROBIN})",
    )
    group.add_argument(
        "--max-batch-tokens",
        metavar="N",
        type=Whole("--max-batch-tokens", ENGINE["max_batch_tokens"]),
        help="tokens computed in one step (default: the engine's)",
    )
    group.add_argument(
        "--step-target",
        metavar="MS",
        type=Number("--step-target", STEP_TARGET_MS),
        help="milliseconds that a step may take, as in serve (default: as many prompt tokens as fit)",
    )
    group.add_argument(
        "--step-times",
        metavar="FILE",
        help="step times fitted to measured ones: a result of gyrfalcon speed, or what "
        "benchmarks/plan_simulation.py --steps wrote (default: predicted)",
    )


def poisson_rate(trace: str) -> float | None:
    """Arrivals a second of `poisson:RATE`; None for a file. UsageError for another rate."""
    if not trace.startswith(POISSON):
        return None
    text = trace.removeprefix(POISSON)
    rate = float(text) if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text, re.ASCII) else 0.0
    if rate not in RATES:
        wanted = f"arrivals a second {RATES.words} for --trace {POISSON}RATE"
        raise UsageError(wanted, shown(text), "write it as in poisson:2.5")
    return rate


def check_trace(args: argparse.Namespace) -> None:
    """No option of a simulation without one, and none that a simulation has no use for."""
    if args.trace is None:
        own = {**OF_ANY, **OF_FILE, "requests": "--requests", "seed": "--seed"}
        _refuse(args, own, "--trace with", "none")
        return
    is_random = poisson_rate(args.trace) is not None
    _refuse(args, OF_OTHERS, "--trace without", "both")
    if is_random:
        _refuse(args, OF_FILE, "--trace FILE with", args.trace)
    else:
        _refuse(args, OF_RANDOM, f"--trace {POISSON}RATE with", args.trace)


def _refuse(args: argparse.Namespace, flags: dict[str, str], wanted: str, got: str) -> None:
    for name, flag in flags.items():
        if getattr(args, name) is not None:
            raise UsageError(f"{wanted} {flag}", got, f"leave {flag} out")
