"""A plan as JSON: times in seconds, sizes in bytes."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from gyrfalcon import __version__
from gyrfalcon.plan.estimate import Estimate, Setting
from gyrfalcon.plan.prediction import Parts
from gyrfalcon.plan.sizing import Demand, Pace, Sized
from gyrfalcon.plan.verify import Verified

FORMAT, VERSION = "gyrfalcon-plan", 1


def document(
    setting: Setting, command: Sequence[str], found: Mapping[str, object]
) -> dict[str, object]:
    """The whole result around what was found; `command` are the words typed after `gyrfalcon`."""
    hardware = asdict(setting.hardware)
    return {
        "format": FORMAT,
        "version": VERSION,
        "gyrfalcon": __version__,
        "command": list(command),
        "model": {"name": setting.model.name, "config": setting.model.config.facts()},
        "settings": {
            "dtype": setting.dtype,
            "quant": setting.quant,
            "max_batch_tokens": setting.max_batch_tokens,
            "max_sequences": setting.max_sequences,
        },
        "hardware": hardware,
        "efficiency": asdict(setting.shares),
        **found,
    }


def plain_estimate(found: Estimate, context: int, batch: int) -> dict[str, object]:
    """The estimate of one split."""
    return {
        "context": context,
        "batch": batch,
        "ranks": found.split.ranks,
        "replicas": found.split.replicas,
        "idle_cards": found.split.idle,
        "memory": {**asdict(found.memory), "cache_tokens": found.memory.cache_tokens},
        "fits": found.fits,
        "remedies": list(found.remedies),
        "concurrent": found.concurrent,
        "first_token": found.first_token,
        "last_first_token": found.last_first_token,
        "step": _parts(found.step),
        "prefill": _parts(found.prefill),
        "tokens_per_second": found.tokens_per_second,
        "cost_per_million": found.cost_per_million,
    }


def plain_sizing(
    demand: Demand,
    found: Sequence[Sized],
    price: float | None = None,
    verified: Sequence[Verified] = (),
) -> dict[str, object]:
    """The splits that meet a target, the best first, and what was simulated of them; `price`: of a card in an
    hour.
    """
    return {
        "target": asdict(demand.target),
        "first_token": demand.first_token,
        "think_seconds": demand.think_seconds,
        "requests_per_second": demand.requests_per_second,
        "spare": demand.spare,
        "streams": demand.num_streams,
        "splits": [
            {
                **_sized(one),
                "cost_per_million": None if price is None else one.cost_per_million(demand, price),
            }
            for one in found
        ],
        "verified": [_verified(one) for one in verified],
    }


def _sized(one: Sized) -> dict[str, object]:
    return {
        "ranks": one.split.ranks,
        "replicas": one.split.replicas,
        "cards": one.split.cards,
        "machines": one.machines,
        "most_streams": one.most,
        "bound": one.bound,
        "pace": _pace(one.pace),
    }


def _verified(one: Verified) -> dict[str, object]:
    return {
        "ranks": one.planned.split.ranks,
        "holds": one.holds,
        "cards": one.sized.split.cards,
        "planned_cards": one.planned.split.cards,
        "planned": asdict(one.first),
        "simulated": asdict(one.trial),
    }


def _pace(pace: Pace) -> dict[str, object]:
    names = ("num_streams", "chunk", "mixed_share", "first_token", "inter_token", "utilisation")
    return {
        **{name: getattr(pace, name) for name in names},
        "mean_step": pace.mean_step,
        "decoding": _parts(pace.decoding),
        "mixed": _parts(pace.mixed),
    }


def _parts(parts: Parts) -> dict[str, object]:
    return {**parts._asdict(), "seconds": parts.seconds, "limit": parts.limit}
