"""Times a layer's attention by the native CPU kernels beside what the processor can do, measured in turn.

    python benchmarks/cpu_attention.py [--sets avx512,avx2] [--precisions bf16] [--models 40b,A]
        [--threads 1] [--json FILE]

With the heads of falcon-40b, falcon-7b, falcon-rw-1b and model A of benchmarks/cpu_peers.py: a token each of
8 sequences with 2,048 tokens of context ("decode"), a prompt of 2,048 tokens ("prefill"), and the next 192
and 512 tokens after 2,048 ("chunk"). Every call reads another layer's cache, of all together many
times the processor's caches, in blocks out of order. Before each repeat the memory bandwidth is
measured and the multiply-adds of every instruction in registers. A row has the shortest time of all repeats;
"of bound" is that time over the longer of two: bytes of keys and values, each once, by the largest
measured bandwidth, and multiply-adds by the largest measured peak of the fastest instruction
that attention uses. These count only what the causal mask leaves, and no softmax. With one
thread all times are its processor time.

With --json rows are added to those that the file has already, of other sets or precisions.
"""

import argparse
import ctypes
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from math import inf
from pathlib import Path

import torch
from cpu_probe import Clock, Probe, clock_for, save_rows
from torch import Tensor

from gyrfalcon.batch import AttentionMetadata
from gyrfalcon.kv.pool import LayerCache
from gyrfalcon.model.positions import alibi_slopes
from gyrfalcon.native.library import available, library

BLOCK = 16  # tokens of a cache's block, as engines have by themselves
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
BF16_PRODUCTS = "vdpbf16ps"  # attention's in bf16, where a set has it
LAYERS_BYTES = 1 << 29  # of caches that are read in turn
CALLS = 3  # of a repeat: the first finds its buffers out of the caches
FORMAT = "gyrfalcon-cpu-attention"
KEY = ("instructions", "precision", "model", "step", "sequences", "tokens", "context")


@dataclass(frozen=True, slots=True)
class Heads:
    """A layer's."""

    kv_heads: int
    heads: int
    alibi: bool = False
    dim: int = 64


HEADS = {"40b": Heads(8, 128), "7b": Heads(1, 71), "A": Heads(4, 32), "rw": Heads(32, 32, True)}


