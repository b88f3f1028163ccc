"""Times single matrix products of the native CPU kernels beside what the processor can do, measured in turn.

    python benchmarks/cpu_products.py [--sets amx,avx512,avx2] [--precisions bf16,int8]
        [--activations int16] [--json FILE]

The four shapes of model A of benchmarks/cpu_peers.py and of falcon-7b, each with 1 to 512 tokens. Every call
packs its input and reads other weights: copies in turn, together many times the caches. Before each
repeat the memory bandwidth is measured and the multiply-adds of every instruction in registers. A row has the
shortest time of all repeats; "of bound" is that time over the longer of two: bytes of weights by the
largest measured bandwidth, and multiply-adds by the largest measured peak of the instruction that the
kernel uses. "of peak" is the share of that peak, "of float" that of fp32 multiply-adds. int8 weights are
multiplied with activations of 8 or 16 bits, by themselves with the faster ones. With one thread all times
are its processor time.

With --json rows are added to those that the file has already, of other sets or precisions.
"""

import argparse
import ctypes
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from cpu_probe import Clock, Probe, clock_for, save_rows
from torch import Tensor

from gyrfalcon.native.library import KINDS, Matrix, Output, Term, available, library

SHAPES = {  # rows and columns of the block's four matrices
    "A": {"qkv": (2560, 2048), "up": (8192, 2048), "dense": (2048, 2048), "down": (2048, 8192)},
    "7b": {"qkv": (4672, 4544), "up": (18176, 4544), "dense": (4544, 4544), "down": (4544, 18176)},
}
TOKENS = (1, 2, 4, 8, 16, 256, 512)
INT8, INT4 = 3, 4  # gf_kind
WEIGHT_KINDS = {"fp32": 0, "bf16": 1, "int8": INT8, "int4": INT4}
GROUP = 64  # weights of int4 that share a scale
ACTIVATION_BITS = {"auto": 0, "int8": 8, "int16": 16}
BITS = {"fp32": 32, "bf16": 16, "int8": 8, "int4": 4 + 16 / GROUP}
COPIES_BYTES = 1 << 30  # of weights that are read in turn
FEW = 16  # tokens, up to which a repeat is CALLS calls
CALLS, MANY_CALLS = 4, 2  # the first finds its buffers out of the caches
FORMAT = "gyrfalcon-cpu-products"
KEY = ("instructions", "precision", "model", "matrix", "tokens")


@dataclass(frozen=True, slots=True)
class Row:
    """One product: the best of its times, and the bounds measured between them. Rates per second."""

    model: str
    matrix: str
    rows: int
    columns: int
    precision: str
    instructions: str
    tokens: int
    ms: float
    weight_bytes: int
    instruction: str
    read_bytes_per_second: float
    peak_multiply_adds_per_second: float
    float_multiply_adds_per_second: float

    @property
    def multiply_adds_per_second(self) -> float:
        return self.rows * self.columns * self.tokens / (self.ms / 1000)

    @property
    def bound_ms(self) -> float:
        """The longer of reading and multiplying."""
        reading = self.weight_bytes / self.read_bytes_per_second
        multiplying = self.rows * self.columns * self.tokens / self.peak_multiply_adds_per_second
        return 1000 * max(reading, multiplying)


