"""How long a step takes: the time of its bytes or of its operations, whichever is longer, launches,
collectives and the host's share (docs/performance-model.md).
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from gyrfalcon.plan.hardware import Hardware
from gyrfalcon.plan.step_load import StepLoad
from gyrfalcon.plan.work import Work

FEW_TOKENS, MANY_TOKENS = 8, 128  # of a step: products of few reach another share of the peak
GRAPH_SEQUENCES = 128  # that decode in one graph: engine/graphs.py
# docs/performance-model.md, "The host's share of a step": within 17 % from 1 to 128 sequences.
HOST_SECONDS = 0.35e-3  # of a step that decodes one sequence
HOST_SEQUENCE_SECONDS = 16e-6  # and for each further one


@dataclass(frozen=True, slots=True)
class Efficiency:
    """The shares of the peaks that steps reach, and how they are known."""

    bytes: float  # of the memory's rate
    flops: float  # of the products' peak, in steps of MANY_TOKENS or more
    few_flops: float  # in steps of FEW_TOKENS or fewer
    basis: str = ""
    host_seconds: float = HOST_SECONDS  # of a step that decodes one sequence

    def flops_at(self, tokens: int) -> float:
        """Of a step of so many tokens: a power of it between the two."""
        place = math.log(max(tokens, 1) / FEW_TOKENS) / math.log(MANY_TOKENS / FEW_TOKENS)
        place = min(max(place, 0.0), 1.0)
        return float(self.few_flops ** (1 - place) * self.flops**place)


class Parts(NamedTuple):
    """Seconds of a step. Of bytes and flops only the longer counts."""

    bytes: float
    flops: float
    launches: float
    collectives: float
    host: float
    hides_host: bool = False  # the host works for the next step meanwhile

    @property
    def device(self) -> float:
        """Of the device alone."""
        return max(self.bytes, self.flops) + self.launches + self.collectives

    @property
    def seconds(self) -> float:
        """Of the whole step."""
        return max(self.device, self.host) if self.hides_host else self.device + self.host

    @property
    def limit(self) -> str:
        """What takes most of it: bytes, flops, launches, collectives or host."""
        if self.hides_host and self.host > self.device:
            return "host"
        longest = "bytes" if self.bytes >= self.flops else "flops"
        shares = {
            longest: max(self.bytes, self.flops),
            "launches": self.launches,
            "collectives": self.collectives,
            "host": 0.0 if self.hides_host else self.host,
        }
        return max(shares, key=lambda name: shares[name])


@dataclass(frozen=True, slots=True)
class Predicted:
    """Predicts the steps of one replica of gyrfalcon (a StepTimes)."""

    work: Work
    hardware: Hardware
    efficiency: Efficiency
    dtype: str

    def seconds(self, load: StepLoad) -> float:
        """Seconds of a step."""
        return self.parts(load).seconds

    def parts(self, load: StepLoad) -> Parts:
        """What they are made of. On a card a step that only decodes overlaps with the host, which launches it
        as a graph or kernel by kernel; one with prompts is launched kernel by kernel while it runs.
        """
        work, hardware, share = self.work, self.hardware, self.efficiency
        host = share.host_seconds + HOST_SEQUENCE_SECONDS * max(load.decoding - 1, 0)
        moved = work.bytes_read(load) / (share.bytes * hardware.bytes_per_second)
        peak = hardware.peak(self.dtype)
        computed = work.flops(load) / (share.flops_at(load.tokens) * peak)
        reduced = collective_seconds(work, hardware, load.tokens)
        if not hardware.on_cards:
            return Parts(moved, computed, 0.0, reduced, host)
        launches = work.launches(hardware.layer_launches)
        gaps = launches * hardware.launch_seconds
        eager = launches * hardware.eager_launch_seconds
        if load.prompt_tokens:
            waiting = max(eager - max(moved, computed) - gaps - reduced, 0.0)
            return Parts(moved, computed, gaps + waiting, reduced, host)
        if not hardware.graphs or load.decoding > GRAPH_SEQUENCES:
            host += eager
        return Parts(moved, computed, gaps, reduced, host, hides_host=True)


def collective_seconds(work: Work, hardware: Hardware, tokens: int) -> float:
    """All-reduces of a step: each a latency, and its bytes through a card's link, in a mesh through all links
    at once.
    """
    if work.all_reduces == 0:
        return 0.0
    link = hardware.link_of(work.ranks)
    moved = moved_bytes(work, tokens) / link.rate(work.ranks)
    return work.all_reduces * link.latency_seconds + moved


def moved_bytes(work: Work, tokens: int) -> float:
    """What each rank sends in a step of so many tokens: 2 (n − 1) / n of what is summed (the ring algorithm:
    Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce").
    """
    share = 2 * (work.ranks - 1) / work.ranks
    return share * work.all_reduces * work.reduced_bytes * tokens
