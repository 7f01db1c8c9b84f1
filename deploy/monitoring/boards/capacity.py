"""The dashboard for capacity and cost: answers, hardware and money."""

from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.monitoring.boards.shared import ANSWERS, GATEWAYS, REQUESTS, pictures_answered
from deploy.monitoring.panels import ANSWERED, NAMESPACE, RATE, Query, Row, lines, number, page, text_variable


def dashboard(runbook: str) -> Dashboard:
    """Build the dashboard. `runbook` is the address of the runbook."""
    cores = (
        f"sum(rate(container_cpu_usage_seconds_total{{{NAMESPACE}, "
        f'container=~"gateway|kserve-container|torchserve", image!=""}}[{RATE}]))'
    )
    busy = f"{_device('DCGM_FI_DEV_GPU_UTIL')} / 100 or mobilevision_gpu_utilization_ratio{{{NAMESPACE}}}"
    gateway_cores = (
        f"sum(rate(process_cpu_seconds_total{{{NAMESPACE}}}[{RATE}]) and on (namespace, job, instance) {GATEWAYS})"
    )
    per_hour = f"$price_per_hour * count({GATEWAYS})"
    per_million = f"1e6 * {per_hour} / (3600 * {ANSWERS})"
    money = Row(
        "Capacity and cost",
        [
            pictures_answered(),
            number(
                "Replicas", "Gateways that Prometheus scrapes.", units.Short, Query(f"count({GATEWAYS})", "replicas")
            ),
            number(
                "Pictures per second per replica",
                "Answers per second divided by the replicas.",
                units.RequestsPerSecond,
                Query(f"{ANSWERS} / count({GATEWAYS})", "per replica"),
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
                Query(f"count({GATEWAYS})", "replicas"),
                width=12,
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
                "Resident memory per replica, shared memory included.",
                units.BytesIEC,
                Query(
                    f"process_resident_memory_bytes{{{NAMESPACE}}} and on (namespace, job, instance) {GATEWAYS}",
                    "{{instance}}",
                ),
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
                Query(busy, "{{instance}} {{gpu}}"),
                most=1,
            ),
            lines(
                "Memory used",
                "Share of the memory of the device.",
                units.PercentUnit,
                Query(
                    f"mobilevision:gpu_memory_used:ratio{{{NAMESPACE}}}"
                    f" or mobilevision:gpu_memory_used:ratio{{exported_{NAMESPACE}}}",
                    "{{instance}} {{gpu}}",
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


def _device(metric: str) -> str:
    # Where Prometheus sets labels of the same name, DCGM's labels of the container have the prefix `exported_`.
    ours = f'{metric}{{{NAMESPACE}, container="torchserve"}}'
    return f'({ours} or {metric}{{exported_{NAMESPACE}, exported_container="torchserve"}})'
