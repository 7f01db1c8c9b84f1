"""The gate of `mobilevision models promote --prometheus` as an AnalysisTemplate of Argo Rollouts.

Out: the object as plain values. Each check is a metric with the same query and the same limit as on the command line.
The arguments are the model, the namespace, the two versions, the window, the address of Prometheus and the limits.
"""

from typing import Any

from service.cli import fleet_queries

PROMETHEUS = "http://prometheus-operated.monitoring.svc:9090"
MATCH = 'model="{{args.model}}", namespace="{{args.namespace}}"'


def template() -> dict[str, Any]:
    """The AnalysisTemplate."""
    given = [{"name": name} for name in ("model", "namespace", "stable", "candidate")]
    defaults = {"window": "1h", "prometheus": PROMETHEUS}
    limits = {_argument(check): f"{check.limit:g}" for check in fleet_queries.CHECKS}
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "AnalysisTemplate",
        "metadata": {"name": "mobilevision-candidate", "labels": {"app.kubernetes.io/name": "mobilevision"}},
        "spec": {
            "args": given + [{"name": name, "value": value} for name, value in (defaults | limits).items()],
            "metrics": [_metric(check) for check in fleet_queries.CHECKS],
        },
    }


def _argument(check: fleet_queries.Check) -> str:
    return f"{'least' if check.is_floor else 'most'}-{check.name}"


def _metric(check: fleet_queries.Check) -> dict[str, Any]:
    query = fleet_queries.filled(
        check.query,
        match=MATCH,
        stable="{{args.stable}}",
        candidate="{{args.candidate}}",
        window="{{args.window}}",
    )
    limit = f"{'>=' if check.is_floor else '<='} {{{{args.{_argument(check)}}}}}"
    return {
        "name": check.name,
        # No data and NaN do not pass.
        "successCondition": f"len(result) > 0 && !isNaN(result[0]) && result[0] {limit}",
        "provider": {"prometheus": {"address": "{{args.prometheus}}", "query": query}},
    }
