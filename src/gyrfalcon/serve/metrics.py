"""What /metrics shows, for Prometheus. A metric that vLLM has with the same meaning has vLLM's name, so that
its dashboards and the endpoint pickers of KServe and llm-d work; others begin with gyrfalcon.
"""

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gyrfalcon.engine.engine import Engine
from gyrfalcon.request import Delta
from gyrfalcon.serve.engine_thread import Submission

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
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


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        self._generated = Counter(
            "vllm:generation_tokens", "Tokens that were generated.", registry=registry
        )
        self._first_token = Histogram(
            "vllm:time_to_first_token_seconds",
            "From a request's arrival at the engine to its first token.",
            buckets=SECONDS,
            registry=registry,
        )
        self._inter_token = Histogram(
            "vllm:inter_token_latency_seconds",
            "Between two tokens of a sample.",
            buckets=SECONDS,
            registry=registry,
        )
        self._whole = Histogram(
            "vllm:e2e_request_latency_seconds",
            "From a sample's arrival at the engine to its end.",
            buckets=SECONDS,
            registry=registry,
        )
        self._finished = Counter(
            "vllm:request_success",
            "Samples that ended, by their finish reason.",
            ["finished_reason"],
            registry=registry,
        )
        self._refused = Counter(
            "gyrfalcon:refusals",
            "Answers that were errors, by status.",
            ["status"],
            registry=registry,
        )

    def watch(self, engine: Engine, model: str) -> None:
        """Shows what an engine says of itself, too."""
        self._registry.register(_OfEngine(engine, model))

    def see(self, submission: Submission, delta: Delta) -> None:
        """Counts a delta."""
        now, sample = time.monotonic(), (delta.request_id, delta.index)
        if delta.token is not None:
            self._generated.inc()
            last = submission.last_tokens.get(sample)
            if last is None:
                self._first_token.observe(now - submission.submitted)
            else:
                self._inter_token.observe(now - last)
            submission.last_tokens[sample] = now
        if delta.finish_reason is not None:
            self._whole.observe(now - submission.submitted)
            self._finished.labels(delta.finish_reason.value).inc()

    def refuse(self, status: int) -> None:
        """Counts an error."""
        self._refused.labels(str(status)).inc()

    def text(self) -> bytes:
        """All of it, in Prometheus's text format."""
        return generate_latest(self._registry)


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
            yield self._labelled(GaugeMetricFamily(name, text, labels=["model_name"]), value)
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
        )
        for name, text, value in counters:
            yield self._labelled(CounterMetricFamily(name, text, labels=["model_name"]), value)
        info = GaugeMetricFamily(
            "vllm:cache_config_info",
            "The cache: tokens of a block, and blocks.",
            labels=["block_size", "num_gpu_blocks"],
        )
        info.add_metric([str(self._engine.config.block_size), str(stats.num_blocks)], 1)
        yield info

    def _labelled(
        self, family: "GaugeMetricFamily | CounterMetricFamily", value: float
    ) -> "GaugeMetricFamily | CounterMetricFamily":
        family.add_metric([self._model], value)
        return family
