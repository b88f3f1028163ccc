"""`gyrfalcon plan`: how many cards a model needs, and how fast it will be."""

import argparse

from gyrfalcon.bounds import ENGINE, ONE_TOKEN_OR_MORE, Bounds
from gyrfalcon.cli.engine_options import add_dtype, add_quant, add_world_size
from gyrfalcon.cli.option_types import Number, Whole
from gyrfalcon.cli.pictures import check_picture
from gyrfalcon.cli.plan_trace import add_trace, check_trace
from gyrfalcon.errors import UsageError
from gyrfalcon.load.lengths import LengthsOption
from gyrfalcon.parallel.interrupts import ending_interrupts
from gyrfalcon.plan.target import target_of

SUMMARY = "predict memory and speed of a model on some hardware, and how many cards a target needs"

DEFAULT_TTFT = 2.0
POSITIVE = Bounds(0, 1_000_000, above=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Predict what a model takes and how fast it is on some hardware, without weights or the hardware. With
    --target: how many cards, in how many ranks and replicas, and what the runner-up lacks; --verify has both
    simulated. With --trace: what users see under a load, by the engine's own scheduler on a simulated clock
    (docs/simulation.md).

    MODEL is a published model (falcon-40b, tiiuae/falcon-7b-instruct), a config.json, a folder, a cut or
    nestling. Times come from bytes, operations, launches, collectives and the host's share, and from the
    shares of the peaks that were measured (docs/performance-model.md). gyrfalcon shares a model among ranks
    (tensor parallel) and runs replicas side by side; it has no pipeline stages, so none are planned.

    examples:
      gyrfalcon plan falcon-40b --hardware 910b3x4 --context 2048 --batch 8
      gyrfalcon plan falcon-180b --hardware h100x8 --quant int8 --json plan.json
      gyrfalcon plan falcon-40b --hardware h200 --target "40 tok/s, 2k context, 500 users" --spare 1
      gyrfalcon plan falcon-7b --hardware a100 --target "30 tok/s, 2k context, 200 users" --verify
      gyrfalcon plan nestling --hardware this --batch 16
      gyrfalcon plan falcon-7b --hardware h100x8 -w 1 --trace poisson:40 --router least-loaded
    """
    parser.add_argument(
        "model", metavar="MODEL", help="a published model, a config.json or a folder"
    )
    parser.add_argument(
        "--hardware",
        required=True,
        metavar="NAME[xN]|this|FILE",
        help="910b3, a100, h100, h200, mi300x, a10g or rtx4090, as h200x8 with a number of cards: all there "
        "are, or beside --target those of one machine; this: the machine at hand, measured; a file in the "
        "table's format, or the JSON of gyrfalcon speed",
    )
    add_dtype(parser, "the dtype to compute in; auto is the checkpoint's, bf16 where it says none")
    add_quant(parser, "quantise the matrices")
    parser.add_argument(
        "--max-sequences",
        type=Whole("--max-sequences", ENGINE["max_sequences"]),
        default=64,
        metavar="N",
        help="sequences that a replica runs at once (EngineConfig.max_sequences)",
    )
    parser.add_argument(
        "--plot",
        metavar="FILE",
        help="draw memory and times as .png or .svg; needs matplotlib (default: no plot)",
    )
    parser.add_argument(
        "--price",
        type=Number("--price", POSITIVE),
        metavar="P",
        help="what a card costs in an hour, for the cost of a million tokens (default: the file's, if any)",
    )
    _add_estimate(parser.add_argument_group("one split"))
    _add_target(parser.add_argument_group("a target"))
    add_trace(parser.add_argument_group("a simulated load"))


def run(args: argparse.Namespace) -> int:
    """Prints the plan; 1 when the batch does not fit."""
    _check(args)
    with ending_interrupts():
        from gyrfalcon.cli import plan_run
    return plan_run.run(args)


def _add_estimate(group: argparse._ArgumentGroup) -> None:
    add_world_size(group, "ranks that share the model (default: all cards of --hardware, else 1)")
    group.add_argument(
        "--context",
        type=Whole("--context", ONE_TOKEN_OR_MORE),
        metavar="N",
        help="tokens of each sequence (default: the model's positions, at most 2048)",
    )
    group.add_argument(
        "--batch",
        type=Whole("--batch", ENGINE["max_sequences"]),
        metavar="N",
        help="sequences that a replica decodes at once, at most --max-sequences (default 1)",
    )


def _add_target(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--target",
        type=target_of,
        metavar="TEXT",
        help='a speed that each user gets, the longest context, and users: "40 tok/s, 2k context, 500 users" '
        "(default: no target)",
    )
    group.add_argument(
        "--ttft",
        type=Number("--ttft", POSITIVE),
        metavar="S",
        help="seconds to the first token, in 90 %% of the requests (default 2)",
    )
    group.add_argument(
        "--think",
        type=Number("--think", POSITIVE),
        metavar="S",
        help="seconds between an answer and the user's next request (default: none, all users decode)",
    )
    group.add_argument(
        "--rate",
        type=Number("--rate", POSITIVE),
        metavar="R",
        help="requests a second, instead of users (default: users)",
    )
    group.add_argument(
        "--spare",
        type=Whole("--spare", Bounds(0, 1000)),
        metavar="N",
        help="replicas beyond those that are needed (default 0)",
    )
    group.add_argument(
        "--verify",
        action="store_true",
        default=None,
        help="simulate the answer and the runner-up on the engine's own scheduler, with fewer streams a "
        "replica where they miss the target, which may overturn the answer; exits with 1 where none holds",
    )
    for option, name, what in (
        ("--in", "input_lens", "prompt lengths: 128, uniform:64-256, or lognormal:MEAN,SD"),
        ("--out", "output_lens", "output lengths, likewise"),
    ):
        default = ("uniform, 1/4 to 3/4", "uniform, 1/8 to 1/4")[name == "output_lens"]
        group.add_argument(
            option,
            dest=name,
            metavar="LENGTHS",
            type=LengthsOption(option),
            help=f"{what} (default: {default} of the context)",
        )


def _check(args: argparse.Namespace) -> None:
    """No option that another one makes meaningless, and a plot that can be drawn."""
    check_trace(args)
    if args.trace is not None:
        return
    if args.batch is not None and args.batch > args.max_sequences:
        wanted = f"--batch of at most --max-sequences, {args.max_sequences}"
        raise UsageError(wanted, str(args.batch), "raise --max-sequences, or lower --batch")
    if args.plot is not None:
        check_picture(args.plot)
    of_target = ("ttft", "think", "rate", "spare", "verify", "input_lens", "output_lens")
    of_split = ("world_size", "context", "batch")
    options = {"input_lens": "--in", "output_lens": "--out", "world_size": "-w"}
    for name in of_split if args.target is not None else of_target:
        if getattr(args, name) is not None:
            option = options.get(name, f"--{name}")
            if args.target is None:
                raise UsageError(
                    f"--target with {option}", "none", f"add it, or leave {option} out"
                )
            raise UsageError(f"--target or {option}", "both", "leave one out")
    if args.target is None:
        return
    if args.rate is not None and (args.target.users is not None or args.think is not None):
        raise UsageError("--rate, or users and --think", "both", "leave one out")
    if args.rate is None and args.target.users is None:
        do = 'add "500 users" to the target, or --rate'
        raise UsageError("users in --target, or --rate", "none", do)
