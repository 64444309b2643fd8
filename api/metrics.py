"""The figures of the HTTP API, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"})
#: seconds; the last ones are uploads
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 600)


class ApiMetrics:
    """Requests by route template, method and status, in the registry that is passed in."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        labels = ("route", "method", "status")
        self.requests = Counter("http_requests", "Requests answered.", labels, registry=registry)
        self.durations = Histogram(
            "http_request_duration_seconds",
            "Time until the response began.",
            labels,
            registry=registry,
            buckets=_BUCKETS,
        )
        self.streams = Gauge("http_event_streams", "Open event streams and WebSockets.", registry=registry)

    def count(self, route: str, method: str, status: int, seconds: float) -> None:
        """One request more."""
        # a client may invent methods; a label may not grow with them
        labels = (route, method if method in _METHODS else "OTHER", str(status))
        self.requests.labels(*labels).inc()
        self.durations.labels(*labels).observe(seconds)
