"""The series that gRPC servers report by convention (`grpc_server_*`), as go-grpc-prometheus names them.

In: the start and the end of each RPC, from the gRPC front. Out: Prometheus series. Never sees models or reasons.
"""

from prometheus_client import CollectorRegistry, Counter, Histogram

from service.observability.registry import SECONDS_BUCKETS

_UNARY = "unary"  # label `grpc_type`; all methods of VisionService are of this kind


class GrpcMetrics:
    """Counts RPCs and measures how long the server handles them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ["grpc_type", "grpc_service", "grpc_method"]
        self._started = Counter("grpc_server_started", "RPCs started.", labels, registry=registry)
        self._handled = Counter(
            "grpc_server_handled", "RPCs completed, by code.", [*labels, "grpc_code"], registry=registry
        )
        self._seconds = Histogram(
            "grpc_server_handling_seconds", "Time to handle RPCs.", labels, registry=registry, buckets=SECONDS_BUCKETS
        )

    def started(self, service: str, method: str) -> None:
        """Count an RPC that arrived. `service` is the full name of the proto service."""
        self._started.labels(_UNARY, service, method).inc()

    def ended(self, service: str, method: str, *, code: str, duration_seconds: float) -> None:
        """Record an RPC that ended. `code` is the name of a gRPC status code."""
        self._handled.labels(_UNARY, service, method, code).inc()
        self._seconds.labels(_UNARY, service, method).observe(duration_seconds)
