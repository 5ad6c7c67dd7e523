"""Counts and times for Prometheus, in a registry of each server's own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """What a server counts."""

    def __init__(self, pool: Any) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registry.register(_Pool(pool))
        self.requests = self._counter("requests", "Requests by path and status.", "path", "status")
        self.tokens = self._counter("tokens", "Tokens read and written.", "model", "kind")
        self.texts = self._counter("texts", "Texts classified or embedded.", "model")
        self.canceled = self._counter("canceled", "Requests whose client went away.")
        self.broken = self._counter("broken", "Streams that ended in an error.")
        self.seconds = self._times("request_seconds", "Time of a request.", "path")
        self.first = self._times("first_token_seconds", "Time to the first token.", "model")

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"attar_{name}", text, labels, registry=self.registry)

    def _times(self, name: str, text: str, *labels: str) -> Histogram:
        return Histogram(f"attar_{name}", text, labels, registry=self.registry, buckets=_SECONDS)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)


class _Pool:
    """Gauges that are read when they are asked for."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    def collect(self) -> Iterable[GaugeMetricFamily]:
        waiting = GaugeMetricFamily(
            "attar_waiting", "Prompts or texts that wait.", labels=["model"]
        )
        running = GaugeMetricFamily("attar_running", "Those under way.", labels=["model"])
        size = GaugeMetricFamily(
            "attar_model_bytes", "Bytes counted of a loaded model.", labels=["model", "of"]
        )
        for name, model in self._pool.loaded().items():
            waiting.add_metric([name], model.load.waiting)
            running.add_metric([name], model.load.running)
            size.add_metric([name, "weights"], model.size)
            size.add_metric([name, "cache"], model.cache)
        return [waiting, running, size]
