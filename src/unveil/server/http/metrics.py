"""What is measured of a server, as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from unveil.server.http.middleware import Scope
from unveil.server.jobs.service import Service

KIND = "text/plain; version=0.0.4; charset=utf-8"


class Meter:
    """Counts requests, and looks at the queue when it is asked.

    Args:
        service: whose queue it is.
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

    def seen(self, scope: Scope, status: int, seconds: float) -> None:
        """Counts a request; what has no route is one line, so that nobody can make many."""
        route = getattr(scope.get("route"), "path", "none")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._requests.labels(method, route, status or "none").inc()
        self._seconds.labels(route).observe(seconds)

    def collect(self) -> Iterable[Metric]:
        """The queue as it stands."""
        jobs = GaugeMetricFamily("unveil_jobs", "Jobs in each state", labels=["state"])
        for state, count in self._service.queue.counts().items():
            jobs.add_metric([state], count)
        yield jobs
        limit = self._service.queue.limits.waiting
        yield GaugeMetricFamily("unveil_queue_limit", "Jobs that may wait", value=limit)
        yield GaugeMetricFamily("unveil_workers", "Workers that live", value=len(self._service.crew.names()))

    def page(self) -> bytes:
        """All of it."""
        return generate_latest(self._registry)


_METHODS = ("GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH")
