"""Prometheus metrics of the server."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from unveil.server.http.middleware import Scope
from unveil.server.jobs.service import Service

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class MetricsCollector:
    """Counts requests, and reads the state of the queue when scraped.

    Args:
        service: Service to measure.
    """

    def __init__(self, service: Service) -> None:
        self._service, self._registry = service, CollectorRegistry()
        ProcessCollector(registry=self._registry)
        labels = ("method", "route", "status")
        self._requests = Counter("unveil_http_requests", "Requests that were answered", labels, registry=self._registry)
        self._seconds = Histogram(
            "unveil_http_request_seconds", "Until they were answered", labels[1:2], registry=self._registry
        )
        self._registry.register(self)

    def count_request(self, scope: Scope, status: int, seconds: float) -> None:
        """Count a request; those without a route share one label, which bounds the number of labels."""
        route = getattr(scope.get("route"), "path", "none")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._requests.labels(method, route, status or "none").inc()
        self._seconds.labels(route).observe(seconds)

    def collect(self) -> Iterable[Metric]:
        """Yield the current state of the queue."""
        jobs = GaugeMetricFamily("unveil_jobs", "Jobs in each state", labels=["state"])
        for state, count in self._service.queue.counts().items():
            jobs.add_metric([state], count)
        yield jobs
        limit = self._service.queue.limits.waiting
        yield GaugeMetricFamily("unveil_queue_limit", "Maximum number of queued jobs", value=limit)
        yield GaugeMetricFamily("unveil_workers", "Running workers", value=len(self._service.workers.names()))

    def page(self) -> bytes:
        """Return all metrics as text."""
        return generate_latest(self._registry)


_METHODS = ("GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH")
