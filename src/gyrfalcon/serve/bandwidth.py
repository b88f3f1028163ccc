"""How much of the memory's bandwidth decoding uses, for /metrics: bytes that had to be read, and the most
that the device can read.
"""

from collections.abc import Iterator

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gyrfalcon.serve.live import Live
from gyrfalcon.serve.service import Service


class Bandwidth(Collector):
    """Reads the figures when it is scraped. Steps since the last time are taken to have read as much as one
    of the sequences that run now.
    """

    def __init__(self, service: Service, live: Live) -> None:
        self._service, self._live = service, live
        self._num_steps = self._num_bytes = 0

    def collect(self) -> Iterator[Metric]:
        if not self._service.is_ready:
            return
        reading = self._live.reading()
        self._num_bytes += (reading.steps - self._num_steps) * reading.step_bytes
        self._num_steps = reading.steps
        yield CounterMetricFamily(
            "gyrfalcon:decode_bytes",
            "Bytes of weights and cache that steps had to read, of the busiest device.",
            self._num_bytes,
        )
        if reading.bandwidth is not None:
            yield GaugeMetricFamily(
                "gyrfalcon:memory_bandwidth_bytes_per_second",
                "The most that the device reads; absent until it was measured without load.",
                reading.bandwidth,
            )
