"""The service level objectives, and their recording rules and burn-rate alerts. Change an objective only here.

There are two indicators over all calls with a picture, per cluster, namespace and scrape job (outside Kubernetes there
is only the job):

* availability: the share of valid calls that were answered. Calls with a client error and calls that the caller
  cancelled are not valid. A call that was refused because of overload, or missed its deadline, was not answered.
* latency: the share of answered calls that were answered within `LATENCY_SECONDS`, which must be a bucket bound of the
  histogram. Refusals are fast and are not answers, so they do not count.

The alerts follow "multiwindow, multi-burn-rate alerts" in the SRE workbook. The long window shows a significant use of
the error budget, the short window that it still goes on. With few calls a single failure is a large share, so the long
window must also have a number of bad calls. Out: a rule group as plain values, which `generate` writes.
"""

from dataclasses import dataclass

AVAILABILITY_OBJECTIVE = 0.999  # of valid calls over 30 days
LATENCY_OBJECTIVE = 0.99  # of answered calls over 30 days
LATENCY_SECONDS = 0.512
LEAST_BAD_CALLS = 10  # in the long window of an alert; fewer are no trend, however few calls there are

SITE = "cluster, namespace, job"  # one deployment of the service; labels that do not exist do no harm

CLIENT_CODES = "CANCELLED|INVALID_ARGUMENT|NOT_FOUND|PERMISSION_DENIED|UNAUTHENTICATED|UNIMPLEMENTED"
PICTURES = 'method!~"GetModel|ListModels"'
ANSWERED = f'{PICTURES}, outcome="answered"'

WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")

Rule = dict[str, object]
Group = dict[str, object]


@dataclass(frozen=True, slots=True)
class Burn:
    """The error budget of 30 days is used `factor` times too fast over a long and a short window."""

    factor: float
    long: str
    short: str


FAST = (Burn(14.4, "1h", "5m"), Burn(6, "6h", "30m"))  # 2 % of the budget in an hour, 5 % in six
SLOW = (Burn(3, "1d", "2h"), Burn(1, "3d", "6h"))  # 10 % in a day, 10 % in three


@dataclass(frozen=True, slots=True)
class Indicator:
    """A service level indicator. `bad` and `valid` are PromQL sums by `SITE`, with `%s` for the window."""

    name: str
    title: str
    objective: float
    bad: str
    valid: str
    failure: str  # completes the summary "2 % ..."

    def series(self, window: str) -> str:
        """Name of the recorded share of bad calls."""
        return f"mobilevision:{self.name}_errors:ratio_rate{window}"

    def count(self, window: str) -> str:
        """Name of the recorded number of bad calls."""
        return f"mobilevision:{self.name}_errors:increase{window}"


AVAILABILITY = Indicator(
    name="availability",
    title="Availability",
    objective=AVAILABILITY_OBJECTIVE,
    bad=f'sum by ({SITE}) (rate(mobilevision_requests_total{{{PICTURES}, code!~"OK|{CLIENT_CODES}"}}[%s]))',
    valid=f'sum by ({SITE}) (rate(mobilevision_requests_total{{{PICTURES}, code!~"{CLIENT_CODES}"}}[%s]))',
    failure="of the valid calls got no answer",
)
LATENCY = Indicator(
    name="latency",
    title="Latency",
    objective=LATENCY_OBJECTIVE,
    bad=f"sum by ({SITE}) (rate(mobilevision_request_duration_seconds_count{{{ANSWERED}}}[%s]))"
    f" - sum by ({SITE}) (rate(mobilevision_request_duration_seconds_bucket"
    f'{{{ANSWERED}, le="{LATENCY_SECONDS}"}}[%s]))',
    valid=f"sum by ({SITE}) (rate(mobilevision_request_duration_seconds_count{{{ANSWERED}}}[%s]))",
    failure=f"of the answered calls took longer than {LATENCY_SECONDS} s",
)


def group() -> Group:
    """Recording rules and alerts of both indicators. In one group the alerts see the values just recorded."""
    both = (AVAILABILITY, LATENCY)
    rules = [_record(indicator, window) for indicator in both for window in WINDOWS]
    rules += [_record_count(indicator, burn.long) for indicator in both for burn in (*FAST, *SLOW)]
    rules += [
        _alert(indicator, speed, burns) for indicator in both for speed, burns in (("Fast", FAST), ("Slow", SLOW))
    ]
    return {"name": "mobilevision-slo", "rules": rules}


def _record(indicator: Indicator, window: str) -> Rule:
    bad, valid = (text.replace("%s", window) for text in (indicator.bad, indicator.valid))
    # Without failures there is no series of failures. The share must then be 0, not absent.
    return {"record": indicator.series(window), "expr": f"(\n  ({bad})\n  or 0 * {valid}\n)\n/ {valid}"}


def _record_count(indicator: Indicator, window: str) -> Rule:
    bad = indicator.bad.replace("rate(", "increase(").replace("%s", window)
    return {"record": indicator.count(window), "expr": bad}


def _alert(indicator: Indicator, speed: str, burns: tuple[Burn, ...]) -> Rule:
    name = f"Mobilevision{indicator.title}Burns{speed}"
    budget = 1 - indicator.objective
    pairs = [
        f"({indicator.series(burn.long)} > {burn.factor * budget:.6g}"
        f" and {indicator.series(burn.short)} > {burn.factor * budget:.6g}"
        f" and {indicator.count(burn.long)} >= {LEAST_BAD_CALLS})"
        for burn in burns
    ]
    critical = speed == "Fast"
    return {
        "alert": name,
        "expr": "\nor ".join(pairs),
        "for": "2m" if critical else "15m",
        "labels": {"severity": "critical" if critical else "warning", "slo": indicator.name},
        "annotations": {
            "summary": f"{{{{ $value | humanizePercentage }}}} {indicator.failure}",
            "description": (
                f"The objective is {indicator.objective:.4g} over 30 days. At this pace its budget is gone in "
                + ("about two days (1 h window) or five (6 h window)." if critical else "10 to 30 days.")
            ),
        },
    }
