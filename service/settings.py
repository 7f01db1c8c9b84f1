"""Every setting of the gateway, read once: environment (`MOBILEVISION_*`), then a TOML file, then defaults.

The only module of the service that reads the environment. A `Settings` object is frozen and is handed to
`server`, which gives each part what it needs.
"""

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

DEFAULT_GRPC_PORT = 50051
DEFAULT_HTTP_PORT = 50052


class SettingsError(ValueError):
    """A setting is unknown, of the wrong type or out of its bounds; the message names it."""


class Settings(BaseSettings):
    """Operator-facing configuration. Units are in the names; bounds are enforced."""

    model_config = SettingsConfigDict(env_prefix="MOBILEVISION_", frozen=True, extra="forbid")

    archives: Path = Field(
        default=Path("model_store/archives"), description="Folder with the .mar archives and their cards."
    )
    models: tuple[str, ...] = Field(
        default=(),
        description="Names of the models to serve. Empty: every archive in the folder, if they are six or fewer.",
    )
    default_models: tuple[str, ...] = Field(
        default=(),
        description="Models that answer requests naming none, at most one per task. Empty: official weights before "
        "demo before random ones, then the smallest.",
    )

    rollout_file: Path | None = Field(
        default=None,
        description="File that says which version of a model answers (docs/rollout.md). Watched while serving; it may "
        "be absent. Unset: rollout.json in the archives folder.",
    )

    grpc_host: str = Field(default="127.0.0.1", description="Address the gRPC API listens on; 0.0.0.0 for all.")
    grpc_port: int | None = Field(
        default=None, ge=0, le=65535, description=f"Port of the gRPC API. Unset: {DEFAULT_GRPC_PORT}, or a free one."
    )
    http_host: str = Field(default="127.0.0.1", description="Address of /metrics, /livez and /readyz.")
    http_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description=f"Port of /metrics, /livez and /readyz. Unset: {DEFAULT_HTTP_PORT}, or a free one.",
    )

    tls_certificate: Path | None = Field(
        default=None, description="PEM certificate chain of the gRPC port. Unset: no TLS. Read again when it changes."
    )
    tls_key: Path | None = Field(default=None, description="PEM key of that certificate. Required with it.")
    tls_client_ca: Path | None = Field(
        default=None, description="PEM certificates that clients' certificates must be signed by. Unset: none is asked."
    )
    max_connection_age_seconds: float = Field(
        default=0.0,
        ge=0,
        le=86_400,
        description="Age at which a client is asked to connect anew, give or take a tenth, so that it finds servers "
        "added since. Calls in work are finished. 0: never.",
    )

    max_image_bytes: int = Field(
        default=20 * 2**20, ge=2**10, le=2**30, description="Largest encoded picture accepted, bytes."
    )
    max_image_pixels: int = Field(
        default=100_000_000, ge=1, le=2**31, description="Largest picture accepted, pixels by its header."
    )
    default_deadline_seconds: float = Field(
        default=10.0, gt=0, le=3600, description="Deadline of calls that come without one, seconds."
    )
    gateway_processes: int = Field(
        default=0,
        ge=0,
        le=64,
        description="Processes that share the gRPC port; each new connection goes to one of them. 0: 2 on Linux with 8 "
        "cores or more, else 1. More are for machines whose workers outrun two event loops: batches get smaller.",
    )
    max_inflight_requests: int = Field(
        default=512,
        ge=1,
        le=100_000,
        description="Inference requests in work at once per gateway process; more are refused.",
    )
    max_queue: int = Field(
        default=128,
        ge=1,
        le=100_000,
        description="Pictures waiting per gateway process, model and priority; more are refused.",
    )
    max_batch: int = Field(default=16, ge=1, le=64, description="Most pictures in one batch (the card may say less).")
    batch_timeout_seconds: float = Field(
        default=30.0, gt=0, le=3600, description="Longest wait for one batch before its worker counts as stuck."
    )
    decode_threads: int = Field(
        default=0,
        ge=0,
        le=256,
        description="Threads that decode pictures and encode masks. 0: one per core. Up to 2: small JPEGs need none.",
    )

    workers_per_model: int = Field(
        default=0,
        ge=0,
        le=64,
        description="TorchServe workers per model. 0: two per GPU, else the cores shared among the models, one worker "
        "per GiB of memory at most; 1 for a TorchServe started elsewhere.",
    )
    batches_per_worker: int = Field(
        default=2,
        ge=1,
        le=8,
        description="Batches sent per worker, the one in work included. 2: the next one is there when a worker ends "
        "one, unless a deadline is near. 1: never sent ahead; idle moments between batches.",
    )
    worker_threads: int = Field(
        default=0,
        ge=0,
        le=256,
        description="Torch threads per worker. 0: one, or more where memory leaves fewer workers than cores.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="Number type of the models. auto: float16 on a GPU, bfloat16 on a CPU with AMX, else float32.",
    )
    startup_timeout_seconds: float = Field(
        default=300.0, gt=0, le=3600, description="Longest wait for the models to load at start."
    )
    run_dir: Path | None = Field(
        default=None, description="Folder for TorchServe's private files and logs. Unset: a temporary one."
    )

    torchserve_inference: str | None = Field(
        default=None, description="host:port of a TorchServe started elsewhere (gRPC inference). Unset: start our own."
    )
    torchserve_management: str | None = Field(
        default=None, description="host:port of its gRPC management API. Required with torchserve_inference."
    )
    torchserve_key_file: Path | None = Field(
        default=None, description="Its key_file.json, where it asks for tokens. Read again when it changes."
    )

    shm_megabytes: int = Field(
        default=256,
        ge=0,
        le=2**20,
        description="Most shared memory for pictures and results on their way to TorchServe and back. Grows with the "
        "load and counts as memory of the container. 0: pixels travel inside the calls.",
    )
    shm_dir: Path = Field(
        default=Path("/dev/shm"),  # noqa: S108 - private directories are made in it
        description="Where it lies; a memory file system. A TorchServe started elsewhere needs the same "
        "MOBILEVISION_SHM_DIR, user and mount; where it has not, pixels travel inside the calls.",
    )

    health_poll_seconds: float = Field(default=1.0, gt=0, le=60, description="How often worker state is read.")
    drain_delay_seconds: float = Field(
        default=0.0,
        ge=0,
        le=300,
        description="Wait between reporting NOT_SERVING and refusing calls, so that load balancers notice.",
    )
    drain_timeout_seconds: float = Field(
        default=30.0, ge=0, le=600, description="Longest wait for calls in work at shutdown."
    )
    otlp_endpoint: str | None = Field(
        default=None,
        pattern="^https?://",
        description="OTLP/gRPC collector to send traces to, such as http://localhost:4317. Unset: no tracing. "
        "Needs the extra `tracing`.",
    )
    trace_sample_ratio: float = Field(
        default=0.1, ge=0, le=1, description="Share of the requests traced. A caller that traces decides for its own."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe log line."
    )
    log_format: Literal["auto", "json", "text"] = Field(
        default="auto", description="One JSON object per line, or plain text; auto: text on a terminal."
    )

    @model_validator(mode="after")
    def _external_backend_is_whole(self) -> "Settings":
        if (self.torchserve_inference is None) != (self.torchserve_management is None):
            raise ValueError("torchserve_inference and torchserve_management go together")
        return self

    @model_validator(mode="after")
    def _tls_is_whole(self) -> "Settings":
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("tls_client_ca needs tls_certificate and tls_key")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Command line, then environment, then the TOML file named by `load`."""
        toml = TomlConfigSettingsSource(settings_cls, cls.model_config.get("toml_file"))
        return init_settings, env_settings, toml


def load(config: Path | None = None, **overrides: object) -> Settings:
    """Read the settings; `overrides` (the command line) that are None are left out. Raises `SettingsError`."""
    if config is not None and not config.is_file():
        raise SettingsError(f"settings file {config} does not exist")

    class _FromFile(Settings):
        model_config = SettingsConfigDict(toml_file=config)

    known = set(Settings.model_fields)
    unknown = [
        name
        for name in os.environ
        if name.startswith("MOBILEVISION_") and name.removeprefix("MOBILEVISION_").lower() not in known
    ]
    if unknown:
        raise SettingsError(f"unknown setting in the environment: {', '.join(sorted(unknown))}")
    try:
        return _FromFile(**{name: value for name, value in overrides.items() if value is not None})  # type: ignore[arg-type]
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{config} is not TOML: {error}") from error
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc'])) or 'settings'}: {e['msg']}" for e in error.errors()]
        raise SettingsError("; ".join(lines)) from error


def as_environment(settings: Settings) -> Mapping[str, str]:
    """The environment from which `load` reads the same settings again."""
    values = settings.model_dump(mode="json", exclude_none=True)
    return {
        f"{Settings.model_config['env_prefix']}{name}".upper(): value if isinstance(value, str) else json.dumps(value)
        for name, value in values.items()
    }


def child_environment(**extra: str) -> Mapping[str, str]:
    """The environment to start child processes with: ours without our settings, plus `extra`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MOBILEVISION_")}
    return inherited | extra


def markdown() -> str:
    """The reference page `docs/settings.md`, generated so that it cannot go stale."""
    lines = [
        "# Settings",
        "",
        "Generated by `make docs` from `service/settings.py`. Each setting can be given, in order of precedence, as an",
        "option of `mobilevision serve` (the common ones), as `MOBILEVISION_<NAME>` in the environment (lists as JSON)",
        "or in a TOML file (`mobilevision serve --config FILE`).",
        "",
        "| name | default | meaning |",
        "| --- | --- | --- |",
    ]
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else str(field.default) if field.default != () else "()"
        lines.append(f"| `{name}` | {default and f'`{default}`'} | {field.description} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
