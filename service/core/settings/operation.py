"""Settings: processes, threads, health, shutdown, logs and traces."""

from typing import Literal

from pydantic import BaseModel, Field


class OperationSettings(BaseModel):
    """Processes, threads, health, shutdown, logs and traces."""

    gateway_processes: int = Field(
        default=0,
        ge=0,
        le=64,
        description="Gateway processes that share the gRPC port. Each new connection goes to one of them. 0: 2 on "
        "Linux with 8 cores or more, else 1. Larger values help only if two event loops cannot keep the workers "
        "busy, and make batches smaller.",
    )
    decode_threads: int = Field(
        default=0,
        ge=0,
        le=256,
        description="Threads that decode pictures and encode masks. 0: one per core. With 2 or fewer, small JPEGs are "
        "decoded in the event loop.",
    )
    health_poll_seconds: float = Field(
        default=1.0, gt=0, le=60, description="Interval at which the state of the workers is read."
    )
    drain_delay_seconds: float = Field(
        default=0.0,
        ge=0,
        le=300,
        description="Time between reporting NOT_SERVING and refusing calls, so that load balancers can react.",
    )
    drain_timeout_seconds: float = Field(
        default=30.0, ge=0, le=600, description="Longest wait at shutdown for calls in progress."
    )
    otlp_endpoint: str | None = Field(
        default=None,
        pattern="^https?://",
        description="OTLP/gRPC collector that receives traces, such as http://localhost:4317. Unset: no tracing. Needs "
        "the extra `tracing`.",
    )
    trace_sample_ratio: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Share of the requests that is traced, 0 to 1. A caller that sends a trace context decides for its "
        "own requests.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Lowest level of log lines."
    )
    log_format: Literal["auto", "json", "text"] = Field(
        default="auto",
        description="json: one JSON object per line. text: plain text. auto: text on a terminal, else json.",
    )