@dataclass(frozen=True, slots=True)
class Step:
    """What attends: the last `tokens` of `context` in each of some sequences."""

    name: str
    sequences: int
    tokens: int
    context: int

    @property
    def pairs(self) -> int:
        """Of a token and one that it sees."""
        before = self.context - self.tokens
        return self.sequences * (self.tokens * before + self.tokens * (self.tokens + 1) // 2)

    def multiply_adds(self, heads: Heads) -> int:
        """Of queries with keys and of weights with values."""
        return 2 * self.pairs * heads.heads * heads.dim

    def cache_bytes(self, heads: Heads, dtype: torch.dtype) -> int:
        """Of all keys and values."""
        numbers = 2 * self.sequences * self.context * heads.kv_heads * heads.dim
        return numbers * dtype.itemsize


@dataclass(frozen=True, slots=True)
class Row:
    """One step: the best of its times, and the bounds measured between them. Rates per second."""

    model: str
    step: str
    sequences: int
    tokens: int
    context: int
    precision: str
    instructions: str
    ms: float
    cache_bytes: int
    multiply_adds: int
    instruction: str
    read_bytes_per_second: float
    peak_multiply_adds_per_second: float
    float_multiply_adds_per_second: float

    @property
    def multiply_adds_per_second(self) -> float:
        return self.multiply_adds / (self.ms / 1000)

    @property
    def bound_ms(self) -> float:
        """The longer of reading and multiplying."""
        reading = self.cache_bytes / self.read_bytes_per_second
        return 1000 * max(reading, self.multiply_adds / self.peak_multiply_adds_per_second)


class Layers:
    """Caches with room for each of the steps, whose blocks belong to no sequence in order."""

    def __init__(self, heads: Heads, steps: Sequence[Step], dtype: torch.dtype) -> None:
        self._blocks = max(step.sequences * -(-step.context // BLOCK) for step in steps)
        shape = (self._blocks, BLOCK, heads.kv_heads, heads.dim)
        layer_bytes = 2 * torch.Size(shape).numel() * dtype.itemsize
        numbers = torch.randn(shape).to(dtype)
        self._caches = [
            LayerCache(numbers.clone(), numbers.clone())
            for _ in range(max(2, LAYERS_BYTES // layer_bytes))
        ]
        self.in_turn = cycle(self._caches)

    def batch(self, step: Step) -> AttentionMetadata:
        """The step's sequences."""
        each = step.sequences * -(-step.context // BLOCK)
        return AttentionMetadata(
            query_lens=(step.tokens,) * step.sequences,
            context_lens=(step.context,) * step.sequences,
            block_tables=torch.randperm(self._blocks)[:each].view(step.sequences, -1),
            starts=torch.arange(step.sequences + 1) * step.tokens,
            contexts=torch.full((step.sequences,), step.context),
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints and keeps; 1 without native kernels."""
    options = _options(argv)
    found = library()
    if found is None:
        print("cpu_attention: error: wanted native kernels, got none; build them", file=sys.stderr)
        return 1
    found.gf_use_threads(options.threads)
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
        found.gf_use_threads(torch.get_num_threads())
    return 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    names = [name for name in available() if name != "portable"]
    for option, known in (("--sets", names), ("--precisions", DTYPES), ("--models", HEADS)):
        add(option, type=lambda text: text.split(","), default=[*known], help=",".join(known))
    add("--sequences", type=int, default=8, help="of decode")
    add("--context", type=int, default=2048, help="tokens of a prompt, and of those before")
    add("--chunks", type=lambda text: [int(part) for part in text.split(",")], default=[192, 512])
    add("--repeats", type=int, default=5)
    add("--threads", type=int, default=len(os.sched_getaffinity(0)))
    add("--json", type=Path, metavar="FILE", help="gets the rows")
    return parser.parse_args(argv)


def measured(
    found: ctypes.CDLL, name: str, precision: str, options: argparse.Namespace
) -> Iterator[Row]:
    """The rows of an instruction set and precision."""
    clock, dtype, context = clock_for(options.threads), DTYPES[precision], options.context
    steps = [Step("decode", options.sequences, 1, context), Step("prefill", 1, context, context)]
    steps += [Step("chunk", 1, tokens, context + tokens) for tokens in options.chunks]
    probe = Probe(found, clock)
    for model in options.models:
        heads = HEADS[model]
        layers = Layers(heads, steps, dtype)
        inputs = {step: queries(step, heads, dtype) for step in steps}
        best = dict.fromkeys(steps, inf)
        for _ in range(options.repeats):
            probe.measure()
            for step in steps:
                best[step] = min(best[step], seconds(layers, step, heads, inputs[step], clock))
        floats = next(iter(probe.peaks))
        fastest = BF16_PRODUCTS if precision == "bf16" and BF16_PRODUCTS in probe.peaks else floats
        for step in steps:
            yield Row(
                model,
                step.name,
                step.sequences,
                step.tokens,
                step.context,
                precision,
                name,
                1000 * best[step],
                step.cache_bytes(heads, dtype),
                step.multiply_adds(heads),
                fastest,
                probe.read,
                probe.peaks[fastest],
                probe.peaks[floats],
            )


def queries(step: Step, heads: Heads, dtype: torch.dtype) -> Tensor:
    """Random ones, of all the step's tokens."""
    return torch.randn(step.sequences * step.tokens, heads.heads, heads.dim).to(dtype)


def seconds(layers: Layers, step: Step, heads: Heads, q: Tensor, clock: Clock) -> float:
    """The shortest of a few calls."""
    from gyrfalcon.ops import native

    best, batch = inf, layers.batch(step)
    slopes = alibi_slopes(heads.heads) if heads.alibi else None
    for _ in range(CALLS):
        cache = next(layers.in_turn)
        start = clock()
        native.attention(q, cache, batch, slopes)
        best = min(best, clock() - start)
    return best


HEAD = (
    f"{'set':12} {'kind':4} {'model':5} {'step':8} {'tokens':>9} {'ms':>9} {'GB/s':>6} {'GMAC/s':>7} "
    f"{'of bound':>8} {'of peak':>8} {'of float':>8}  instruction, its peak, memory read"
)


def line(row: Row) -> str:
    """A row for people."""
    rate, tokens = row.multiply_adds_per_second, f"{row.sequences} × {row.tokens}"
    return (
        f"{row.instructions:12} {row.precision:4} {row.model:5} {row.step:8} {tokens:>9} "
        f"{row.ms:9.3f} {row.cache_bytes / row.ms / 1e6:6.1f} {rate / 1e9:7.0f} "
        f"{row.ms / row.bound_ms:8.2f} {rate / row.peak_multiply_adds_per_second:8.1%} "
        f"{rate / row.float_multiply_adds_per_second:8.1%}  {row.instruction} "
        f"{row.peak_multiply_adds_per_second / 1e9:.0f} G, {row.read_bytes_per_second / 1e9:.1f} GB/s"
    )


if __name__ == "__main__":
    sys.exit(main())
