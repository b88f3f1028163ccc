"""What the server is doing now, for the page's line of figures: counters that only grow and what they are
compared with, so that whoever asks twice has rates.
"""

import logging
import time
from dataclasses import dataclass
from functools import partial
from threading import Thread

from gyrfalcon.engine.engine import Engine
from gyrfalcon.measure.roofline import decode_bytes
from gyrfalcon.measure.speed.bench import deployment_of
from gyrfalcon.request import EngineStats
from gyrfalcon.serve.service import Service

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at the server.

    seconds: when, on a clock of its own.
    generated_tokens, steps: since the server began; steps that gave no token are not counted.
    running, waiting: sequences that hold cache, and that wait for it.
    cache_usage: the part of the cache's blocks in use, 0 to 1.
    prompts: of each prompt of the request that was asked for, as long as it is prefilled, its tokens in the
        cache and all of them.
    step_bytes: what the busiest device has to read for one decoding step of the running sequences.
    bandwidth: bytes a second that its memory gives; None until that was measured.
    """

    seconds: float
    generated_tokens: int
    steps: int
    running: int
    waiting: int
    cache_usage: float
    prompts: list[tuple[int, int]]
    step_bytes: int
    bandwidth: float | None


@dataclass(frozen=True, slots=True)
class DecodeBytes:
    """What one decoding step has to read: each weight once, and the keys and values of cached tokens."""

    weights: int
    block: int  # of the cache

    @classmethod
    def of(cls, engine: Engine) -> "DecodeBytes":
        """Those of an engine's model as it is deployed, for its busiest device."""
        deployment, size = deployment_of(engine), engine.config.block_size
        alone = decode_bytes(deployment, 1, 0)
        return cls(alone, decode_bytes(deployment, 1, size) - alone)

    def of_step(self, stats: EngineStats) -> int:
        """Those of a step of all running sequences."""
        return self.weights + self.block * stats.num_used_blocks


class Live:
    """Reads a service. The memory's bandwidth is measured after somebody first looked, at a time without
    requests. On the CPU that takes seconds, on a thread of its own: requests that come meanwhile are
    answered, and it is measured again. A card takes milliseconds between two steps: at the same time as a
    graph is captured nothing else may use it.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._bytes: DecodeBytes | None = None
        self._bandwidth: float | None = None
        self._is_measuring = False

    def reading(self, number: str = "") -> Reading:
        """How things stand, with the request of this number; ApiError 503 while there is no engine."""
        engine, thread = self._service.engine, self._service.thread
        stats = engine.stats()
        if self._bytes is None:
            self._bytes = DecodeBytes.of(engine)
        if self._bandwidth is None and not (self._is_measuring or engine.has_work):
            self._is_measuring = True
            self._begin(engine)
        return Reading(
            seconds=time.monotonic(),
            generated_tokens=thread.num_tokens,
            steps=thread.num_steps,
            running=stats.num_running,
            waiting=stats.num_waiting,
            cache_usage=stats.num_used_blocks / stats.num_blocks,
            prompts=thread.prompt_progress(number),
            step_bytes=self._bytes.of_step(stats),
            bandwidth=self._bandwidth,
        )

    def _begin(self, engine: Engine) -> None:
        if engine.hardware.on_host:
            work = partial(self._measure, engine)
            Thread(target=work, name="bandwidth", daemon=True).start()
        else:
            self._service.thread.between_steps(self._measure)

    def _measure(self, engine: Engine) -> None:
        num_steps = self._service.thread.num_steps
        try:
            bandwidth = engine.hardware.measure_bandwidth()
        except (MemoryError, RuntimeError) as error:  # no room for what it reads; not tried again
            if not self._service.is_draining:  # Python may be ending, and start no threads any more
                log.warning("the memory's bandwidth is not known: %s", error)
            return
        if not engine.has_work and self._service.thread.num_steps == num_steps:
            self._bandwidth = bandwidth
        self._is_measuring = False
