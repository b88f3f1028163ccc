"""Simulates the time of a decoded token on a card from bytes, instructions and launches, kernel by kernel.

    python tools/simulate_token.py [MODEL ...] [--batch 1] [--context 128] [--json FILE]
        [--steps FILE --design joint --quant none]

A layer is a chain of kernels. One that streams weights takes the longer of its bytes at the memory's rate and
its weights at the rate that a multiprocessor's issue slots widen them, and a start and an end in which the
memory is not busy; a small one takes a fixed time; a gap lies between any two. The designs:

    separate    a kernel for each operation, one after the other
    forked      the same, with rotation, cache, attention and merge beside up
    joint       forked, as in ops/triton: dense and down in one kernel, whose parts the norms sum, and qkv's
                parts summed as they are rotated; up has a sum of its own where it is computed in parts
    early       joint, each kernel launched before the last one of its stream ends (programmatic dependent
                launch, of sm_90), with its weights prefetched to the L2 cache; what follows a fork or a join
                waits for whole kernels all the same
    fused       the bound of joint: no sum takes time
    prefetched  the bound of early: nor does a fork or a join

Nothing of it was timed: CONFIRM lists the constants that a card must confirm, and how. --steps writes
decoding steps of 1 to 16 sequences, and prompts as `plan` predicts them, for `gyrfalcon plan --trace …
--step-times FILE`.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

from gyrfalcon.config import ModelConfig
from gyrfalcon.engine_config import EngineConfig
from gyrfalcon.plan.estimate import Setting
from gyrfalcon.plan.hardware import known_hardware
from gyrfalcon.plan.models import PlannedModel, planned_model
from gyrfalcon.plan.simulate_measured import TimedStep, write_steps
from gyrfalcon.plan.step_load import decoding_load, load_of

US = 1e-6
QUANTS = ("none", "int8", "int4")
HEAD_QUANTS = {"none": "none", "int8": "int8", "int4": "int8"}  # the head has no less than 8 bits
WEIGHT_BYTES = {"none": 2.0, "int8": 1.0, "int4": 0.5 + 2 / 64}  # scales included
MOST_BATCH = 16  # the smallest tile of the matrix units: beyond, other kernels run
CONTEXTS, PROMPTS = (32, 128, 512, 1024, 2048), (32, 64, 128, 256, 512)  # of --steps
CARD = "h200"
CONFIRM = {
    "rate": "a copy-free read of 8 GiB, timed by events: bytes a second",
    "issue_share": "an int8 and an int4 product of 40b's `up` alone, its weights not in L2: time a weight",
    "ramp": "the same in bf16 at 1/4, 1/2 and all of its rows: seconds at no rows",
    "gap": "1,000 empty kernels in a graph: seconds each",
    "unit_rate": "norms of one row whose part is 2 and 8 summands: seconds for each",
    "small": "each small kernel 1,000 times in a graph, less the gap",
    "ends": "a whole step less its layers: embedding, angles, final norm, choice of the token",
}


@dataclass(frozen=True, slots=True)
class Card:
    """An H200. Its rates, clock under load and issue share are assumed; the rest is its data sheet's."""

    rate: float = 4.35e12  # bytes a second that streaming kernels reach, of 4.8e12
    units: int = 132
    clock: float = 1.755e9  # under load
    issue_share: float = 0.8  # of the issue slots that are used while others wait
    unit_rate: float = 1e11  # bytes a second that one multiprocessor reads of the L2 cache


@dataclass(frozen=True, slots=True)
class Design:
    """How a layer is computed; times in seconds.

    weights_per_clock: that a multiprocessor's issue slots widen, by quantisation: slots over instructions a
        weight, or the converter's rate.
    """

    name: str
    weights_per_clock: dict[str, float]
    ramp: float  # of a streaming kernel: until its memory is busy, and after
    gap: float  # between two kernels of a graph
    ends: float  # embedding, angles, final norm, choice of the token
    is_forked: bool = True
    is_joint: bool = False
    sums: bool = True  # of parts take time
    crossing: tuple[float, float] | None = None  # ramp and gap after a fork or a join, where others


