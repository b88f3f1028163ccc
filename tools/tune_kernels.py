"""Measures which tile is the fastest for each weight matrix of the family, on the card that is here.

    PYTHONPATH=src python tools/tune_kernels.py [--shapes 40b,7b] [--kinds none,int8,fp8,int4] [--seconds 240]

Writes the winners to src/gyrfalcon/ops/triton/table.json under the card's name; other cards keep theirs.
A tile has to be 2 % faster than the one in use to take its place. Stops in time; what was measured by
then is written.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path

import torch

from gyrfalcon.device.lookup import device_of
from gyrfalcon.ops.triton import linear as triton_linear
from gyrfalcon.ops.triton.linear import LinearConfig
from gyrfalcon.quant import GROUPS, Quantised, Weight, quantise

LEAST_GAIN = 0.02
# [outputs, inputs] of the matrices of a block, whole and on one of four ranks.
SHAPES: dict[str, list[tuple[int, int]]] = {
    "40b": [(9216, 8192), (8192, 8192), (32768, 8192), (8192, 32768), (65024, 8192)],
    "7b": [(4672, 4544), (4544, 4544), (18176, 4544), (4544, 18176), (65024, 4544)],
}
# More rows share what is read of x; more steps under way hide the memory's latency; fewer warps leave
# room for more programs.
WIDER = (
    (64, 128, 4, 4, 3),
    (64, 128, 4, 6, 2),
    (128, 128, 4, 3, 3),
    (128, 128, 4, 4, 3),
    (128, 128, 8, 4, 2),
    (128, 64, 4, 5, 3),
    (32, 128, 2, 5, 4),
    (64, 64, 4, 6, 4),
)
FOUR_BITS = (
    (128, 128, 4, 3, 4),
    (128, 128, 4, 4, 3),
    (128, 128, 4, 5, 4),
    (128, 128, 8, 4, 2),
    (64, 128, 4, 4, 4),
    (64, 128, 4, 6, 4),
    (64, 128, 2, 5, 4),
    (256, 128, 8, 4, 2),
)
CACHES = 4  # times the L2 cache: matrices in turn that are together larger are read from memory
Clock = Callable[[Weight, LinearConfig], float]  # seconds of one linear


def candidates(kind: str) -> Iterator[LinearConfig]:
    """Tiles worth trying for up to 16 tokens: (outputs, inputs, warps, stages, programs)."""
    for outputs, inputs, warps, stages, programs in FOUR_BITS if kind in GROUPS else WIDER:
        yield LinearConfig(16, outputs, inputs, warps, stages, programs)


def fastest(
    weight: Weight, kind: str, usual: LinearConfig, clock: Clock, until: float
) -> LinearConfig:
    """The fastest candidate, or `usual` where none gains enough."""
    best, best_seconds = usual, clock(weight, usual) * (1 - LEAST_GAIN)
    for config in candidates(kind):
        if time.monotonic() > until:
            break
        try:
            seconds = clock(weight, config)
        except Exception as error:  # a tile that does not fit the card
            print(f"{config}: {type(error).__name__}", file=sys.stderr)
            continue
        if seconds < best_seconds:
            best, best_seconds = config, seconds
    return best


def num_copies(weight_bytes: int, cache_bytes: int) -> int:
    """How many copies of a matrix, read in turn, are never found in the cache."""
    return -(-CACHES * cache_bytes // weight_bytes) + 1


def copies_of(weight: Weight, num: int) -> list[Weight]:
    """The matrix, and others like it elsewhere in memory."""
    if isinstance(weight, Quantised):
        data = [weight.data.clone() for _ in range(num - 1)]
        return [weight, *(replace(weight, data=each) for each in data)]
    return [weight, *(weight.clone() for _ in range(num - 1))]


def clock_on(device: torch.device, tokens: int) -> Clock:
    """Times a linear as a graph runs it: copies of the matrix in turn, the median of rounds."""
    card = device_of(device)
    cache_bytes = torch.cuda.get_device_properties(device).L2_cache_size

    @lru_cache(maxsize=1)  # of a matrix, while its tiles are tried
    def copies(weight: Weight) -> list[Weight]:
        size = weight.nbytes if isinstance(weight, torch.Tensor) else weight.num_bytes
        return copies_of(weight, num_copies(size, cache_bytes))

    def seconds(weight: Weight, config: LinearConfig) -> float:
        x = torch.randn(tokens, weight.shape[1], dtype=torch.bfloat16, device=device)
        each = copies(weight)

        def work() -> torch.Tensor:
            return [triton_linear.linear(x, one, config=config) for one in each][-1]

        replay = card.capture(work)
        replay()
        return statistics.median(card.seconds_of(replay) for _ in range(5)) / len(each)

    return seconds


def compile_tiles(weights: Mapping[tuple[str, tuple[int, int]], Weight], tokens: int) -> None:
    """Runs every tile once on every matrix, on as many threads as there are cores: no compiling is left for
    the clock.
    """

    def compile_one(case: tuple[str, Weight, LinearConfig]) -> None:
        _, weight, config = case
        device = weight.device if isinstance(weight, torch.Tensor) else weight.data.device
        x = torch.randn(tokens, weight.shape[1], dtype=torch.bfloat16, device=device)
        with contextlib.suppress(
            Exception
        ):  # a tile that does not fit the card is told by its clock
            triton_linear.linear(x, weight, config=config)

    cases = [
        (kind, weight, config)
        for (kind, _), weight in weights.items()
        for config in candidates(kind)
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, cases))


def write(table: Path, card: str, found: dict[str, LinearConfig]) -> None:
    """Writes the findings into the table; other entries stay."""
    known = json.loads(table.read_text("utf-8")) if table.exists() else {}
    of_card = known.setdefault(card, {})
    of_card.update({name: asdict(config) for name, config in found.items()})
    known[card] = dict(sorted(of_card.items()))
    table.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n", "utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--kinds", default="none,int8,fp8,int4")
    parser.add_argument("--tokens", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=240.0)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("tune_kernels: error: wanted a CUDA device, got none", file=sys.stderr)
        return 2
    device = torch.device("cuda", 0)
    clock, card, start = clock_on(device, args.tokens), device_of(device).model, time.monotonic()
    work = [
        (kind, shape)
        for kind in args.kinds.split(",")
        for name in args.shapes.split(",")
        for shape in SHAPES[name]
    ]
    compile_tiles({each: drawn(*each, device) for each in work}, args.tokens)
    compiled = time.monotonic()
    print(f"compiled in {compiled - start:.0f} s", file=sys.stderr)
    left = args.seconds - (compiled - start)
    for number, (kind, shape) in enumerate(work, 1):
        weight = drawn(kind, shape, device)
        usual = triton_linear.config_for(args.tokens, kind, torch.bfloat16, shape, card)
        until = compiled + left * number / len(work)  # each matrix has its share of the time
        best = fastest(weight, kind, usual, clock, until)
        write(triton_linear.TABLE, card, {triton_linear.key(kind, shape): best})
        seconds = clock(weight, best)
        size = weight.nbytes if isinstance(weight, torch.Tensor) else weight.num_bytes
        print(f"{kind} {shape}: {best}, {1e6 * seconds:.1f} us, {size / seconds / 1e12:.2f} TB/s")
    return 0


def drawn(kind: str, shape: tuple[int, int], device: torch.device) -> Weight:
    """A random matrix as the kernels read it."""
    matrix = torch.randn(shape, dtype=torch.bfloat16, device=device)
    return matrix if kind == "none" else quantise(matrix, kind).as_words()


if __name__ == "__main__":
    sys.exit(main())
