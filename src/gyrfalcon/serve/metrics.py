"""What /metrics shows, for Prometheus. A metric that vLLM has with the same meaning has vLLM's name, so that
its dashboards and the endpoint pickers of KServe and llm-d work; others begin with gyrfalcon.
"""

import time
from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from gyrfalcon.engine.engine import Engine
from gyrfalcon.request import Delta, FinishReason
from gyrfalcon.serve.engine_thread import Submission

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FINISH_WORDS = {  # vLLM's
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.ABORTED: "abort",
    FinishReason.ERROR: "error",
}
SECONDS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1,
    2.5,
    5,
    10,
    20,
    40,
    80,
    160,
    640,
)


MODEL = "model_name"  # vLLM's label


class Metrics(Collector):
    """The counters of one server."""

    def __init__(self, model: str) -> None:
        """`model` is the name that vLLM's metrics are labelled with."""
        self._registry, self._model = CollectorRegistry(), model
        self._prompt = self._counter(
            "vllm:prompt_tokens",
            "Tokens of prompts whose first token has come, cached ones included.",
        )
        self._num_generated = 0
        self._preempted = self._counter(
            "vllm:num_preemptions", "Times that a sample's cache was taken for another's."
        )
        self._first_token, self._inter_token, self._whole = Times(), Times(), Times()
        self._queued = Times()
        self._registry.register(self)
        finished = Counter(
            "vllm:request_success",
            "Samples that ended, by their finish reason; abort: their client left.",
            [MODEL, "finished_reason"],
            registry=self._registry,
        )
        self._finished = {
            reason: finished.labels(model, word) for reason, word in FINISH_WORDS.items()
        }
        self._refused = Counter(
            "gyrfalcon:refusals",
            "Answers that were errors, by status and reason.",
            ["status", "reason"],
            registry=self._registry,
        )

    def watch(self, engine: Engine) -> None:
        """Shows what an engine says of itself, too."""
        self._registry.register(_OfEngine(engine, self._model))

    def register(self, collector: Collector) -> None:
        """Shows what another collects, too."""
        self._registry.register(collector)

    def see(self, submission: Submission, prompt: int, delta: Delta) -> None:
        """Counts a delta."""
        now, sample = time.monotonic(), (prompt, delta.index)
        last = submission.last_deltas.get(sample)
        if delta.token is not None:
            self._num_generated += 1
            if last is None:
                self._first_token.observe(now - submission.submitted)
            else:
                self._inter_token.observe(now - last)
        if last is None and delta.index == 0:
            self._prompt.inc(len(submission.prompts[prompt][0]))
        submission.last_deltas[sample] = now
        if delta.finish_reason is not None:
            self._whole.observe(now - submission.submitted)
            self._queued.observe(delta.queued_seconds)
            self._finished[delta.finish_reason].inc()
            self._preempted.inc(delta.num_preemptions)

    def lose(self, submission: Submission, reason: FinishReason) -> None:
        """Counts samples that nobody waits for any more, or that the engine will not end."""
        self._finished[reason].inc(submission.num_unfinished)

    def refuse(self, status: int, reason: str) -> None:
        """Counts an error."""
        self._refused.labels(str(status), reason).inc()

    def text(self) -> bytes:
        """All of it, in Prometheus's text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """What every token adds to, which prometheus_client's own counters would take longer to count."""
        generated = CounterMetricFamily(
            "vllm:generation_tokens", "Tokens that were generated.", labels=[MODEL]
        )
        generated.add_metric([self._model], self._num_generated)
        yield generated
        for times, name, text in (
            (
                self._first_token,
                "vllm:time_to_first_token_seconds",
                "From a request's arrival at the engine to its first token.",
            ),
            (
                self._inter_token,
                "vllm:inter_token_latency_seconds",
                "Between two tokens of a sample.",
            ),
            (
                self._whole,
                "vllm:e2e_request_latency_seconds",
                "From a sample's arrival at the engine to its end.",
            ),
            (
                self._queued,
                "vllm:request_queue_time_seconds",
                "From a sample's arrival at the engine to the step that began to compute it.",
            ),
        ):
            family = HistogramMetricFamily(name, text, labels=[MODEL])
            family.add_metric([self._model], times.buckets(), times.seconds)
            yield family

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, [MODEL], registry=self._registry).labels(self._model)


class Times:
    """A histogram of seconds."""

    def __init__(self) -> None:
        self._counts = [0] * (len(SECONDS) + 1)  # the last: beyond all bounds
        self.seconds = 0.0

    def observe(self, seconds: float) -> None:
        """Counts one."""
        self._counts[bisect_left(SECONDS, seconds)] += 1
        self.seconds += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Each bound with how many were not above it."""
        bounds = [str(float(bound)) for bound in SECONDS] + ["+Inf"]
        return list(zip(bounds, accumulate(self._counts), strict=True))


class _OfEngine(Collector):
    """Asks the engine when it is scraped."""

    def __init__(self, engine: Engine, model: str) -> None:
        self._engine, self._model = engine, model

    def collect(self) -> Iterator[Metric]:
        stats = self._engine.stats()
        gauges = (
            ("vllm:num_requests_running", "Sequences that hold cache.", stats.num_running),
            ("vllm:num_requests_waiting", "Sequences that wait for cache.", stats.num_waiting),
            (
                "vllm:kv_cache_usage_perc",
                "The part of the cache's blocks in use, 0 to 1.",
                stats.num_used_blocks / stats.num_blocks,
            ),
        )
        for name, text, value in gauges:
            yield self._labelled(GaugeMetricFamily(name, text, labels=[MODEL]), value)
        counters = (
            (
                "vllm:prefix_cache_queries",
                "Prompt tokens that were looked up in the cache.",
                stats.num_prompt_tokens,
            ),
            (
                "vllm:prefix_cache_hits",
                "Prompt tokens that were there.",
                stats.num_cached_tokens,
            ),
            ("vllm:spec_decode_num_drafts", "Drafts of tokens.", stats.num_drafts),
            (
                "vllm:spec_decode_num_draft_tokens",
                "Tokens that were drafted.",
                stats.num_draft_tokens,
            ),
            (
                "vllm:spec_decode_num_accepted_tokens",
                "Draft tokens that were the ones picked.",
                stats.num_accepted_tokens,
            ),
        )
        for name, text, value in counters:
            yield self._labelled(CounterMetricFamily(name, text, labels=[MODEL]), value)
        info = GaugeMetricFamily(
            "vllm:cache_config_info",
            "The cache: tokens of a block, and blocks.",
            labels=[MODEL, "block_size", "num_gpu_blocks"],
        )
        shape = [str(self._engine.config.block_size), str(stats.num_blocks)]
        info.add_metric([self._model, *shape], 1)
        yield info

    def _labelled(
        self, family: "GaugeMetricFamily | CounterMetricFamily", value: float
    ) -> "GaugeMetricFamily | CounterMetricFamily":
        family.add_metric([self._model], value)
        return family
