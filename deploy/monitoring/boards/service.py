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
    worst,
)
from deploy.monitoring.panels import (
    MODEL,
    PICTURES,
    POD,
    RATE,
    REPLICA,
    SCRAPED,
    SITE,
    Query,
    Row,
    buckets,
    lines,
    listing,
    number,
    page,
)
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
                Query(f"{AVAILABILITY.series('1h')}{{{SITE}}}", "{{namespace}}"),
                steps=((None, GREEN), (1 - AVAILABILITY_OBJECTIVE, YELLOW), (14.4 * (1 - AVAILABILITY_OBJECTIVE), RED)),
            ),
            number(
                f"Calls over {LATENCY_SECONDS} s",
                f"Share of answered calls, last hour. Objective over 30 days: at most {1 - LATENCY_OBJECTIVE:.0%}.",
                units.PercentUnit,
                Query(f"{LATENCY.series('1h')}{{{SITE}}}", "{{namespace}}"),
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
                Query(f"count({worst('mobilevision_worker_ready')} == 0) or vector(0)", "not ready"),
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
    firing = Row(
        "Alerts",
        [
            listing(
                "Firing alerts",
                "Alerts of this service that fire now. The runbook has a heading for each.",
                Query(f'ALERTS{{alertname=~"Mobilevision.+", alertstate="firing", {SITE}}}', ""),
                columns=("alertname", "severity", "cluster", "namespace", "job", "pod", "instance", "model"),
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
                    Query(f"{AVAILABILITY.series(window)}{{{SITE}}} / {1 - AVAILABILITY_OBJECTIVE:.6g}", window)
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
                    Query(f"{LATENCY.series(window)}{{{SITE}}} / {1 - LATENCY_OBJECTIVE:.6g}", window)
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
                Query(f"sum by (reason) (rate(mobilevision_rejected_total{{{SCRAPED}}}[{RATE}])) > 0", "{{reason}}"),
                stacked=True,
                alert="MobilevisionRefusals",
            ),
            deadlines_missed(),
            lines(
                "Ready workers",
                "Sum over replicas, per model.",
                units.Short,
                Query(f"sum by (model) ({worst('mobilevision_workers')})", "{{model}}"),
                alert="MobilevisionModelNotReady",
            ),
            lines(
                "Restarts, replaced workers and retried batches",
                "In the last five minutes. Restarts and replaced workers are counted where the gateway started "
                "TorchServe (one machine). For pods see the restarts of containers.",
                units.Short,
                Query(f"sum(increase(mobilevision_worker_restarts_total{{{SCRAPED}}}[5m]))", "restarts"),
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
                    f"sum by (grpc_method) (rate(grpc_server_handled_total{{{SCRAPED}}}[{RATE}]))", "{{grpc_method}}"
                ),
            ),
            lines(
                "Calls by caller",
                "unauthenticated: refused for missing or wrong credentials. other: names of certificates and tokens "
                "beyond the first hundred.",
                units.RequestsPerSecond,
                Query(f"sum by (caller) (rate(mobilevision_caller_requests_total{{{SCRAPED}}}[{RATE}]))", "{{caller}}"),
                stacked=True,
            ),
            lines(
                "Share of a caller's calls refused",
                "RESOURCE_EXHAUSTED, by caller: its own limits, or overload.",
                units.PercentUnit,
                Query(
                    "sum by (caller)"
                    f' (rate(mobilevision_caller_requests_total{{{SCRAPED}, code="RESOURCE_EXHAUSTED"}}[{RATE}]))'
                    f" / sum by (caller) (rate(mobilevision_caller_requests_total{{{SCRAPED}}}[{RATE}]))"
                    f" or 0 * sum by (caller) (rate(mobilevision_caller_requests_total{{{SCRAPED}}}[{RATE}]))",
                    "{{caller}}",
                ),
                most=1,
                alert="MobilevisionCallerLimited",
            ),
            lines(
                "Requests that do not arrive whole",
                "By cause: cut_off or no_memory (calls take more than call_megabytes), too_slow, too_many at once.",
                units.RequestsPerSecond,
                Query(f"sum by (cause) (rate(mobilevision_uploads_refused_total{{{SCRAPED}}}[{RATE}]))", "{{cause}}"),
                stacked=True,
                alert="MobilevisionUploadsRefused",
            ),
            lines(
                "Memory of calls",
                "Measured memory that calls take, per replica. Its bound is call_megabytes per gateway process.",
                units.BytesIEC,
                Query(f"sum by ({REPLICA}) (mobilevision_call_memory_bytes{{{SCRAPED}}})", POD),
                alert="MobilevisionUploadsRefused",
            ),
            lines(
                "Recorded calls",
                "Calls to record: written, dropped (too many waited), failed (the disk did not take them).",
                units.RequestsPerSecond,
                Query(
                    f"sum by (outcome) (rate(mobilevision_recorded_calls_total{{{SCRAPED}}}[{RATE}]))", "{{outcome}}"
                ),
                stacked=True,
                alert="MobilevisionRecordingLosesCalls",
            ),
            lines(
                "Restarts of containers",
                "In the last 30 minutes, from kube-state-metrics. Only in Kubernetes.",
                units.Short,
                Query(
                    "sum by (namespace, pod, container) (increase(kube_pod_container_status_restarts_total"
                    f'{{{SCRAPED}, container=~"gateway|kserve-container|torchserve"}}[30m]))',
                    "{{pod}} {{container}}",
                ),
                alert="MobilevisionTorchServeRestarts",
            ),
            lines(
                "TLS files expire in",
                "Time until the first certificate of each file expires. Only with TLS.",
                units.Seconds,
                Query(
                    f"min by (namespace, file) (mobilevision_tls_not_after_timestamp_seconds{{{SCRAPED}}}) - time()",
                    "{{namespace}} {{file}}",
                ),
                alert="MobilevisionCertificateExpires",
            ),
        ],
    )
    return page(
        uid="mobilevision-service",
        title="mobilevision / Service",
        about="Golden signals, objectives, stages, refusals. Start here when an alert fires.",
        rows=[signals, firing, objectives, inside, faults],
        runbook=runbook,
    )