class Weights:
    """Copies of a matrix, one after the other in memory, and scales that all share."""

    def __init__(self, precision: str, rows: int, columns: int) -> None:
        self.kind, self.rows, self.columns = WEIGHT_KINDS[precision], rows, columns
        self.bytes = int(rows * columns * BITS[precision])  # in bits, then with scales
        self.bytes = self.bytes // 8 + (4 * rows if self.kind == INT8 else 0)
        size = rows * columns * (32, 16, 0, 8, 4)[self.kind] // 8
        self._size, self._copies = size, max(1, COPIES_BYTES // size)
        self._data = _filled(precision, self._copies * size)
        self._scales = torch.full((rows,), 0.01)
        if self.kind == INT4:
            self._scales = torch.full((rows * columns // GROUP,), 0.01, dtype=torch.bfloat16)
        self._next = 0

    def matrix(self) -> Matrix:
        """The next copy."""
        self._next = (self._next + 1) % self._copies
        data = self._data.data_ptr() + self._next * self._size
        return Matrix(data, self._scales.data_ptr(), self.rows, self.columns, self.kind, GROUP)


def _filled(precision: str, size: int) -> Tensor:
    """Bytes of random weights."""
    if precision in ("int8", "int4"):
        part = torch.randint(0, 256, (1 << 24,), dtype=torch.uint8)
    else:
        dtype = torch.float32 if precision == "fp32" else torch.bfloat16
        part = torch.randn(1 << 23).to(dtype).view(torch.uint8)
    return part.repeat(-(-size // len(part)))


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints and keeps; 1 without native kernels."""
    options = _options(argv)
    found = library()
    if found is None:
        print("cpu_products: error: wanted native kernels, got none; build them", file=sys.stderr)
        return 1
    found.gf_use_threads(options.threads)
    if found.gf_use_activations(ACTIVATION_BITS[options.activations]):
        wanted = "wanted a processor with VNNI for --activations int8"
        print(f"cpu_products: error: {wanted}, got none; take int16", file=sys.stderr)
        return 1
    print(HEAD)
    try:
        for name in options.sets:
            assert found.gf_choose(name.encode()) == 0
            for precision in options.precisions:
                rows = []
                for row in measured(found, name, precision, options):
                    rows.append(row)
                    print(line(row), flush=True)
                if options.json:
                    new = [asdict(row) for row in rows]
                    save_rows(options.json, FORMAT, new, KEY, options.threads)
    finally:
        found.gf_choose(available()[0].encode())
        found.gf_use_activations(ACTIVATION_BITS["auto"])
        found.gf_use_threads(torch.get_num_threads())
    return 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [name for name in available() if name != "portable"]
    for option, default in (
        ("--sets", names),
        ("--precisions", list(BITS)),
        ("--models", list(SHAPES)),
    ):
        parser.add_argument(option, type=lambda text: text.split(","), default=default)
    parser.add_argument(
        "--tokens", type=lambda text: [int(part) for part in text.split(",")], default=TOKENS
    )
    parser.add_argument("--activations", choices=ACTIVATION_BITS, default="auto")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, help="file that gets the rows")
    return parser.parse_args(argv)


def measured(
    found: ctypes.CDLL, name: str, precision: str, options: argparse.Namespace
) -> Iterator[Row]:
    """The rows of an instruction set and precision."""
    clock = clock_for(options.threads)
    probe = Probe(found, clock)
    for model in options.models:
        for matrix, (rows, columns) in SHAPES[model].items():
            weights = Weights(precision, rows, columns)
            best = dict.fromkeys(options.tokens, float("inf"))
            dtype = torch.float32 if precision == "fp32" else torch.bfloat16
            inputs = {tokens: torch.randn(tokens, columns).to(dtype) for tokens in options.tokens}
            for _ in range(options.repeats):
                probe.measure()
                for tokens, x in inputs.items():
                    best[tokens] = min(best[tokens], seconds(found, weights, x, clock))
            for tokens, least in best.items():
                instruction = found.gf_instruction_for(weights.kind, tokens, KINDS[dtype]).decode()
                yield Row(
                    model,
                    matrix,
                    rows,
                    columns,
                    precision,
                    name,
                    tokens,
                    1000 * least,
                    weights.bytes,
                    instruction,
                    probe.read,
                    probe.peaks[instruction],
                    next(iter(probe.peaks.values())),
                )


def seconds(found: ctypes.CDLL, weights: Weights, x: Tensor, clock: Clock) -> float:
    """The shortest of a few calls."""
    best = float("inf")
    y = x.new_empty(len(x), weights.rows)
    for _ in range(CALLS if len(x) <= FEW else MANY_CALLS):
        term = Term(weights.matrix(), x.data_ptr())
        output = Output(y.data_ptr(), None, (Term * 2)(term), 1, 0)
        start = clock()
        status = found.gf_linears(output, 1, len(x), KINDS[x.dtype])
        best = min(best, clock() - start)
        assert status == 0
    return best


HEAD = (
    f"{'set':7} {'kind':5} {'matrix':9} {'tokens':>6} {'ms':>9} {'GB/s':>6} {'GMAC/s':>7} "
    f"{'of bound':>8} {'of peak':>8} {'of float':>8}  instruction, its peak, memory read"
)


def line(row: Row) -> str:
    """A row for people."""
    gbytes = row.weight_bytes / row.ms / 1e6
    rate = row.multiply_adds_per_second
    return (
        f"{row.instructions:7} {row.precision:5} {row.model + ' ' + row.matrix:9} {row.tokens:6} "
        f"{row.ms:9.3f} {gbytes:6.1f} {rate / 1e9:7.0f} {row.ms / row.bound_ms:8.2f} "
        f"{rate / row.peak_multiply_adds_per_second:8.1%} "
        f"{rate / row.float_multiply_adds_per_second:8.1%}  {row.instruction} "
        f"{row.peak_multiply_adds_per_second / 1e9:.0f} G, {row.read_bytes_per_second / 1e9:.1f} GB/s"
    )


if __name__ == "__main__":
    sys.exit(main())
