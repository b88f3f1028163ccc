"""What the plots of a plan show, as numbers: times over load, tokens a second, cards over users."""

from collections.abc import Sequence
from dataclasses import dataclass

from gyrfalcon.console.format import counted
from gyrfalcon.plan.estimate import Setting
from gyrfalcon.plan.sizing import Demand, Sized
from gyrfalcon.plan.step_load import StepLoad, decoding_load

MOST_SPLITS = 3  # drawn
USERS_BEYOND = 3  # times as many as were asked for
POINTS = 60  # of users


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a plot."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]


def step_curves(setting: Setting, ranks: int, context: int) -> list[Curve]:
    """Milliseconds of a step over the sequences that decode, each with `context` tokens: alone, and with a
    chunk of a prompt as long. As many as the cache holds, and at most `max_sequences`.
    """
    most = min(setting.memory(ranks).sequences(context), setting.max_sequences)
    counts = [num for num in _rising(most) if num < setting.max_batch_tokens]
    predicted = setting.predicted(ranks)
    alone, mixed = [], []
    for num in counts:
        chunk = setting.max_batch_tokens - num
        decoding = decoding_load(num, num * context)
        attended = decoding.attended + chunk * context // 2
        both = StepLoad(chunk, num, decoding.context_tokens + context, attended)
        alone.append(1000 * predicted.seconds(decoding))
        mixed.append(1000 * predicted.seconds(both))
    x = tuple(map(float, counts))
    return [Curve("decoding", x, tuple(alone)), Curve("with a prompt", x, tuple(mixed))]


def rate_curve(decoding: Curve) -> Curve:
    """Tokens a second of a replica whose decoding steps take this long."""
    pairs = zip(decoding.x, decoding.y, strict=True)
    return Curve("tokens/s", decoding.x, tuple(1000 * num / ms for num, ms in pairs))


def card_curves(demand: Demand, found: Sequence[Sized]) -> list[Curve]:
    """Cards over streams for the best splits, spare replicas included."""
    last = USERS_BEYOND * demand.num_streams
    streams = sorted({max(round(last * place / POINTS), 1) for place in range(POINTS + 1)})
    return [
        Curve(
            counted(one.split.ranks, "rank"),
            tuple(map(float, streams)),
            tuple(float((-(-num // one.most) + demand.spare) * one.split.ranks) for num in streams),
        )
        for one in found[:MOST_SPLITS]
    ]


def _rising(most: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, … up to `most`, which is among them."""
    counts = {step << power for power in range(most.bit_length()) for step in (2, 3)}
    return sorted({1, most, *(num for num in counts if num <= most)}) if most else []
