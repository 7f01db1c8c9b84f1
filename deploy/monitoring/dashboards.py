"""The three dashboards: the service (golden signals), its models, and what it costs."""

from collections.abc import Callable

from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.monitoring.panels import (
    ANSWERED,
    MODEL,
    NAMESPACE,
    PICTURES,
    RATE,
    Query,
    Row,
    buckets,
    lines,
    listing,
    number,
    page,
    text_variable,
)
from deploy.monitoring.slo import AVAILABILITY, AVAILABILITY_OBJECTIVE, LATENCY, LATENCY_OBJECTIVE, LATENCY_SECONDS

GREEN, YELLOW, RED = "green", "orange", "red"
REQUESTS, DURATION, STAGES = (
    "mobilevision_requests_total",
    "mobilevision_request_duration_seconds",
    "mobilevision_stage_duration_seconds",
)
ANSWERS = f"sum(rate({REQUESTS}{{{ANSWERED}}}[{RATE}]))"
# Gateways are the processes that export our gauges; process_* alone would count every exporter of the cluster.
GATEWAYS = f"mobilevision_inflight_requests{{{NAMESPACE}}}"


def _device(metric: str) -> str:
    # DCGM's labels about the container that has the device are prefixed where Prometheus has its own of that name.
    ours = f'{metric}{{{NAMESPACE}, container="torchserve"}}'
    return f'({ours} or {metric}{{exported_{NAMESPACE}, exported_container="torchserve"}})'


def _quantile(share: float, metric: str, labels: str, by: str) -> str:
    return f"histogram_quantile({share}, sum by (le, {by}) (rate({metric}_bucket{{{labels}}}[{RATE}])))"


def _mean(metric: str, labels: str, by: str) -> str:
    total, count = (f"sum by ({by}) (rate({metric}_{part}{{{labels}}}[{RATE}]))" for part in ("sum", "count"))
    return f"{total} / {count}"


