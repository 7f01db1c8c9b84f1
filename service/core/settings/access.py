"""Settings: who may call, and what one caller may use."""

import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, field_validator, model_validator

# A name appears in logs and metrics. The colon is left out: it marks names from certificates and tokens.
_KEY_OF_CALLER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}:[0-9a-f]{64}")


class AccessSettings(BaseModel):
    """Who may call, and what one caller may use. docs/access.md explains them."""

    anonymous: Literal["loopback", "allow", "deny"] = Field(
        default="loopback",
        description="Whether calls without credentials are answered. loopback: only if grpc_host is a loopback "
        "address. allow: always. deny: never.",
    )
    callers_file: Path | None = Field(
        default=None,
        description="TOML or JSON file with the callers: names, digests of API keys, models, limits (docs/access.md). "
        "At most 1000 callers and 1 MiB. The server reads it again when it changes.",
    )
    access_keys: tuple[str, ...] = Field(
        default=(),
        max_length=100,
        description="Callers with API keys, without a file: NAME:SHA256, as `mobilevision keys new` prints it. Such a "
        "caller may use all models.",
    )
    jwt_keys: Path | None = Field(
        default=None,
        description="Keys that verify tokens (JWT): a JWKS file, or a PEM file with one public key. The server reads "
        "it again when it changes. Unset: no tokens. Needs the extra `jwt`.",
    )
    jwt_issuer: str | None = Field(
        default=None, min_length=1, description="Issuer (`iss`) that tokens must have. Required with `jwt_keys`."
    )
    jwt_audience: str | None = Field(
        default=None, min_length=1, description="Audience (`aud`) that tokens must have. Required with `jwt_keys`."
    )
    health_access: Literal["open", "callers"] = Field(
        default="open",
        description="Who may ask grpc.health.v1. open: everybody, as probes of load balancers and of the kubelet need "
        "it. callers: who may call. Health watches without a client certificate then end with UNIMPLEMENTED.",
    )
    reflection_access: Literal["callers", "open", "off"] = Field(
        default="callers",
        description="Who may list the methods by gRPC reflection. callers: who may call. open: everybody. off: nobody.",
    )
    caller_requests_per_second: float = Field(
        default=0.0,
        ge=0,
        le=1e6,
        description="Calls per second of one caller and gateway process, on average. All anonymous calls are one "
        "caller. 0: no limit.",
    )
    caller_burst: int = Field(
        default=0,
        ge=0,
        le=10**6,
        description="Calls of one caller that may come at once under `caller_requests_per_second`. 0: those of one "
        "second, at least one.",
    )
    caller_inflight_requests: int = Field(
        default=0,
        ge=0,
        le=100_000,
        description="Calls of one caller in work at once per gateway process. 0: only max_inflight_requests "
        "limits them.",
    )
    caller_inflight_megabytes: int = Field(
        default=0,
        ge=0,
        le=2**20,
        description="Bytes of the requests of one caller in work at once, in MiB, per gateway process. A request has "
        "up to max_image_bytes: 64 hold three of 20 MiB. 0: no limit.",
    )

    @field_validator("access_keys")
    @classmethod
    def _names_and_digests(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for number, entry in enumerate(value, 1):
            if not _KEY_OF_CALLER.fullmatch(entry):
                # Not the entry: an operator may have put the key there in place of its digest.
                raise ValueError(f"entry {number} is not NAME:SHA256; `mobilevision keys new NAME` prints such a line")
        return value

    @model_validator(mode="after")
    def _tokens_are_whole(self) -> "AccessSettings":
        if len({value is None for value in (self.jwt_keys, self.jwt_issuer, self.jwt_audience)}) > 1:
            raise ValueError("jwt_keys, jwt_issuer and jwt_audience go together")
        return self
