"""Expressions and panels that several dashboards use."""

from grafana_foundation_sdk.builders import stat, timeseries
from grafana_foundation_sdk.models import units

from deploy.monitoring.panels import ANSWERED, MODEL, RATE, REPLICA, SCRAPED, Query, lines, number

REQUESTS = "mobilevision_requests_total"
DURATION = "mobilevision_request_duration_seconds"
STAGES = "mobilevision_stage_duration_seconds"
ANSWERS = f"sum(rate({REQUESTS}{{{ANSWERED}}}[{RATE}]))"
# Gateways are the processes that export this gauge. process_* alone would count every exporter of the cluster.
GATEWAYS = f"mobilevision_inflight_requests{{{SCRAPED}}}"
REPLICAS = f"count(count by ({REPLICA}) ({GATEWAYS}))"


def quantile(share: float, metric: str, labels: str, by: str) -> str:
    """The `share` (0 to 1) quantile of a histogram, for each value of the labels in `by`."""
    return f"histogram_quantile({share}, sum by (le, {by}) (rate({metric}_bucket{{{labels}}}[{RATE}])))"


def worst(metric: str) -> str:
    """The smallest value of a gauge of a model over the processes of each replica."""
    return f"min by ({REPLICA}, model) ({metric}{{{MODEL}}})"


def mean(metric: str, labels: str, by: str) -> str:
    """The mean of a histogram, for each value of the labels in `by`."""
    total, count = (f"sum by ({by}) (rate({metric}_{suffix}{{{labels}}}[{RATE}]))" for suffix in ("sum", "count"))
    return f"{total} / {count}"


def deadlines_missed() -> timeseries.Panel:
    """The panel of missed deadlines by model."""
    return lines(
        "Deadlines missed",
        "Calls whose deadline passed before the answer. Refused: calls that were accepted and refused later, because "
        "batches took longer than predicted.",
        units.RequestsPerSecond,
        Query(f"sum by (model) (rate(mobilevision_deadline_missed_total{{{MODEL}}}[{RATE}]))", "{{model}}"),
        Query(f"sum by (model) (rate(mobilevision_refused_late_total{{{MODEL}}}[{RATE}]))", "{{model}}, refused"),
        alert="MobilevisionDeadlineMisses",
    )


def pictures_answered() -> stat.Panel:
    """The panel of answers per second."""
    return number("Pictures answered", "Answers per second now.", units.RequestsPerSecond, Query(ANSWERS, "answers"))
