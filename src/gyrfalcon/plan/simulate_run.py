"""Simulates replicas behind a router under a trace, and tells what came of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from gyrfalcon.console.format import counted
from gyrfalcon.engine.scheduler import StepLimits
from gyrfalcon.load.figures import Spread
from gyrfalcon.plan.estimate import Setting
from gyrfalcon.plan.events import Clock
from gyrfalcon.plan.memory import num_cache_blocks
from gyrfalcon.plan.router import ROUND_ROBIN, make_router
from gyrfalcon.plan.simulate import Ended, SimulatedEngine, SimulatedSettings
from gyrfalcon.plan.simulate_figures import Collector, SimulatedFigures
from gyrfalcon.plan.step_load import StepTimes
from gyrfalcon.plan.trace import PAGE_TOKENS, Trace

WIDTH = 14  # of the names of lines
HEADINGS = ("ms", "p50", "p90", "p99", "mean", "max")


def replica_settings(
    setting: Setting,
    ranks: int,
    max_len: int,
    step_target: float | None = None,
    page_tokens: int = PAGE_TOKENS,
) -> SimulatedSettings:
    """The engine of a replica, with the cache that it would take. `step_target` in seconds."""
    memory, most = setting.memory(ranks), setting.max_sequences
    size = setting.hardware.block_size
    shape = (setting.model.config, ranks, setting.dtype)
    return SimulatedSettings(
        StepLimits(max_len, setting.max_batch_tokens, most),
        num_blocks=num_cache_blocks(*shape, memory.cache, max_len, most, size),
        block_size=size,
        step_target=step_target,
        overlap=setting.hardware.on_cards,
        page_tokens=page_tokens,
    )


@dataclass(frozen=True, slots=True)
class Simulation:
    """What is simulated.

    limits: of goodput, in milliseconds, by name as in load/goodput.py.
    warm_up: neither requests that arrive within this many seconds are counted, nor what replicas use then.
    """

    settings: SimulatedSettings
    times: StepTimes
    num_replicas: int = 1
    router: str = ROUND_ROBIN
    limits: Mapping[str, float] = field(default_factory=dict)
    warm_up: float = 0.0
    one_by_one: bool = False  # take no steps at once: as exact, and slower

    def run(
        self,
        trace: Trace,
        arrived: Callable[[], object] = lambda: None,
        ended: Callable[[Ended], object] = lambda _: None,
    ) -> SimulatedFigures:
        """Has every request of the trace arrive and end; calls `arrived` and `ended` for each."""
        settings = self.settings
        collector = Collector(self.limits, self.warm_up)

        def take(request: Ended) -> None:
            collector.ended(request)
            ended(request)

        engines = [
            SimulatedEngine(settings, self.times, take, self.one_by_one)
            for _ in range(self.num_replicas)
        ]
        num_pages = settings.num_blocks * settings.block_size // settings.page_tokens
        most = settings.limits.max_sequences
        router = make_router(self.router, self.num_replicas, most, num_pages)
        Clock(engines, router).run(trace, arrived, self.warm_up)
        return collector.figures(engines)


def describe(title: str, figures: SimulatedFigures) -> str:
    """The whole result for people; the title says what was simulated."""
    spreads = {
        "queued": figures.queued_ms,
        "first token": figures.first_token_ms,
        "between tokens": figures.inter_token_ms,
        "end to end": figures.end_to_end_ms,
    }
    rows = [(name, *_cells(found)) for name, found in spreads.items() if found is not None]
    widths = [max(map(len, column)) for column in zip(HEADINGS, *rows, strict=True)]
    table = [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in (HEADINGS, *rows)
    ]
    parts = {
        "requests": _requests(figures),
        "rate": f"{figures.finished_per_second:.2f} requests/s, "
        f"{figures.output_tokens_per_second:.1f} tokens/s",
        "goodput": _goodput(figures),
        "replicas": _busy(figures),
        "cache": _cache(figures),
    }
    return "\n".join(
        [title, *table, *(f"{name:<{WIDTH}}{text}" for name, text in parts.items() if text)]
    )


def _cells(found: Spread) -> tuple[str, ...]:
    return tuple(f"{v:.2f}" for v in (found.p50, found.p90, found.p99, found.mean, found.max))


def _requests(figures: SimulatedFigures) -> str:
    text = f"{figures.finished} finished, {figures.expired} after their deadline given up, "
    text += f"{counted(figures.preemptions, 'preemption')}; {figures.seconds:.2f} s"
    return text + (f", the first {figures.warm_up:g} s not counted" if figures.warm_up else "")


def _goodput(figures: SimulatedFigures) -> str:
    found = figures.goodput
    if found is None:
        return ""
    limits = ", ".join(f"{name} {limit:g} ms" for name, limit in found.limits.items())
    return f"{found.per_second:.2f}/s; {found.share:.1%} of the requests within {limits}"


def _busy(figures: SimulatedFigures) -> str:
    own = figures.replicas
    text = f"{own.count}, busy {own.busy_share:.1%} of the time"
    text += f" (the busiest {own.busiest_share:.1%})" if own.count > 1 else ""
    return f"{text}, {counted(own.steps, 'step')}"


def _cache(figures: SimulatedFigures) -> str:
    own = figures.replicas
    text = f"{own.cache_share:.1%} used during steps, at most {own.most_cache_share:.1%}; "
    return text + f"{own.hit_share:.1%} of prompt tokens found in it"