SMALL = {  # seconds of kernels that stream nothing
    "norms": 4.0 * US,
    "sum of parts": 2.5 * US,
    "rotation": 3.5 * US,
    "attention": 6.0 * US,
    "merge": 3.0 * US,
}
RATES = {"int8": 49.0, "int4": 45.0}
_SEPARATE = Design("separate", RATES, 3.2 * US, 0.9 * US, 40 * US, is_forked=False)
_JOINT = replace(_SEPARATE, name="joint", is_forked=True, is_joint=True)
_RAMP, _GAP = 0.8 * US, 0.2 * US  # of kernels launched early
_FUSED = Design("fused", RATES, 3.0 * US, 0.9 * US, 30 * US, is_joint=True, sums=False)
DESIGNS = {
    one.name: one
    for one in (
        _SEPARATE,
        replace(_SEPARATE, name="forked", is_forked=True),
        _JOINT,
        replace(_JOINT, name="early", ramp=_RAMP, gap=_GAP, crossing=(_JOINT.ramp, _JOINT.gap)),
        _FUSED,
        replace(_FUSED, name="prefetched", ramp=_RAMP, gap=_GAP),
    )
}
TODAY = "joint"  # of ops/triton
TILES = {
    "none": (64, 2),
    "int8": (64, 3),
    "int4": (128, 4),
}  # rows, and programs of a multiprocessor


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel: `weights` that it streams, or a small one."""

    name: str
    weights: int = 0
    quant: str = "none"
    cache_bytes: float = 0.0
    part_bytes: float = 0.0  # that one multiprocessor sums


@dataclass(frozen=True, slots=True)
class Token:
    """A token's seconds, and what they are made of."""

    seconds: float
    floor: float  # all bytes at the memory's rate
    launches: int  # of a layer

    @property
    def share(self) -> float:
        return self.floor / self.seconds


@dataclass(frozen=True, slots=True)
class Step:
    """What is decoded: this many sequences of that context, matrices in `quant`."""

    config: ModelConfig
    quant: str
    batch: int = 1
    context: int = 128


def simulated(step: Step, design: Design, card: Card = Card()) -> Token:
    """The time of a decoding step, which gives each sequence a token."""
    layer = _layer(step, design, card)
    seconds = sum(
        _stage_seconds(*each, design, card) for each in zip(layer, _crossings(layer), strict=True)
    )
    head = Kernel("head", _head_weights(step.config), HEAD_QUANTS[step.quant])
    total = step.config.num_layers * seconds + _kernel_seconds(head, design, card) + design.ends
    kernels = [one for stage in layer for chain in stage for one in chain]
    return Token(total, _floor(step, card), len(kernels))


Chain = list[Kernel]
Stage = Sequence[Chain]  # chains side by side


def _layer(step: Step, design: Design, card: Card) -> list[Stage]:
    qkv, dense, up, down = _products(step)
    parts, attention = (
        Kernel("sum of parts"),
        [Kernel("rotation"), _attention(step), Kernel("merge")],
    )
    if not design.is_joint:  # dense and down are summed by one kernel
        beside = [attention, [up]] if design.is_forked else [[up, *attention]]
        return [[[Kernel("norms"), qkv, parts]], beside, [[dense, down, parts]]]
    both = Kernel("dense and down", dense.weights + down.weights, step.quant)
    norms, columns = Kernel("norms"), [up]
    if design.sums:
        row = 4 * step.config.hidden_size  # float32; one multiprocessor has a whole row
        norms = replace(
            norms, part_bytes=row * _num_parts(step.config.hidden_size, step.quant, card)
        )
        columns += [parts] * (_num_parts(step.config.ffn_size, step.quant, card) > 1)
    return [[[norms, qkv]], [attention, columns], [[both]]]


