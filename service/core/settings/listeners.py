"""Settings: the addresses that the server listens on, TLS, and limits of connections."""

from pathlib import Path

from pydantic import BaseModel, Field, model_validator

DEFAULT_GRPC_PORT = 50051
DEFAULT_HTTP_PORT = 50052


class ListenerSettings(BaseModel):
    """The addresses that the server listens on, TLS, and limits of connections."""

    grpc_host: str = Field(
        default="127.0.0.1", description="Address that the gRPC API listens on. 0.0.0.0: all addresses."
    )
    grpc_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description=f"Port of the gRPC API. Unset: {DEFAULT_GRPC_PORT}, or a free port if that is in use.",
    )
    http_host: str = Field(default="127.0.0.1", description="Address that /metrics, /livez and /readyz listen on.")
    http_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description=f"Port of /metrics, /livez and /readyz. Unset: {DEFAULT_HTTP_PORT}, or a free port if that is in "
        "use.",
    )
    tls_certificate: Path | None = Field(
        default=None,
        description="PEM file with the certificate chain of the gRPC port. Unset: no TLS. The server reads it again "
        "when it changes.",
    )
    tls_key: Path | None = Field(
        default=None, description="PEM file with the key of `tls_certificate`. Required with it."
    )
    tls_client_ca: Path | None = Field(
        default=None,
        description="PEM file with the certificates that must have signed the certificates of clients. Unset: clients "
        "need no certificate.",
    )
    max_connection_age_seconds: float = Field(
        default=0.0,
        ge=0,
        le=86_400,
        description="Age at which clients are asked to reconnect, varied by a tenth, so that they find new servers. "
        "Calls in progress finish first, within `upload_timeout_seconds` and `max_deadline_seconds`. Replies that "
        "nobody reads and that have no deadline are held until then. 0: never.",
    )
    max_connection_idle_seconds: float = Field(
        default=300.0,
        ge=1,
        le=86_400,
        description="Time without a call after which a connection is closed. gRPC clients connect again for their next "
        "call.",
    )
    max_connections: int = Field(
        default=1024,
        ge=1,
        le=100_000,
        description="Connections that are open at once on the gRPC port, per gateway process. Further ones are closed "
        "at once. An idle one takes less than 41 KiB, what is counted for a health watch with its connection. Fewer "
        "where the limit of open files (ulimit -n) is below this number and 160 more.",
    )
    max_streams_per_connection: int = Field(
        default=256,
        ge=1,
        le=100_000,
        description="Calls that are open at once on one connection. gRPC clients let further calls wait on their side.",
    )
    max_health_watches: int = Field(
        default=1024,
        ge=1,
        le=100_000,
        description="Health watches that are open at once per gateway process: one per client connection that balances "
        "by health. A watch with its connection holds 41 KiB, so 1024 hold 41 MiB of the 1 GiB of the gateway "
        "container. Further watches end with UNIMPLEMENTED, and gRPC clients then use the connection without health "
        "reports.",
    )
    max_http_connections: int = Field(
        default=32,
        ge=2,
        le=1024,
        description="Connections that are open at once on the HTTP port; the oldest is closed for a new one, and each "
        "after 10 s. A connection has a thread of at most 0.1 MiB, and at most 64 threads run: 6 MiB of the 1 GiB of "
        "the gateway container.",
    )

    @model_validator(mode="after")
    def _tls_is_whole(self) -> "ListenerSettings":
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("tls_client_ca needs tls_certificate and tls_key")
        return self