def service(runbook: str) -> Dashboard:
    """Is it well, and if not, which stage."""
    signals = Row(
        "Golden signals",
        [
            number("Pictures answered", "Answers per second, now.", units.RequestsPerSecond, Query(ANSWERS, "answers")),
            number(
                "Calls without an answer",
                f"Share of valid calls that failed over the last hour. Objective over 30 days: at most "
                f"{1 - AVAILABILITY_OBJECTIVE:.2%}.",
                units.PercentUnit,
                Query(f"{AVAILABILITY.series('1h')}{{{NAMESPACE}}}", "{{namespace}}"),
                steps=((None, GREEN), (1 - AVAILABILITY_OBJECTIVE, YELLOW), (14.4 * (1 - AVAILABILITY_OBJECTIVE), RED)),
            ),
            number(
                f"Calls over {LATENCY_SECONDS} s",
                f"Share of calls over the last hour. Objective over 30 days: at most {1 - LATENCY_OBJECTIVE:.0%}.",
                units.PercentUnit,
                Query(f"{LATENCY.series('1h')}{{{NAMESPACE}}}", "{{namespace}}"),
                steps=((None, GREEN), (1 - LATENCY_OBJECTIVE, YELLOW), (14.4 * (1 - LATENCY_OBJECTIVE), RED)),
            ),
            number(
                "p95 latency",
                "From the door to the answer, all models.",
                units.Seconds,
                Query(f"histogram_quantile(0.95, sum by (le) (rate({DURATION}_bucket{{{PICTURES}}}[{RATE}])))", "p95"),
            ),
            number("In work", "Pictures inside all gateways.", units.Short, Query(f"sum({GATEWAYS})", "in work")),
            number(
                "Models not answering",
                "Pairs of replica and model without a ready worker.",
                units.Short,
                Query(f"count(mobilevision_worker_ready{{{MODEL}}} == 0) or vector(0)", "not ready"),
                steps=((None, GREEN), (1, RED)),
            ),
            lines(
                "Calls by outcome",
                "gRPC codes. Everything but OK has its reason in the panel of refusals.",
                units.RequestsPerSecond,
                Query(f"sum by (code) (rate({REQUESTS}{{{PICTURES}}}[{RATE}]))", "{{code}}"),
                stacked=True,
            ),
            lines(
                "Latency",
                "From the door to the answer, failed calls included.",
                units.Seconds,
                *(
                    Query(
                        f"histogram_quantile({share}, sum by (le) (rate({DURATION}_bucket{{{PICTURES}}}[{RATE}])))",
                        f"p{share * 100:.3g}",
                    )
                    for share in (0.5, 0.95, 0.99)
                ),
                alert="MobilevisionLatencyBurnsFast",
            ),
            buckets(
                "Latency, all calls",
                "Calls per second in each bucket of the latency. Dots are exemplars: each is a trace.",
                units.Seconds,
                Query(f"sum by (le) (rate({DURATION}_bucket{{{PICTURES}}}[{RATE}]))", "{{le}}"),
            ),
        ],
    )
    objectives = Row(
        "Objectives",
        [
            lines(
                "Availability budget burn",
                "How many times too fast the 30-day budget burns, per window. 14.4 over 1 h and 5 m pages.",
                units.Short,
                *(
                    Query(f"{AVAILABILITY.series(window)}{{{NAMESPACE}}} / {1 - AVAILABILITY_OBJECTIVE:.6g}", window)
                    for window in ("5m", "1h", "6h", "3d")
                ),
                width=12,
                alert="MobilevisionAvailabilityBurnsFast",
            ),
            lines(
                "Latency budget burn",
                f"The same for calls over {LATENCY_SECONDS} s.",
                units.Short,
                *(
                    Query(f"{LATENCY.series(window)}{{{NAMESPACE}}} / {1 - LATENCY_OBJECTIVE:.6g}", window)
                    for window in ("5m", "1h", "6h", "3d")
                ),
                width=12,
                alert="MobilevisionLatencyBurnsFast",
            ),
        ],
    )
    inside = Row(
        "Where the time goes",
        [
            lines(
                "Mean seconds per stage",
                "Answered pictures. queue = too little capacity, inference = the model, decode = large pictures, "
                "transport = TorchServe's JVM.",
                units.Seconds,
                Query(_mean(STAGES, MODEL, "stage"), "{{stage}}"),
                stacked=True,
            ),
            lines(
                "p95 per stage",
                "Answered pictures.",
                units.Seconds,
                Query(_quantile(0.95, STAGES, MODEL, "stage"), "{{stage}}"),
            ),
            buckets(
                "Batch sizes",
                "Batches per second by the pictures in them. Large batches under load are right.",
                units.Short,
                Query(f"sum by (le) (rate(mobilevision_batch_size_bucket{{{MODEL}}}[{RATE}]))", "{{le}}"),
            ),
            lines(
                "Why batches left",
                "idle: a slot was free and everything that waited went; full: the batch was as large as allowed; "
                "deadline: a larger batch would have missed a deadline.",
                "batches/s",
                Query(f"sum by (reason) (rate(mobilevision_dispatch_total{{{MODEL}}}[{RATE}]))", "{{reason}}"),
                stacked=True,
            ),
            lines(
                "Pictures waiting",
                "Sum over replicas, per model.",
                units.Short,
                Query(f"sum by (model) (mobilevision_queue_length{{{MODEL}}})", "{{model}}"),
            ),
            lines(
                "Oldest picture waiting",
                "Worst replica, per model.",
                units.Seconds,
                Query(f"max by (model) (mobilevision_queue_age_seconds{{{MODEL}}})", "{{model}}"),
                alert="MobilevisionQueueAge",
            ),
        ],
    )
    faults = Row(
        "Refusals and faults",
        [
            lines(
                "Refusals and failures by reason",
                "Every call without an answer, by the reason its caller was told.",
                units.RequestsPerSecond,
                Query(f"sum by (reason) (rate(mobilevision_rejected_total{{{NAMESPACE}}}[{RATE}])) > 0", "{{reason}}"),
                stacked=True,
                alert="MobilevisionRefusals",
            ),
            lines(
                "Deadlines missed",
                "Calls whose deadline passed before the answer; refused: accepted first, then not, since batches took "
                "longer than predicted.",
                units.RequestsPerSecond,
                Query(f"sum by (model) (rate(mobilevision_deadline_missed_total{{{MODEL}}}[{RATE}]))", "{{model}}"),
                Query(
                    f"sum by (model) (rate(mobilevision_refused_late_total{{{MODEL}}}[{RATE}]))", "{{model}}, refused"
                ),
                alert="MobilevisionDeadlineMisses",
            ),
            lines(
                "Ready workers",
                "Sum over replicas, per model.",
                units.Short,
                Query(f"sum by (model) (mobilevision_workers{{{MODEL}}})", "{{model}}"),
                alert="MobilevisionModelNotReady",
            ),
            lines(
                "TorchServe restarts, batches sent again",
                "In the last five minutes.",
                units.Short,
                Query(f"sum(increase(mobilevision_worker_restarts_total{{{NAMESPACE}}}[5m]))", "restarts"),
                Query(f"sum(increase(mobilevision_batches_retried_total{{{MODEL}}}[5m]))", "batches sent again"),
                alert="MobilevisionTorchServeRestarts",
            ),
            lines(
                "Shared memory slots",
                "used: with a picture or an answer in them; quarantined: a late worker may still write there.",
                units.Short,
                Query(f"sum by (kind, state) (mobilevision_shm_slots{{{MODEL}}})", "{{kind}} {{state}}"),
                stacked=True,
                alert="MobilevisionSharedMemoryExhausted",
            ),
            lines(
                "gRPC calls of all services",
                "Health checks and reflection included.",
                units.RequestsPerSecond,
                Query(
                    f"sum by (grpc_method) (rate(grpc_server_handled_total{{{NAMESPACE}}}[{RATE}]))", "{{grpc_method}}"
                ),
            ),
        ],
    )
    return page(
        uid="mobilevision-service",
        title="mobilevision / Service",
        about="Golden signals, objectives, stages, refusals. Start here when an alert fires.",
        rows=[signals, objectives, inside, faults],
        runbook=runbook,
    )


