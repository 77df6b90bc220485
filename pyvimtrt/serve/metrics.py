"""Prometheus metrics of the server. Labels take their values from what the server knows, never from a request, so their
number is bounded.
"""

from __future__ import annotations

import time
from collections import deque

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector

RATE_SECONDS = 10.0  # images a second are those of this long
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """All metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        here = {"registry": self.registry, "namespace": "pyvimtrt"}
        self.requests = Counter(
            "requests",
            "Inference requests answered, by HTTP status or gRPC code.",
            ["model", "protocol", "code"],
            **here,
        )
        self.request_seconds = Histogram(
            "request_seconds",
            "From a request's headers to its answer; over gRPC from its message.",
            ["model", "protocol"],
            buckets=SECONDS,
            **here,
        )
        self.errors = Counter("errors", "Inference requests that got no result, by kind.", ["model", "kind"], **here)
        self.queue_images = Gauge("queue_images", "Images accepted and not yet in the engine.", ["model"], **here)
        self.queue_seconds = Histogram(
            "queue_seconds",
            "From acceptance of a request to the start of its batch.",
            ["model"],
            buckets=SECONDS,
            **here,
        )
        self.batch_images = Histogram("batch_images", "Images in a batch.", ["model"], buckets=IMAGES, **here)
        self.engine_seconds = Histogram(
            "engine_seconds", "Time of a batch in the engine.", ["model"], buckets=SECONDS, **here
        )
        self.images = Counter("images", "Images classified.", ["model"], **here)
        self.images_per_second = Gauge(
            "images_per_second",
            f"Images classified a second, over the last {RATE_SECONDS:.0f} seconds.",
            ["model"],
            **here,
        )
        self.cancelled = Counter(
            "cancelled_requests",
            "Requests whose client was gone, or whose time was over, before the answer.",
            ["model"],
            **here,
        )
        self.restarts = Counter(
            "worker_restarts", "Worker processes that died, each to be replaced.", ["model"], **here
        )
        self.reloads = Counter("reloads", "Engines loaded again.", ["model", "outcome"], **here)
        self.ready = Gauge("model_ready", "1 where the model answers.", ["model"], **here)


class ModelMetrics:
    """The metrics of one model."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self.queue_images = metrics.queue_images.labels(model)
        self.queue_seconds = metrics.queue_seconds.labels(model)
        self.cancelled = metrics.cancelled.labels(model)
        self.restarts = metrics.restarts.labels(model)
        self.ready = metrics.ready.labels(model)
        self._batch_images = metrics.batch_images.labels(model)
        self._engine_seconds = metrics.engine_seconds.labels(model)
        self._images = metrics.images.labels(model)
        self._recent: deque[tuple[float, int]] = deque()
        metrics.images_per_second.labels(model).set_function(self.rate)

    def ran(self, images: int, seconds: float) -> None:
        """Count a batch."""
        self._batch_images.observe(images)
        self._engine_seconds.observe(seconds)
        self._images.inc(images)
        self._recent.append((time.monotonic(), images))
        self._forget()

    def rate(self) -> float:
        """Return the images a second of the last seconds."""
        self._forget()
        return sum(images for _, images in self._recent) / RATE_SECONDS

    def _forget(self) -> None:
        oldest = time.monotonic() - RATE_SECONDS
        while self._recent and self._recent[0][0] < oldest:
            self._recent.popleft()
