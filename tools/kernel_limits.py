"""What streaming weights wants of a compiled kernel: instructions that keep up with the memory, and enough
bytes on their way to hide its latency.

A card's memory delivers bandwidth ÷ (units × clock) bytes a clock and unit, as weights by a kind's bytes
a weight. A kernel has to be able to widen MARGIN times as many: it also waits. Where NVIDIA's cards have
instructions to spare, the limit is higher than that, so that none is lost again.
"""

from dataclasses import dataclass

MARGIN = 1.3
LATENCY = 0.8e-6  # seconds of a loaded memory
FEW_TOKENS, SOME_TOKENS = 16, 64  # up to which the limits hold: of instructions, of bytes
BYTES = {"none": 2.0, "int8": 1.0, "fp8": 1.0, "int4": 0.5 + 2 / 64}  # a weight, scales included
BYTES |= {"int4-32": 0.5 + 2 / 32, "int4-128": 0.5 + 2 / 128}


@dataclass(frozen=True, slots=True)
class Card:
    """The fastest card of a target, by its maker's data sheet."""

    bandwidth: float  # bytes a second
    units: int  # multiprocessors or compute units
    clock: float  # boost, cycles a second
    lanes: int  # that a unit issues a vector instruction for in a clock
    registers: int  # of a unit, 32 bits each
    shared_bytes: int  # of a unit
    least: dict[str, float]  # weights a clock and unit in bf16, where the data sheet asks for fewer

    def least_weights(self, kind: str, dtype: str = "bf16") -> float:
        """Weights a clock and unit that a kernel of a kind must be able to widen to a dtype."""
        needed = self.bandwidth / (self.units * self.clock * BYTES[kind]) * MARGIN
        return self.least.get(kind, needed) if dtype == "bf16" else needed

    @property
    def least_bytes(self) -> float:
        """Bytes of weights under way."""
        return self.bandwidth * LATENCY * MARGIN


# A CU issues one wave of 64 lanes a clock, from one of its four SIMDs in turn.
CARDS = {
    "sm_80": Card(
        2.04e12,
        108,
        1.41e9,
        128,
        65536,
        164 << 10,
        {"int4": 30, "int4-32": 30, "int4-128": 30, "int8": 17, "fp8": 17},
    ),
    "sm_90": Card(
        4.3e12,
        132,
        1.98e9,
        128,
        65536,
        228 << 10,
        {"int4": 45, "int4-32": 40, "int4-128": 45, "int8": 45, "fp8": 40},
    ),
    "gfx942": Card(5.3e12, 304, 2.1e9, 64, 131072, 64 << 10, {}),
    "gfx90a": Card(1.6e12, 110, 1.7e9, 64, 131072, 64 << 10, {}),
}


@dataclass(frozen=True, slots=True)
class Stream:
    """The weights that a kernel reads."""

    kind: str
    dtype: str  # of x
    tokens: int  # of its tile
    tile: int  # weights of a step of its loop
    programs: int  # that the host wants on each unit

    def bytes_in_flight(
        self, card: Card, registers: int, shared_bytes: int, threads: int, stages: int
    ) -> int:
        """On all of the card: each program that fits a unit has loaded all stages but the one it
        computes.
        """
        by_registers = card.registers // max(registers * threads, 1)
        by_shared = card.shared_bytes // max(shared_bytes + 1024, 1)  # 1 KiB belongs to the system
        resident = min(self.programs, by_registers, max(by_shared, 1))
        return int(card.units * resident * (stages - 1) * self.tile * BYTES[self.kind])