def models(runbook: str) -> Dashboard:
    """The same questions model by model, and which versions serve."""
    served = Row(
        "Served",
        [
            listing(
                "Models and versions",
                "What is served, from the model cards. Two versions of a model mean a rollout is under way.",
                Query(
                    "count by (model, version, task, family, variant, head, weights) "
                    f"(mobilevision_model_info{{{MODEL}}})",
                    "",
                ),
                columns=("model", "version", "task", "family", "variant", "head", "weights", "Value"),
            ),
            lines(
                "Replicas per version",
                "Which version serves on how many replicas.",
                units.Short,
                Query(f"count by (model, version) (mobilevision_model_info{{{MODEL}}})", "{{model}} {{version}}"),
                stacked=True,
            ),
            lines(
                "Share of replicas that answer",
                "1 = every replica has a ready worker.",
                units.PercentUnit,
                Query(f"avg by (model) (mobilevision_worker_ready{{{MODEL}}})", "{{model}}"),
                most=1,
                alert="MobilevisionReplicaNotReady",
            ),
            lines(
                "Share of replicas with shared memory",
                "1 = every replica hands pictures to its workers in shared memory; less: some send them inside calls.",
                units.PercentUnit,
                Query(f"avg by (model) (mobilevision_shm_in_use{{{MODEL}}})", "{{model}}"),
                most=1,
            ),
        ],
    )
    traffic = Row(
        "Traffic",
        [
            lines(
                "Answers per second",
                "Pictures answered.",
                units.RequestsPerSecond,
                Query(f"sum by (model) (rate({REQUESTS}{{{ANSWERED}}}[{RATE}]))", "{{model}}"),
            ),
            lines(
                "Share of calls without an answer",
                "All codes but OK, the callers' own mistakes included.",
                units.PercentUnit,
                Query(
                    f"1 - sum by (model) (rate({REQUESTS}{{{ANSWERED}}}[{RATE}]))"
                    f" / sum by (model) (rate({REQUESTS}{{{PICTURES}}}[{RATE}]))",
                    "{{model}}",
                ),
            ),
            lines(
                "p95 latency",
                "From the door to the answer.",
                units.Seconds,
                Query(_quantile(0.95, DURATION, PICTURES, "model"), "{{model}}"),
            ),
        ],
    )
    inference_seconds = _mean(STAGES, f'{MODEL}, stage="inference"', "model")
    work = Row(
        "Work",
        [
            lines(
                "Inference, mean seconds",
                "Of the batch a picture was in, as the worker measured it.",
                units.Seconds,
                Query(inference_seconds, "{{model}}"),
            ),
            lines(
                "Predicted seconds per batch, and the error",
                "What the batcher plans with. An error near the prediction means that it plans blindly.",
                units.Seconds,
                Query(_mean("mobilevision_predicted_batch_seconds", MODEL, "model"), "{{model}}"),
                Query(_mean("mobilevision_prediction_error_seconds", MODEL, "model"), "{{model}}, error"),
            ),
            lines(
                "Mean batch size",
                "Pictures per batch.",
                units.Short,
                Query(_mean("mobilevision_batch_size", MODEL, "model"), "{{model}}"),
            ),
            lines(
                "Queueing, p95",
                "Seconds between decoded and dispatched.",
                units.Seconds,
                Query(_quantile(0.95, STAGES, f'{MODEL}, stage="queue"', "model"), "{{model}}"),
                alert="MobilevisionQueueAge",
            ),
            lines(
                "Deadlines missed",
                "Calls whose deadline passed before the answer; refused: accepted first, then not, since batches took "
                "longer than predicted.",
                units.RequestsPerSecond,
                Query(f"sum by (model) (rate(mobilevision_deadline_missed_total{{{MODEL}}}[{RATE}]))", "{{model}}"),
                Query(
                    f"sum by (model) (rate(mobilevision_refused_late_total{{{MODEL}}}[{RATE}]))", "{{model}}, refused"
                ),
                alert="MobilevisionDeadlineMisses",
            ),
            lines(
                "Busy share of the workers",
                "Batches per second x mean seconds of a batch / ready workers; near 1 the model is saturated. Seconds "
                "are averaged over pictures, so large batches weigh more: an upper estimate.",
                units.PercentUnit,
                Query(
                    f"sum by (model) (rate(mobilevision_batch_size_count{{{MODEL}}}[{RATE}]))"
                    f" * ({inference_seconds})"
                    f" / sum by (model) (mobilevision_workers{{{MODEL}}})",
                    "{{model}}",
                ),
            ),
        ],
    )
    by_version = "{{model}} {{version}}"
    rollout = Row(
        "Roll-out",
        [
            lines(
                "Share of the requests per version",
                "What the roll-out file gives each version. Less than all for the stable one: a candidate is tried.",
                units.PercentUnit,
                Query(
                    f"avg by (model, version, role) (mobilevision_version_share{{{MODEL}}})",
                    "{{model}} {{version}}, {{role}}",
                ),
                most=1,
                alert="MobilevisionRolloutStalled",
            ),
            lines(
                "Answers per second and version",
                "Passed on: the candidate refused, failed or took too long, and the stable version answered.",
                units.RequestsPerSecond,
                Query(
                    f"sum by (model, version, outcome) (rate(mobilevision_version_requests_total{{{MODEL}}}[{RATE}]))",
                    "{{model}} {{version}}, {{outcome}}",
                ),
            ),
            lines(
                "Agreement of the candidate with the stable version",
                "Mean over the pictures compared in shadow runs: top-1, F1 of the boxes, mean IoU of the class maps.",
                units.PercentUnit,
                Query(
                    _mean("mobilevision_version_agreement", MODEL, "model, stable, candidate, metric"),
                    "{{model}} {{stable}} / {{candidate}}, {{metric}}",
                ),
                most=1,
            ),
            lines(
                "Shadow runs",
                "Pictures run on the candidate only to be compared; dropped: to leave room for callers.",
                units.RequestsPerSecond,
                Query(
                    f"sum by (model, version, outcome) (rate(mobilevision_shadow_runs_total{{{MODEL}}}[{RATE}]))",
                    "{{model}} {{version}}, {{outcome}}",
                ),
            ),
            lines(
                "p95 of an answer per version",
                "In all stages of the version that answered.",
                units.Seconds,
                Query(_quantile(0.95, "mobilevision_version_duration_seconds", MODEL, "model, version"), by_version),
            ),
            lines(
                "Seconds in the model per version",
                "Mean of a batch, shadow runs too.",
                units.Seconds,
                Query(_mean("mobilevision_version_inference_seconds", MODEL, "model, version"), by_version),
            ),
        ],
    )
    return page(
        uid="mobilevision-models",
        title="mobilevision / Models",
        about="Every model by itself: versions, traffic, latency, batches, saturation, roll-outs.",
        rows=[served, traffic, work, rollout],
        runbook=runbook,
    )


