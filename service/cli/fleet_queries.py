"""PromQL about a candidate beside the stable version, over all gateway processes and pods of a Prometheus.

In: which series (`match`), the versions and a window. Out: expressions with one value each, and the limits of the gate.
`mobilevision models compare` and `promote` ask them, and deploy/monitoring/analysistemplate.yaml has them for Argo
Rollouts. This module never sends a query.
"""

from dataclasses import dataclass
from string import Template

_OF_CANDIDATE = '$match, version="$candidate"'
_REQUESTS = f"mobilevision_version_requests_total{{{_OF_CANDIDATE}}}"
_UNANSWERED = f'mobilevision_version_requests_total{{{_OF_CANDIDATE}, outcome!="answered"}}'
_SHADOW = f'mobilevision_shadow_runs_total{{{_OF_CANDIDATE}, outcome!="dropped"}}'
_FAILED_SHADOW = f'mobilevision_shadow_runs_total{{{_OF_CANDIDATE}, outcome="failed"}}'
_POD = "cluster, namespace, job, pod, instance"  # a pod has several gateway processes with series of their own


@dataclass(frozen=True, slots=True)
class Check:
    """One condition of the gate. `is_floor`: the value must be at least the limit, otherwise at most."""

    name: str
    meaning: str
    query: str
    is_floor: bool
    limit: float

    def passes(self, value: float | None, limit: float) -> bool:
        """Whether the value is within the limit. A missing value and NaN are not."""
        return value is not None and (value >= limit if self.is_floor else value <= limit)


def _increase(series: str) -> str:
    return f"sum(increase({series}[$window]))"


def _p95(version: str) -> str:
    buckets = f'mobilevision_version_duration_seconds_bucket{{$match, version="{version}"}}'
    return f"histogram_quantile(0.95, sum by (le) (rate({buckets}[$window])))"


def _inference(version: str) -> str:
    total, count = (
        f'sum(rate(mobilevision_version_inference_seconds_{part}{{$match, version="{version}"}}[$window]))'
        for part in ("sum", "count")
    )
    return f"({total} / {count})"


def _agreement(part: str) -> str:
    return _increase(f'mobilevision_version_agreement_{part}{{$match, stable="$stable", candidate="$candidate"}}')


CHECKS = (
    Check(
        "pods",
        "share of the pods that serve the candidate",
        f'count(count by ({_POD}) (mobilevision_version_share{{$match, version="$candidate", role="candidate"}}))'
        f" / count(count by ({_POD}) (mobilevision_model_info{{$match}}))",
        is_floor=True,
        limit=1.0,
    ),
    Check("pictures", "pictures compared", _agreement("count"), is_floor=True, limit=100),
    Check(
        "agreement",
        "mean agreement with the stable version",
        f"{_agreement('sum')} / {_agreement('count')}",
        is_floor=True,
        limit=0.95,
    ),
    Check(
        "failures",
        "share of the candidate's requests and shadow runs that had no answer",
        f"({_increase(_UNANSWERED)} + {_increase(_FAILED_SHADOW)}) / ({_increase(_REQUESTS)} + {_increase(_SHADOW)})",
        is_floor=False,
        limit=0.01,
    ),
    # Where the candidate answers no requests (shadow runs only), its inference is compared.
    Check(
        "slowdown",
        "95th percentile of the candidate's time, divided by that of the stable version",
        f"{_p95('$candidate')} / {_p95('$stable')} >= 0 or {_inference('$candidate')} / {_inference('$stable')}",
        is_floor=False,
        limit=1.5,
    ),
)


def match(model: str, namespace: str | None) -> str:
    """The label matchers of the series of a model. `namespace` None: all namespaces."""
    labels = {"model": model} | ({} if namespace is None else {"namespace": namespace})
    return ", ".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())


def filled(query: str, *, match: str, stable: str, candidate: str, window: str) -> str:
    """A query of `CHECKS` with its values. `window` is a PromQL duration such as 1h."""
    return Template(query).substitute(
        match=match, stable=_escaped(stable), candidate=_escaped(candidate), window=window
    )


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
