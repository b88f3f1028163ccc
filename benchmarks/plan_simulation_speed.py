"""What a simulation takes: processor time a request, and memory.

    python benchmarks/plan_simulation_speed.py [--requests 20000] [--replicas 1,16,1000] [--in 512]
        [--out 128] [--load 0.8] [--router least-loaded] [--sequences 64] [--json FILE]

Simulates replicas with made-up step times (10 ms, 50 µs a token, 0.1 µs a key) under a Poisson load of
that share of what they can do, each number of replicas in a process of its own, on one core. Memory is
the largest that the process had, before and after.
"""

import argparse
import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from gyrfalcon.engine.scheduler import StepLimits
from gyrfalcon.load.lengths import LengthsOption
from gyrfalcon.measure.result import machine_facts
from gyrfalcon.plan.router import LEAST_LOADED, ROUTERS
from gyrfalcon.plan.simulate import SimulatedSettings
from gyrfalcon.plan.simulate_run import Simulation
from gyrfalcon.plan.step_load import StepLoad
from gyrfalcon.plan.trace import PoissonTrace

MAX_LEN = 2048
PROBE_REQUESTS = 2000


class MadeUp:
    """Step times of an imagined machine (a StepTimes)."""

    def seconds(self, load: StepLoad) -> float:
        tokens = load.prompt_tokens + load.decoding
        return 0.01 + 5e-5 * tokens + 1e-7 * load.context_tokens


@dataclass(frozen=True, slots=True)
class Row:
    """One number of replicas."""

    replicas: int
    requests: int
    ms_per_request: float  # of processor time
    memory_before_mb: float
    memory_mb: float
    busy_share: float
    simulated_seconds: float


def measure(args: argparse.Namespace, num_replicas: int) -> Row:
    """Simulates once."""
    simulation = Simulation(_settings(args), MadeUp(), num_replicas, args.router)
    rate = args.load * num_replicas * capacity(args)
    trace = PoissonTrace(rate, args.input_lens, args.output_lens, args.requests, seed=1)
    before, start = _memory_mb(), time.process_time()
    found = simulation.run(trace)
    seconds = time.process_time() - start
    ms = 1000 * seconds / args.requests
    busy = found.replicas.busy_share
    return Row(num_replicas, args.requests, ms, before, _memory_mb(), busy, found.seconds)


def capacity(args: argparse.Namespace) -> float:
    """Requests a second that one replica ends when all arrive at once."""
    trace = PoissonTrace(1e6, args.input_lens, args.output_lens, PROBE_REQUESTS, seed=0)
    return Simulation(_settings(args), MadeUp()).run(trace).finished_per_second


def _settings(args: argparse.Namespace) -> SimulatedSettings:
    limits = StepLimits(MAX_LEN, args.batch_tokens, args.sequences)
    return SimulatedSettings(limits, num_blocks=args.sequences * MAX_LEN // 16, overlap=True)


def _memory_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def settings_of(args: argparse.Namespace) -> dict[str, object]:
    """What was simulated."""
    names = ("load", "router", "sequences", "batch_tokens")
    lengths = {"in": str(args.input_lens), "out": str(args.output_lens)}
    return {**lengths, **{name: getattr(args, name) for name in names}}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--replicas", default="1,16,1000", help="numbers of them")
    parser.add_argument("--in", dest="input_lens", type=LengthsOption("--in"), default="512")
    parser.add_argument("--out", dest="output_lens", type=LengthsOption("--out"), default="128")
    parser.add_argument("--load", type=float, default=0.8, help="share of what replicas can do")
    parser.add_argument("--router", choices=ROUTERS, default=LEAST_LOADED)
    parser.add_argument("--sequences", type=int, default=64, help="that run at once on a replica")
    parser.add_argument("--batch-tokens", type=int, default=512, help="of a step")
    parser.add_argument("--json", type=Path)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints each number of replicas."""
    args = parse(argv)
    rows = []
    for number in map(int, args.replicas.split(",")):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            row = pool.apply(measure, (args, number))
        rows.append(row)
        print(
            f"{row.replicas:6} replicas, {row.requests:,} requests: {row.ms_per_request:.3f} ms each,"
            f" memory {row.memory_before_mb:.0f} → {row.memory_mb:.0f} MB, busy {row.busy_share:.0%}"
        )
    if args.json is not None:
        document = {
            "benchmark": "plan_simulation_speed",
            "machine": machine_facts(),
            "settings": settings_of(args),
            "rows": [asdict(row) for row in rows],
        }
        args.json.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