def capacity(runbook: str) -> Dashboard:
    """How much it does, on what, for how much money."""
    cores = (
        f"sum(rate(container_cpu_usage_seconds_total{{{NAMESPACE}, "
        f'container=~"gateway|kserve-container|torchserve", image!=""}}[{RATE}]))'
    )
    busy = f"{_device('DCGM_FI_DEV_GPU_UTIL')} / 100 or mobilevision_gpu_utilization_ratio{{{NAMESPACE}}}"
    gateway_cores = (
        f"sum(rate(process_cpu_seconds_total{{{NAMESPACE}}}[{RATE}]) and on (namespace, job, instance) {GATEWAYS})"
    )
    per_hour = f"$price_per_hour * count({GATEWAYS})"
    money = Row(
        "Capacity and cost",
        [
            number("Pictures answered", "Answers per second, now.", units.RequestsPerSecond, Query(ANSWERS, "answers")),
            number("Replicas", "Gateways scraped.", units.Short, Query(f"count({GATEWAYS})", "replicas")),
            number(
                "Pictures per second per replica",
                "Answers per second divided by the replicas.",
                units.RequestsPerSecond,
                Query(f"{ANSWERS} / count({GATEWAYS})", "per replica"),
            ),
            number(
                "Cost per million pictures, now",
                "Replicas x price_per_hour / answers per hour, in its currency. Idle replicas make it dear.",
                units.Short,
                Query(f"1e6 * {per_hour} / (3600 * {ANSWERS})", "per million"),
                width=6,
            ),
            number(
                "Cost per million pictures, at the busiest",
                "The same at the highest five-minute rate of the last day: what it would cost with full replicas.",
                units.Short,
                Query(
                    f"1e6 * {per_hour} / (3600 * max_over_time(sum(rate({REQUESTS}{{{ANSWERED}}}[5m]))[1d:5m]))",
                    "per million",
                ),
                width=6,
            ),
            lines(
                "Cost per million pictures",
                "Over time, in the unit of price_per_hour.",
                units.Short,
                Query(f"1e6 * {per_hour} / (3600 * {ANSWERS})", "per million"),
                width=12,
            ),
            lines(
                "Answers per second and replicas",
                "Replicas should follow the load.",
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
                "Core seconds of the gateway's process (decoding included) per answer.",
                units.Seconds,
                Query(f"{gateway_cores} / {ANSWERS}", "core seconds"),
            ),
            lines(
                "Pictures per second per core",
                "Answers per core second that the containers gateway and torchserve used. Kubernetes only.",
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
        "GPU (from DCGM's exporter, or the gateway itself where it sees the device)",
        [
            lines(
                "Utilisation",
                "Share of the time in which a kernel ran.",
                units.PercentUnit,
                Query(busy, "{{instance}} {{gpu}}"),
                most=1,
            ),
            lines(
                "Memory used",
                "Share of the device's memory.",
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
                "Answers per second divided by the devices seen.",
                units.Short,
                Query(f"{ANSWERS} / count({busy})", "per GPU"),
            ),
        ],
    )
    return page(
        uid="mobilevision-capacity",
        title="mobilevision / Capacity and cost",
        about="Pictures per second per replica, core and GPU, and what a million pictures cost.",
        rows=[money, processor, graphics],
        runbook=runbook,
        variables=[
            text_variable(
                "price_per_hour", "Price of a replica per hour", "In any currency; costs are told in it.", "0.10"
            )
        ],
    )


DASHBOARDS: dict[str, Callable[[str], Dashboard]] = {"service": service, "models": models, "capacity": capacity}
