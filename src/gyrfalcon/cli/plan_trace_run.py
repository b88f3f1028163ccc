"""What `gyrfalcon plan --trace` does once model and hardware are known: simulates, shows and writes."""

import argparse
from dataclasses import asdict, replace

from gyrfalcon.cli.plan_trace import DEFAULT_REQUESTS, poisson_rate
from gyrfalcon.console.format import show_result
from gyrfalcon.console.progress import bar
from gyrfalcon.plan.document import document
from gyrfalcon.plan.estimate import Setting, Split
from gyrfalcon.plan.lengths import default_lengths
from gyrfalcon.plan.router import ROUND_ROBIN
from gyrfalcon.plan.simulate import SimulatedSettings
from gyrfalcon.plan.simulate_figures import SimulatedFigures
from gyrfalcon.plan.simulate_measured import read_measured
from gyrfalcon.plan.simulate_run import WIDTH, Simulation, describe, replica_settings
from gyrfalcon.plan.step_load import StepTimes
from gyrfalcon.plan.table import shown_split, title
from gyrfalcon.plan.trace import PAGE_TOKENS, PoissonTrace, Trace, TraceFile

MS = 1000


def simulate(
    args: argparse.Namespace, setting: Setting, split: Split, max_len: int, ttft: float
) -> int:
    """Simulates the replicas of `split` under the trace, whose requests have at most `max_len` tokens.
    `ttft`: seconds to the first token that goodput allows.
    """
    if args.max_batch_tokens is not None:
        setting = replace(setting, max_batch_tokens=args.max_batch_tokens)
    target = None if args.step_target is None else args.step_target / MS
    pages = args.page_tokens or PAGE_TOKENS
    settings = replica_settings(setting, split.ranks, max_len, target, pages)
    settings.check()
    trace, num_requests = _trace(args, max_len)
    settings, times = _timed(args, setting, split, settings)
    simulation = Simulation(
        settings,
        times,
        num_replicas=split.replicas,
        router=args.router or ROUND_ROBIN,
        limits=_limits(args, ttft),
        warm_up=args.warm_up or 0.0,
    )
    with bar(num_requests, "requests", "simulation") as progress:
        found = simulation.run(trace, progress.update)
    plain = _plain(args, split, simulation, found)
    lines = _lines(args, setting, split, simulation, found)
    show_result(document(setting, args.words, {"simulation": plain}), lines, args.json)
    return 0


def _trace(args: argparse.Namespace, max_len: int) -> tuple[Trace, int]:
    """The requests, and how many they are; a file is checked as a whole."""
    rate = poisson_rate(args.trace)
    if rate is None:
        file = TraceFile(args.trace, args.page_tokens or PAGE_TOKENS)
        return file, file.check(max_len).num_requests
    prompts, outputs = default_lengths(max_len)
    lengths = (args.input_lens or prompts, args.output_lens or outputs)
    count = args.requests or DEFAULT_REQUESTS
    return PoissonTrace(rate, *lengths, count, args.seed or 0, max_len), count


def _timed(
    args: argparse.Namespace, setting: Setting, split: Split, settings: SimulatedSettings
) -> tuple[SimulatedSettings, StepTimes]:
    """How long steps take, and the settings with what a request adds to them."""
    if args.step_times is None:
        return settings, setting.predicted(split.ranks)
    times = read_measured(args.step_times, settings)
    return replace(settings, arrival_seconds=times.arrival_seconds), times


def _limits(args: argparse.Namespace, ttft: float) -> dict[str, float]:
    """Those of goodput, in milliseconds."""
    limits = {"ttft": MS * ttft}
    return limits if args.itl is None else {**limits, "itl": MS * args.itl}


def _plain(
    args: argparse.Namespace, split: Split, simulation: Simulation, found: SimulatedFigures
) -> dict[str, object]:
    settings = simulation.settings
    return {
        "trace": args.trace,
        "ranks": split.ranks,
        "router": simulation.router,
        "step_times": args.step_times,
        "max_len": settings.limits.max_len,
        "num_blocks": settings.num_blocks,
        "step_target": settings.step_target,
        "overlap": settings.overlap,
        "arrival_seconds": settings.arrival_seconds,
        **asdict(found),
    }


def _lines(
    args: argparse.Namespace,
    setting: Setting,
    split: Split,
    simulation: Simulation,
    found: SimulatedFigures,
) -> list[str]:
    router = f", {simulation.router}" if split.replicas > 1 else ""
    head = f"{title(setting)}: {shown_split(split)}{router}; {args.trace}"
    if args.step_times is not None:
        return [describe(head, found), f"{'times from':<{WIDTH}}{args.step_times}"]
    return [describe(head, found), f"{'shares from':<{WIDTH}}{setting.shares.basis}"]