def _num_parts(rows: int, quant: str, card: Card) -> int:
    """In which a product of so many rows is computed, for as many programs as run at once."""
    height, programs = TILES[quant]
    return max(1, programs * card.units // -(-rows // height))


def _crossings(layer: Sequence[Stage]) -> list[bool]:
    """Of each stage whether it begins with a fork or a join; layers follow each other."""
    forks = [len(stage) > 1 for stage in layer]
    return [fork or before for fork, before in zip(forks, [forks[-1], *forks], strict=False)]


def _products(step: Step) -> tuple[Kernel, Kernel, Kernel, Kernel]:
    config = step.config
    hidden, rows = config.hidden_size, config.num_heads * config.head_dim
    return (
        Kernel("qkv", hidden * config.qkv_rows, step.quant),
        Kernel("dense", rows * hidden, step.quant),
        Kernel("up", hidden * config.ffn_size, step.quant),
        Kernel("down", config.ffn_size * hidden, step.quant),
    )


def _attention(step: Step) -> Kernel:
    config = step.config
    keys = 2 * 2 * config.num_kv_heads * config.head_dim * step.batch * step.context
    return Kernel("attention", cache_bytes=keys)


def _stage_seconds(stage: Stage, crosses: bool, design: Design, card: Card) -> float:
    """Of chains side by side the longest, whose join is one more gap; what they stream together takes the
    memory's time.
    """
    chains = [_chain_seconds(chain, crosses, design, card) for chain in stage]
    streamed = sum(_bytes(one) for chain in stage for one in chain) / card.rate
    return max(*chains, streamed) + _edge(crosses, design)[1] if chains[1:] else chains[0]


def _chain_seconds(chain: Chain, crosses: bool, design: Design, card: Card) -> float:
    return sum(
        _kernel_seconds(one, design, card, crosses and place == 0)
        for place, one in enumerate(chain)
    )


def _kernel_seconds(kernel: Kernel, design: Design, card: Card, crosses: bool = False) -> float:
    """With the gap before it; `crosses` where that is a fork or a join."""
    ramp, gap = _edge(crosses, design)
    moved = _bytes(kernel) / card.rate
    if not kernel.weights:
        return max(SMALL[kernel.name] + kernel.part_bytes / card.unit_rate, moved) + gap
    rate = design.weights_per_clock.get(kernel.quant)
    issued = 0.0
    if rate is not None:
        issued = kernel.weights / (rate * card.units * card.clock * card.issue_share)
    return max(moved, issued) + ramp + gap


def _edge(crosses: bool, design: Design) -> tuple[float, float]:
    """Ramp and gap of a kernel."""
    if crosses and design.crossing is not None:
        return design.crossing
    return design.ramp, design.gap


def _bytes(kernel: Kernel) -> float:
    return kernel.weights * WEIGHT_BYTES[kernel.quant] + kernel.cache_bytes


def _head_weights(config: ModelConfig) -> int:
    return config.vocab_size * config.hidden_size


def _floor(step: Step, card: Card) -> float:
    layer = sum(_bytes(one) for one in (*_products(step), _attention(step)))
    head = _head_weights(step.config) * WEIGHT_BYTES[HEAD_QUANTS[step.quant]]
    return (step.config.num_layers * layer + head) / card.rate


def steps_of(model: PlannedModel, quant: str, design: Design) -> Iterator[TimedStep]:
    """Decoding steps of 1 to MOST_BATCH sequences, and steps that read prompts, for write_steps()."""
    for batch, context in product(range(1, MOST_BATCH + 1), CONTEXTS):
        token = simulated(Step(model.config, quant, batch, context), design)
        yield TimedStep(decoding_load(batch, batch * context), token.seconds)
    hardware = known_hardware()[CARD]
    tokens = EngineConfig(model.name).max_batch_tokens
    setting = Setting(model, hardware, "bf16", quant, tokens, MOST_BATCH)
    for length in PROMPTS:
        load = load_of([range(length)])
        yield TimedStep(load, setting.predicted(1).seconds(load))


def rows_of(models: Sequence[str], batch: int, context: int) -> Iterator[dict[str, object]]:
    """A row of each model, quantisation and design."""
    for model in models:
        config = planned_model(model).config
        for quant in QUANTS:
            for design in DESIGNS.values():
                token = simulated(Step(config, quant, batch, context), design)
                yield {
                    "model": model,
                    "quant": quant,
                    "design": design.name,
                    **asdict(token),
                    "share": token.share,
                }


def show(rows: Sequence[dict[str, object]]) -> Iterator[str]:
    """A line for each model and quantisation, milliseconds and the share of the memory's rate."""
    yield f"{'':24}{'floor':>8}" + "".join(f"{name:>20}" for name in DESIGNS)
    names = list(DESIGNS)
    for first in range(0, len(rows), len(names)):
        own = rows[first : first + len(names)]
        cells = [
            f"{1000 * _number(one, 'seconds'):8.2f} ({_number(one, 'share'):4.0%})" for one in own
        ]
        name = f"{own[0]['model']} {own[0]['quant']}"
        floor = 1000 * _number(own[0], "floor")
        yield f"{name:24}{floor:8.2f}" + "".join(f"{cell:>20}" for cell in cells)


def _number(row: dict[str, object], name: str) -> float:
    value = row[name]
    assert isinstance(value, float)
    return value


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=["falcon-40b", "falcon-7b"], metavar="MODEL")
    parser.add_argument("--batch", type=int, default=1, help=f"sequences, at most {MOST_BATCH}")
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--steps", type=Path, help="steps of the first MODEL, for --step-times")
    parser.add_argument("--design", choices=DESIGNS, default=TODAY, help="of --steps")
    parser.add_argument("--quant", choices=QUANTS, default="none", help="of --steps")
    args = parser.parse_args(argv)
    if not 1 <= args.batch <= MOST_BATCH:
        parser.error(f"wanted --batch from 1 to {MOST_BATCH}, got {args.batch}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table and what a card must confirm."""
    args = parse(argv)
    rows = list(rows_of(args.models, args.batch, args.context))
    print("\n".join(show(rows)))
    print("\nNot timed on a card. To confirm there:")
    for name, how in CONFIRM.items():
        print(f"  {name:12}{how}")
    if args.json is not None:
        document = {
            "simulation": "token",
            "card": asdict(Card()),
            "designs": [asdict(one) for one in DESIGNS.values()],
            "small": SMALL,
            "confirm": CONFIRM,
            "rows": rows,
        }
        args.json.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    if args.steps is not None:
        model = planned_model(args.models[0])
        facts = {"model": model.name, "simulated": args.design, "quant": args.quant}
        write_steps(args.steps, facts, steps_of(model, args.quant, DESIGNS[args.design]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
