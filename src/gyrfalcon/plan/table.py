"""A plan for people: a line for each thing, times in ms, sizes in units of 1000."""

from collections.abc import Iterator, Sequence

from gyrfalcon.console.format import counted, shown_bytes
from gyrfalcon.plan.estimate import Estimate, Setting, Split
from gyrfalcon.plan.memory import RankMemory
from gyrfalcon.plan.prediction import Parts
from gyrfalcon.plan.sizing import Demand, Sized
from gyrfalcon.plan.verify import Trial, Verified

WIDTH = 14
MOST_SPLITS = 4  # listed of those that meet a target
WHY = {  # a split serves no more streams than it does
    "cache": "the cache is full",
    "sequences": "--max-sequences allows no more",
    "inter-token": "inter-token times reach the target",
    "first token": "first tokens reach their limit",
    "utilisation": "80 % of the time is used",
    "users": "there are no more users",
    "simulation": "more miss the target when simulated",
}


def title(setting: Setting) -> str:
    """What is planned."""
    quant = "" if setting.quant == "none" else f", matrices in {setting.quant}"
    return f"{setting.model.name} in {setting.dtype}{quant} on {setting.hardware.title}"


def describe_estimate(setting: Setting, found: Estimate, context: int, batch: int) -> Iterator[str]:
    """The estimate of one split."""
    yield f"{title(setting)}: {shown_split(found.split)}"
    yield _line("memory", shown_memory(found.memory))
    fits = "fits" if found.fits else f"does not fit; would with {', or '.join(found.remedies)}"
    yield _line("batch", f"{batch} × {context} tokens a replica: {fits}")
    most = counted(found.concurrent, "sequence")
    yield _line("cache", f"{most} of {context} tokens, {found.memory.cache_tokens:,} tokens in all")
    if not found.fits:
        return
    yield _line("first token", _first_token(found, context, batch))
    yield _line("per token", f"{_ms(found.step.seconds)} ({shown_parts(found.step)})")
    rate = f"{1 / found.step.seconds:.1f} a sequence, {found.tokens_per_second:.1f} in all"
    yield _line("tokens/s", rate)
    yield _line("limited by", f"{found.step.limit} in decoding, {found.prefill.limit} in prefill")
    if found.cost_per_million is not None:
        yield _line("cost", f"{found.cost_per_million:.2f} per million output tokens")
    yield _line("shares from", found.basis)


def describe_sizing(
    setting: Setting,
    demand: Demand,
    found: Sequence[Sized],
    price: float | None = None,
    verified: Sequence[Verified] = (),
) -> Iterator[str]:
    """The best split, the runner-up and why it lost, the others, and what was simulated; `price`: of a card
    in an hour.
    """
    best = found[0]
    yield f"{title(setting)}: {demand.num_streams:,} streams at a time"
    on_cards = setting.hardware.on_cards
    yield _line("needs", _needs(best, on_cards))
    yield _line("each replica", _pace(best))
    yield _line("no more", f"than {best.most} streams: {WHY[best.bound]}")
    if price is not None:
        cost = best.cost_per_million(demand, price)
        yield _line(
            "cost", f"{cost:.2f} per million output tokens, {price * best.split.cards:.2f} an hour"
        )
    if len(found) > 1:
        yield _line("runner-up", f"{_needs(found[1], on_cards)}; {_why_lost(best, found[1])}")
    for other in found[2:MOST_SPLITS]:
        yield _line("then", f"{_needs(other, on_cards)}; {WHY[other.bound]}")
    yield from describe_verified(verified)
    yield _line("shares from", setting.shares.basis)


def describe_verified(verified: Sequence[Verified]) -> Iterator[str]:
    """A line of each split that was simulated, the best first, and whether the formulas' answer stands."""
    for one in verified:
        yield _line("simulated", f"{counted(one.planned.split.ranks, 'rank')}: {_simulated(one)}")
    if not verified:
        return
    best = verified[0]
    planned = min((one.planned for one in verified), key=lambda one: one.split.cards)
    if not best.holds:
        yield _line("verdict", "no simulated split holds; the answer above is the formulas' alone")
    elif best.sized == best.planned:
        yield _line("verdict", "the formulas' answer holds")
    else:
        cards = counted(planned.split.cards, "card")
        yield _line(
            "verdict", f"the formulas' answer, {cards}: {shown_split(planned.split)}, is overturned"
        )


