"""The dashboard for the service: golden signals, objectives, time per stage, refusals and faults."""

from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.monitoring.boards.shared import (
    DURATION,
    GATEWAYS,
    REQUESTS,
    STAGES,
    deadlines_missed,
    mean,
    pictures_answered,
    quantile,
)
from deploy.monitoring.panels import MODEL, NAMESPACE, PICTURES, RATE, Query, Row, buckets, lines, number, page
from deploy.monitoring.slo import AVAILABILITY, AVAILABILITY_OBJECTIVE, LATENCY, LATENCY_OBJECTIVE, LATENCY_SECONDS

GREEN, YELLOW, RED = "green", "orange", "red"


def dashboard(runbook: str) -> Dashboard:
    """Build the dashboard. `runbook` is the address of the runbook."""
    signals = Row(
        "Golden signals",
        [
            pictures_answered(),
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
                "From the arrival of the call to its reply, all models.",
                units.Seconds,
                Query(f"histogram_quantile(0.95, sum by (le) (rate({DURATION}_bucket{{{PICTURES}}}[{RATE}])))", "p95"),
            ),
            number(
                "In flight", "Calls in flight in all gateways.", units.Short, Query(f"sum({GATEWAYS})", "in flight")
            ),
            number(
                "Models not answering",
                "Number of pairs of a replica and a model without a ready worker.",
                units.Short,
                Query(f"count(mobilevision_worker_ready{{{MODEL}}} == 0) or vector(0)", "not ready"),
                steps=((None, GREEN), (1, RED)),
            ),
            lines(
                "Calls by outcome",
                "Calls by gRPC code. The panel of refusals has the reasons of all codes except OK.",
                units.RequestsPerSecond,
                Query(f"sum by (code) (rate({REQUESTS}{{{PICTURES}}}[{RATE}]))", "{{code}}"),
                stacked=True,
            ),
            lines(
                "Latency",
                "From the arrival of the call to its reply, failed calls included.",
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
                "Calls per second in each latency bucket. Dots are exemplars, which link to traces.",
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
                "Speed of using the 30-day error budget, per window. 1 uses all of it. 14.4 over 1 h and 5 m pages.",
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
        "Time per stage",
        [
            lines(
                "Mean seconds per stage",
                "Answered pictures. queue: waiting for a worker, long when capacity is short. decode: long for large "
                "pictures. inference: the model. transport: the way to the worker and back.",
                units.Seconds,
                Query(mean(STAGES, MODEL, "stage"), "{{stage}}"),
                stacked=True,
            ),
            lines(
                "p95 per stage",
                "Answered pictures.",
                units.Seconds,
                Query(quantile(0.95, STAGES, MODEL, "stage"), "{{stage}}"),
            ),
            buckets(
                "Batch sizes",
                "Batches per second by number of pictures. Large batches are expected under load.",
                units.Short,
                Query(f"sum by (le) (rate(mobilevision_batch_size_bucket{{{MODEL}}}[{RATE}]))", "{{le}}"),
            ),
            lines(
                "Reasons for dispatch",
                "idle: a worker was free and took all waiting pictures. full: the batch had its largest size. "
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
                "Highest value of all replicas, per model.",
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
                "Every call without an answer, by the reason in its error.",
                units.RequestsPerSecond,
                Query(f"sum by (reason) (rate(mobilevision_rejected_total{{{NAMESPACE}}}[{RATE}])) > 0", "{{reason}}"),
                stacked=True,
                alert="MobilevisionRefusals",
            ),
            deadlines_missed(),
            lines(
                "Ready workers",
                "Sum over replicas, per model.",
                units.Short,
                Query(f"sum by (model) (mobilevision_workers{{{MODEL}}})", "{{model}}"),
                alert="MobilevisionModelNotReady",
            ),
            lines(
                "Restarts, replaced workers and retried batches",
                "In the last five minutes.",
                units.Short,
                Query(f"sum(increase(mobilevision_worker_restarts_total{{{NAMESPACE}}}[5m]))", "restarts"),
                Query(f"sum(increase(mobilevision_worker_replacements_total{{{MODEL}}}[5m]))", "replaced workers"),
                Query(f"sum(increase(mobilevision_batches_retried_total{{{MODEL}}}[5m]))", "retried batches"),
                alert="MobilevisionTorchServeRestarts",
            ),
            lines(
                "Shared memory slots",
                "used: contains a picture or a result. quarantined: a late worker may still write to it.",
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
            lines(
                "Calls by caller",
                "unauthenticated: refused for missing or wrong credentials. other: names of certificates and tokens "
                "beyond the first hundred.",
                units.RequestsPerSecond,
                Query(
                    f"sum by (caller) (rate(mobilevision_caller_requests_total{{{NAMESPACE}}}[{RATE}]))", "{{caller}}"
                ),
                stacked=True,
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
