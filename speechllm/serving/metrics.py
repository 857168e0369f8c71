"""Metrics of the server in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = {"namespace": "speechllm", "registry": self.registry}
        self.requests = Counter(
            "requests", "Requests by path and status", ["path", "status"], **own
        )
        self.request_seconds = Histogram(
            "request_seconds", "Time to the end of a response", buckets=_SECONDS, **own
        )
        self.audio_seconds = Counter("audio_seconds", "Audio transcribed", **own)
        self.batch_segments = Histogram(
            "batch_segments", "Segments decoded together", buckets=_SIZES, **own
        )
        self.active = Gauge("active_requests", "Requests in work", **own)
        self.waiting = Gauge("waiting_segments", "Segments in the queue", **own)

    def watch(self, active: Callable[[], int], waiting: Callable[[], int]) -> None:
        """Read the gauges from functions."""
        self.active.set_function(active)
        self.waiting.set_function(waiting)