def shown_split(split: Split) -> str:
    """As "4 ranks × 2 replicas, 1 card idle"."""
    ranks = counted(split.ranks, "rank")
    shown = ranks if split.replicas == 1 else f"{ranks} × {split.replicas} replicas"
    return f"{shown}, {counted(split.idle, 'card')} idle" if split.idle else shown


def shown_memory(memory: RankMemory) -> str:
    """A rank's memory, part by part."""
    parts = {
        "weights": memory.weights,
        "cache": memory.cache,
        "workspace": memory.workspace,
        "runtime": memory.reserved,
    }
    listed = ", ".join(f"{name} {shown_bytes(size)}" for name, size in parts.items() if size)
    return f"{listed} of {shown_bytes(memory.total)} a rank"


def shown_parts(parts: Parts) -> str:
    """Where a step's time goes; of bytes and flops the shorter is hidden by the longer."""
    names = ("bytes", "flops", "launches", "collectives", "host")
    shown = [f"{name} {_ms(getattr(parts, name))}" for name in names if getattr(parts, name) > 0]
    hidden = "; the host is hidden" if parts.hides_host and parts.limit != "host" else ""
    return f"{', '.join(shown)}{hidden}"


def _first_token(found: Estimate, context: int, batch: int) -> str:
    text = f"{_ms(found.first_token)} for a prompt of {context} tokens alone"
    return (
        text if batch == 1 else f"{text}, {_ms(found.last_first_token)} until all {batch} have one"
    )


def _simulated(one: Verified) -> str:
    """What the planned streams come to, and how many hold."""
    if one.trial is one.first:
        return _trial(one.trial)
    lacks = f"{counted(one.first.num_streams, 'stream')} lack {one.first.lacks}"
    return f"{lacks} ({_percentiles(one.first)}); {_trial(one.trial)}"


def _trial(trial: Trial) -> str:
    streams = counted(trial.num_streams, "stream")
    if trial.lacks is not None:
        return f"{streams} lack {trial.lacks} ({_percentiles(trial)})"
    good, target = trial.figures.goodput, trial.step_target
    assert good is not None
    step_target = "" if target is None else f", with --step-target {1000 * target:.4g}"
    return (
        f"{streams} hold: {_percentiles(trial)}, {trial.utilisation:.0%} utilised, "
        f"{good.share:.1%} of the requests meet both{step_target}"
    )


def _percentiles(trial: Trial) -> str:
    return f"inter-token p90 {_ms(trial.inter_token)}, first token p90 {_ms(trial.first_token)}"


def _needs(one: Sized, on_cards: bool) -> str:
    machines = counted(one.machines, "machine")
    cards = f"{counted(one.split.cards, 'card')} on " if on_cards else ""
    return f"{cards}{machines}: {shown_split(one.split)}"


def _pace(one: Sized) -> str:
    pace = one.pace
    return (
        f"{counted(pace.num_streams, 'stream')}: inter-token p90 {_ms(pace.inter_token)}, first token "
        f"p90 {_ms(pace.first_token)}, {pace.utilisation:.0%} utilised, limited by {pace.decoding.limit}"
        f"; prompts in chunks of {pace.chunk}"
    )


def _why_lost(best: Sized, other: Sized) -> str:
    more = other.split.cards - best.split.cards
    if more > 0:
        per_card = other.most / other.split.ranks, best.most / best.split.ranks
        if per_card[0] >= per_card[1]:
            return f"{counted(more, 'card')} more: replicas of {other.split.ranks} fill up worse"
        return (
            f"{counted(more, 'card')} more: {per_card[0]:.3g} streams a card, not {per_card[1]:.3g}, "
            f"as {WHY[other.bound]}"
        )
    if other.machines > best.machines:
        return f"{counted(other.machines - best.machines, 'machine')} more"
    slower = other.pace.mean_step / best.pace.mean_step - 1
    return f"as many cards, but steps take {slower:.0%} longer"


def _line(name: str, text: str) -> str:
    return f"{name:<{WIDTH}}{text}"


def _ms(seconds: float) -> str:
    ms = 1000 * seconds
    return f"{ms:.0f} ms" if ms >= 100 else f"{ms:.1f} ms" if ms >= 1 else f"{ms:.2f} ms"
