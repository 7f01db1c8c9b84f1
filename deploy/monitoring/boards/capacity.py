"""The dashboard for capacity and cost: answers, hardware and money."""

from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.monitoring.boards.shared import ANSWERS, GATEWAYS, REPLICAS, REQUESTS, pictures_answered
from deploy.monitoring.panels import (
    ANSWERED,
    POD,
    RATE,
    REPLICA,
    SCRAPED,
    SITE,
    Query,
    Row,
    lines,
    number,
    page,
    text_variable,
)

CONTAINERS = f'{SCRAPED}, container=~"gateway|kserve-container|torchserve"'
EXPORTED = 'cluster=~"$cluster", exported_namespace=~"$namespace", exported_pod=~"$pod"'
AUTOSCALER = f'{SITE}, horizontalpodautoscaler=~".*mobilevision.*"'


def dashboard(runbook: str) -> Dashboard:
    """Build the dashboard. `runbook` is the address of the runbook."""
    cores = f'sum(rate(container_cpu_usage_seconds_total{{{CONTAINERS}, image!=""}}[{RATE}]))'
    busy = f"{_device('DCGM_FI_DEV_GPU_UTIL')} / 100 or mobilevision_gpu_utilization_ratio{{{SCRAPED}}}"
    gateway_cores = (
        f"sum(rate(process_cpu_seconds_total{{{SCRAPED}}}[{RATE}]) and on (namespace, job, instance) {GATEWAYS})"
    )
    per_hour = f"$price_per_hour * {REPLICAS}"
    per_million = f"1e6 * {per_hour} / (3600 * {ANSWERS})"
    money = Row(
        "Capacity and cost",
        [
            pictures_answered(),
            number(
                "Replicas",
                "Pods (on one machine: servers) that Prometheus scrapes, however many gateway processes each has.",
                units.Short,
                Query(REPLICAS, "replicas"),
            ),
            number(
                "Pictures per second per replica",
                "Answers per second divided by the replicas.",
                units.RequestsPerSecond,
                Query(f"{ANSWERS} / {REPLICAS}", "per replica"),
            ),
            number(
                "Cost per million pictures, now",
                "Replicas x price_per_hour / answers per hour, in the same currency. Idle replicas raise it.",
                units.Short,
                Query(per_million, "per million"),
                width=6,
            ),
            number(
                "Cost per million pictures, at the highest load",
                "The same at the highest five-minute rate of the last day. It estimates the cost with busy replicas.",
                units.Short,
                Query(
                    f"1e6 * {per_hour} / (3600 * max_over_time(sum(rate({REQUESTS}{{{ANSWERED}}}[5m]))[1d:5m]))",
                    "per million",
                ),
                width=6,
            ),
            lines(
                "Cost per million pictures",
                "Replicas x price_per_hour / answers per hour, over time.",
                units.Short,
                Query(per_million, "per million"),
                width=12,
            ),
            lines(
                "Answers per second and replicas",
                "The number of replicas should follow the load.",
                units.Short,
                Query(ANSWERS, "answers per second"),
                Query(REPLICAS, "replicas"),
                width=12,
            ),
            lines(
                "Replicas that the autoscaler wants",
                "From kube-state-metrics. At the maximum, more load is refused. Only in Kubernetes.",
                units.Short,
                Query(
                    f"max by (namespace, horizontalpodautoscaler)"
                    f" (kube_horizontalpodautoscaler_status_desired_replicas{{{AUTOSCALER}}})",
                    "{{horizontalpodautoscaler}}, wanted",
                ),
                Query(
                    f"max by (namespace, horizontalpodautoscaler)"
                    f" (kube_horizontalpodautoscaler_spec_max_replicas{{{AUTOSCALER}}})",
                    "{{horizontalpodautoscaler}}, maximum",
                ),
                width=12,
                alert="MobilevisionAutoscalerAtMaximum",
            ),
            lines(
                "Pods that are not scraped",
                "Targets of the gateways' scrape jobs that do not answer. Their load is in no other panel.",
                units.Short,
                Query(
                    f"sum by (namespace, job) (1 - (up{{{SCRAPED}}}"
                    f" and on (cluster, namespace, job) mobilevision_model_info{{{SITE}}}))",
                    "{{namespace}} {{job}}",
                ),
                width=12,
                alert="MobilevisionPodNotScraped",
            ),
        ],
    )
    processor = Row(
        "CPU",
        [
            lines(
                "Gateway CPU per picture",
                "Core seconds of the gateway process, decoding included, per answer.",
                units.Seconds,
                Query(f"{gateway_cores} / {ANSWERS}", "core seconds"),
            ),
            lines(
                "Pictures per second per core",
                "Answers per core second used by the containers gateway and torchserve. Only in Kubernetes.",
                units.Short,
                Query(f"{ANSWERS} / {cores}", "per core"),
            ),
            lines(
                "Memory of the gateways",
                "Resident memory per replica, the sum over its processes. Shared memory counts once in each process.",
                units.BytesIEC,
                Query(
                    f"sum by ({REPLICA}) (process_resident_memory_bytes{{{SCRAPED}}}"
                    f" and on (namespace, job, instance) {GATEWAYS})",
                    POD,
                ),
            ),
            lines(
                "CPU throttling",
                "Share of the periods in which a container had used up its CPU limit. Only in Kubernetes (cAdvisor).",
                units.PercentUnit,
                Query(
                    f"{_by_container('container_cpu_cfs_throttled_periods_total')}"
                    f" / {_by_container('container_cpu_cfs_periods_total')}",
                    "{{pod}} {{container}}",
                ),
                most=1,
                alert="MobilevisionLatencyBurnsFast",
            ),
        ],
    )
    graphics = Row(
        "GPU (from the DCGM exporter, or from the gateway if it has access to the device)",
        [
            lines(
                "Utilization",
                "Share of the time in which a kernel ran on the device.",
                units.PercentUnit,
                Query(busy, f"{{{{exported_pod}}}} {POD} {{{{gpu}}}}"),
                most=1,
            ),
            lines(
                "Memory used",
                "Share of the memory of the device.",
                units.PercentUnit,
                Query(
                    f'mobilevision:gpu_memory_used:ratio{{{SITE}, exported_namespace=""}}'
                    f" or mobilevision:gpu_memory_used:ratio{{{EXPORTED}}}",
                    f"{{{{exported_pod}}}} {POD} {{{{gpu}}}}",
                ),
                most=1,
                alert="MobilevisionGpuMemoryHigh",
            ),
            lines(
                "Pictures per second per GPU",
                "Answers per second divided by the number of devices.",
                units.Short,
                Query(f"{ANSWERS} / count({busy})", "per GPU"),
            ),
        ],
    )
    return page(
        uid="mobilevision-capacity",
        title="mobilevision / Capacity and cost",
        about="Pictures per second per replica, core and GPU, and the cost of a million pictures.",
        rows=[money, processor, graphics],
        runbook=runbook,
        variables=[
            text_variable(
                "price_per_hour",
                "Price of a replica per hour",
                "In any currency. All costs are in this currency.",
                "0.10",
            )
        ],
    )


def _by_container(counter: str) -> str:
    return f"sum by (namespace, pod, container) (rate({counter}{{{CONTAINERS}}}[{RATE}]))"


def _device(metric: str) -> str:
    # Where Prometheus sets labels of the same name, DCGM's labels of the container have the prefix `exported_`.
    ours = f'{metric}{{{SCRAPED}, container="torchserve"}}'
    return f'({ours} or {metric}{{{EXPORTED}, exported_container="torchserve"}})'
