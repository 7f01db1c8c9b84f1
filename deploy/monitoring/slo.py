"""The objectives, and the recording rules and burn-rate alerts that follow from them. Change an objective here only.

Two indicators over all calls that carry a picture, per namespace (one series without labels outside Kubernetes):

* availability: of the valid calls (the caller made no mistake and did not hang up) the share that got an answer. A call
  that was refused for want of room, or whose deadline passed, got none.
* latency: the share of calls done within `LATENCY_SECONDS`, which must be an edge of the histogram's buckets.

Alerts after the SRE workbook's multi-window multi-burn-rate recipe: a long window shows that the budget really burns, a
short one that it still does. Out: rule groups as plain values; `generate` writes them.
"""

from dataclasses import dataclass

AVAILABILITY_OBJECTIVE = 0.999  # of valid calls over 30 days
LATENCY_OBJECTIVE = 0.99  # of calls over 30 days
LATENCY_SECONDS = 0.512
LEAST_RATE = 0.01  # calls per second over the last hour: under 36 an hour, one failed call must page nobody

RUNBOOK = "docs/runbook.md"

CLIENT_CODES = "CANCELLED|INVALID_ARGUMENT|NOT_FOUND|PERMISSION_DENIED|UNAUTHENTICATED|UNIMPLEMENTED"
PICTURES = 'method!~"GetModel|ListModels"'

WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")

Rule = dict[str, object]
Group = dict[str, object]


@dataclass(frozen=True, slots=True)
class Burn:
    """The budget of 30 days burns `factor` times too fast, seen over a long and a short window."""

    factor: float
    long: str
    short: str


FAST = (Burn(14.4, "1h", "5m"), Burn(6, "6h", "30m"))  # 2 % of the budget in an hour, 5 % in six
SLOW = (Burn(3, "1d", "2h"), Burn(1, "3d", "6h"))  # 10 % in a day, 10 % in three


@dataclass(frozen=True, slots=True)
class Indicator:
    """`bad` and `valid` are sums by namespace with `%s` for the window."""

    name: str
    title: str
    objective: float
    bad: str
    valid: str
    told: str

    def series(self, window: str) -> str:
        """Name of the recorded share of bad calls."""
        return f"mobilevision:{self.name}_errors:ratio_rate{window}"


AVAILABILITY = Indicator(
    name="availability",
    title="Availability",
    objective=AVAILABILITY_OBJECTIVE,
    bad=f'sum by (namespace) (rate(mobilevision_requests_total{{{PICTURES}, code!~"OK|{CLIENT_CODES}"}}[%s]))',
    valid=f'sum by (namespace) (rate(mobilevision_requests_total{{{PICTURES}, code!~"{CLIENT_CODES}"}}[%s]))',
    told="of the valid calls got no answer",
)
LATENCY = Indicator(
    name="latency",
    title="Latency",
    objective=LATENCY_OBJECTIVE,
    bad=f"sum by (namespace) (rate(mobilevision_request_duration_seconds_count{{{PICTURES}}}[%s]))"
    f' - sum by (namespace) (rate(mobilevision_request_duration_seconds_bucket{{{PICTURES}, le="{LATENCY_SECONDS}"}}[%s]))',
    valid=f"sum by (namespace) (rate(mobilevision_request_duration_seconds_count{{{PICTURES}}}[%s]))",
    told=f"of the calls took longer than {LATENCY_SECONDS} s",
)


def groups() -> list[Group]:
    """Recording rules and alerts of both indicators."""
    found: list[Group] = []
    for indicator in (AVAILABILITY, LATENCY):
        recorded = [_record(indicator, window) for window in WINDOWS]
        if indicator is AVAILABILITY:
            recorded.append({"record": "mobilevision:valid_requests:rate1h", "expr": AVAILABILITY.valid % "1h"})
        found.append({"name": f"mobilevision-{indicator.name}-recording", "rules": recorded})
        alerts = [_alert(indicator, speed, burns) for speed, burns in (("Fast", FAST), ("Slow", SLOW))]
        found.append({"name": f"mobilevision-{indicator.name}-alerts", "rules": alerts})
    return found


def _record(indicator: Indicator, window: str) -> Rule:
    bad, valid = indicator.bad.replace("%s", window), indicator.valid.replace("%s", window)
    # Without a failure there is no series of failures: then the share is 0, not unknown.
    return {"record": indicator.series(window), "expr": f"(\n  ({bad})\n  or 0 * {valid}\n)\n/ {valid}"}


def _alert(indicator: Indicator, speed: str, burns: tuple[Burn, ...]) -> Rule:
    name = f"Mobilevision{indicator.title}Burns{speed}"
    budget = 1 - indicator.objective
    pairs = [
        f"({indicator.series(burn.long)} > {burn.factor * budget:.6g}"
        f" and {indicator.series(burn.short)} > {burn.factor * budget:.6g})"
        for burn in burns
    ]
    page = speed == "Fast"
    return {
        "alert": name,
        "expr": "(\n  " + "\n  or ".join(pairs) + f"\n)\nand mobilevision:valid_requests:rate1h > {LEAST_RATE}",
        "for": "2m" if page else "15m",
        "labels": {"severity": "page" if page else "ticket", "slo": indicator.name},
        "annotations": {
            "summary": f"{{{{ $value | humanizePercentage }}}} {indicator.told}",
            "description": (
                f"The objective is {indicator.objective:.4g} over 30 days. At this pace its budget is gone in "
                + ("about two days (1 h window) or five (6 h window)." if page else "10 to 30 days.")
            ),
            "runbook_url": f"{RUNBOOK}#{name.lower()}",
        },
    }
