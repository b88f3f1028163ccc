"""Measures which tile is the fastest for each weight matrix of the family, on the card that is here.

    PYTHONPATH=src python tools/tune_kernels.py [--shapes 40b,7b] [--kinds none,int8,fp8,int4] [--seconds 240]

Writes the winners to src/gyrfalcon/ops/triton/table.json under the card's name; other cards keep theirs.
A tile has to be 2 % faster than the one in use to take its place. Stops in time; what was measured by
then is written.
"""

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from gyrfalcon.device.lookup import device_of
from gyrfalcon.ops.triton import linear as triton_linear
from gyrfalcon.ops.triton.linear import LinearConfig
from gyrfalcon.quant import GROUPS, TILE_COLUMNS, Weight, quantise

LEAST_GAIN = 0.02
# [outputs, inputs] of the matrices of a block, whole and on one of four ranks.
SHAPES: dict[str, list[tuple[int, int]]] = {
    "40b": [(9216, 8192), (8192, 8192), (32768, 8192), (8192, 32768), (65024, 8192)],
    "7b": [(4672, 4544), (4544, 4544), (18176, 4544), (4544, 18176), (65024, 4544)],
}
Clock = Callable[[Weight, LinearConfig], float]  # seconds of one product


def candidates(kind: str) -> Iterator[LinearConfig]:
    """Tiles worth trying for up to 16 tokens."""
    inputs = (2 * TILE_COLUMNS, 4 * TILE_COLUMNS) if kind in GROUPS else (64, 128, 256)
    tiles = itertools.product((32, 64, 128), inputs, (2, 4, 8), (3, 4, 5, 6), (1, 2, 3, 4))
    for outputs, width, warps, stages, programs in tiles:
        if outputs * width * stages <= 128 * 1024:  # bytes under way, of 8-bit weights
            yield LinearConfig(16, outputs, width, warps, stages, programs)


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


def clock_on(device: torch.device, tokens: int) -> Clock:
    """Times a linear as a graph runs it: many in a row, the median of rounds."""

    def seconds(weight: Weight, config: LinearConfig) -> float:
        x = torch.randn(tokens, weight.shape[1], dtype=torch.bfloat16, device=device)
        replay = device_of(device).capture(lambda: triton_linear.linear(x, weight, config=config))
        replay()
        rounds = []
        for _ in range(5):
            device_of(device).synchronise()
            start = time.perf_counter()
            for _ in range(10):
                replay()
            device_of(device).synchronise()
            rounds.append((time.perf_counter() - start) / 10)
        return statistics.median(rounds)

    return seconds


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
    for number, (kind, shape) in enumerate(work, 1):
        drawn = torch.randn(shape, dtype=torch.bfloat16, device=device)
        weight: Weight = drawn if kind == "none" else quantise(drawn, kind).by_rows()
        usual = triton_linear.config_for(args.tokens, kind, torch.bfloat16, shape, card)
        until = start + args.seconds * number / len(work)  # each matrix has its share of the time
        best = fastest(weight, kind, usual, clock, until)
        write(triton_linear.TABLE, card, {triton_linear.key(kind, shape): best})
        seconds = clock(weight, best)
        size = weight.nbytes if isinstance(weight, torch.Tensor) else weight.num_bytes
        print(f"{kind} {shape}: {best}, {1e6 * seconds:.1f} us, {size / seconds / 1e12:.2f} TB/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
