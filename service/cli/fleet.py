"""The fleet as a Prometheus sees it: a model in, its versions over all pods and the verdict of the gate out.

The gate passes when every check of `fleet_queries` is within its limit. Only reads, with a limit of time per query.
"""

import json
import math
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import typer
from prometheus_client.samples import Sample

from service.cli import fleet_queries
from service.cli.canary_analysis import CanaryAnalysis, analyze_samples
from service.cli.errors import GateClosed, MetricsUnreachable

TIMEOUT_SECONDS = 10.0  # of one query
MOST_BYTES = 16 * 2**20  # of one answer
_WINDOW = re.compile(r"[1-9]\d*[smhdw]")
_COUNTERS = (
    "version_requests_total",
    "version_duration_seconds_bucket",
    "version_inference_seconds_sum",
    "version_inference_seconds_count",
    "version_agreement_sum",
    "version_agreement_count",
    "shadow_runs_total",
)
_LABELS = "model, version, outcome, le, stable, candidate, metric"

Address = Annotated[
    str | None,
    typer.Option("--prometheus", help="Address of a Prometheus that scrapes all gateways, such as http://HOST:9090."),
]
Namespace = Annotated[
    str | None, typer.Option(help="With --prometheus: the namespace of the gateways [all that Prometheus knows].")
]
Window = Annotated[str, typer.Option(help="With --prometheus: how far back to look, such as 30m, 1h or 1d.")]
Limit = Annotated[
    list[str] | None,
    typer.Option(
        "--limit",
        metavar="CHECK=VALUE",
        help="With --prometheus: another limit of the gate, such as agreement=0.9; repeat it for several ["
        + " ".join(f"{check.name}={check.limit:g}" for check in fleet_queries.CHECKS)
        + "].",
    ),
]


@dataclass(frozen=True, slots=True)
class Verdict:
    """One check of the gate. `value` is None where Prometheus has no data."""

    check: fleet_queries.Check
    value: float | None
    limit: float

    @property
    def passes(self) -> bool:
        """Whether the check is within its limit."""
        return self.check.passes(self.value, self.limit)

    def __str__(self) -> str:
        shown = "no data" if self.value is None else f"{self.value:.4g}"
        wanted = f"at {'least' if self.check.is_floor else 'most'} {self.limit:g}"
        return f"{'pass' if self.passes else 'FAIL'}  {self.check.name}: {shown}, {wanted} ({self.check.meaning})"


class Fleet:
    """All gateways that one Prometheus scrapes. `address` is http(s)://HOST:PORT, `window` a duration such as 1h.

    Raises `typer.BadParameter` for an address or a window that is none.
    """

    def __init__(self, address: str, *, namespace: str | None, window: str) -> None:
        if urllib.parse.urlsplit(address).scheme not in ("http", "https"):
            raise typer.BadParameter(f"{address!r} does not begin with http:// or https://", param_hint="--prometheus")
        if _WINDOW.fullmatch(window) is None:
            raise typer.BadParameter(f"{window!r} is no duration such as 30m, 1h or 1d", param_hint="--window")
        self._address = address.rstrip("/")
        self._namespace = namespace
        self._window = window

    def analysis(self, model: str) -> CanaryAnalysis:
        """The versions of a model over all pods. Raises `NotServed`, `MetricsUnreachable`."""
        match = fleet_queries.match(model, self._namespace)
        share = f"avg by (model, version, role) (mobilevision_version_share{{{match}}})"
        samples = self._samples("mobilevision_version_share", share)
        for name in (f"mobilevision_{counter}" for counter in _COUNTERS):
            samples += self._samples(name, f"sum by ({_LABELS}) (increase({name}{{{match}}}[{self._window}]))")
        return analyze_samples(model, samples)

    def verdicts(self, model: str, *, stable: str, candidate: str, limits: Mapping[str, float]) -> tuple[Verdict, ...]:
        """What each check of the gate says. `limits` are those that differ. Raises `MetricsUnreachable`."""
        match = fleet_queries.match(model, self._namespace)
        found = []
        for check in fleet_queries.CHECKS:
            query = fleet_queries.filled(
                check.query, match=match, stable=stable, candidate=candidate, window=self._window
            )
            values = [sample.value for sample in self._samples(check.name, query) if not math.isnan(sample.value)]
            found.append(Verdict(check, values[0] if values else None, limits.get(check.name, check.limit)))
        return tuple(found)

    def require(self, model: str, *, stable: str, candidate: str, limits: Mapping[str, float]) -> None:
        """Return where the gate passes. Raises `GateClosed`, `MetricsUnreachable`."""
        verdicts = self.verdicts(model, stable=stable, candidate=candidate, limits=limits)
        failed = [str(verdict) for verdict in verdicts if not verdict.passes]
        if failed:
            raise GateClosed(
                f"version {candidate} of {model} does not pass the gate, so nothing was changed: {'; '.join(failed)}. "
                "Wait for more calls, change a limit with --limit, or leave --prometheus out"
            )

    def _samples(self, name: str, query: str) -> list[Sample]:
        """The result of an instant query, as samples of `name`."""
        address = f"{self._address}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        try:
            with urllib.request.urlopen(address, timeout=TIMEOUT_SECONDS) as reply:  # noqa: S310 - http(s) only
                result = json.loads(reply.read(MOST_BYTES))["data"]["result"]
            return [Sample(name, one["metric"], float(one["value"][1])) for one in result]
        except (urllib.error.URLError, OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise MetricsUnreachable(
                f"no answer of a Prometheus from {self._address}: {error}; name its address with --prometheus"
            ) from error


def limits_of(stated: Sequence[str] | None) -> dict[str, float]:
    """Read values of `--limit`. Raises `typer.BadParameter`."""
    known = [check.name for check in fleet_queries.CHECKS]
    limits = {}
    for text in stated or ():
        name, _, value = text.partition("=")
        try:
            limits[name] = float(value)
        except ValueError:
            limits[name] = math.nan
        if name not in known or not math.isfinite(limits[name]):
            raise typer.BadParameter(
                f"{text!r} is not CHECK=VALUE with one of {', '.join(known)}", param_hint="--limit"
            )
    return limits
