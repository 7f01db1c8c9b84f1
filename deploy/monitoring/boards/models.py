"""The dashboard for models: served versions, traffic, work and rollouts of each model."""

from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.monitoring.boards.shared import DURATION, REQUESTS, STAGES, deadlines_missed, mean, quantile
from deploy.monitoring.panels import ANSWERED, MODEL, PICTURES, RATE, Query, Row, lines, listing, page

SERVED = ("model", "version", "task", "family", "variant", "head", "weights", "engine", "dtype", "device")


def dashboard(runbook: str) -> Dashboard:
    """Build the dashboard. `runbook` is the address of the runbook."""
    served = Row(
        "Served",
        [
            listing(
                "Models and versions",
                "The served models and versions, and what their workers compute with. A model has two versions during "
                "a rollout.",
                Query(f"count by ({', '.join(SERVED)}) (mobilevision_model_info{{{MODEL}}})", ""),
                columns=(*SERVED, "Value"),
            ),
            lines(
                "Replicas per version",
                "Number of replicas that serve each version.",
                units.Short,
                Query(f"count by (model, version) (mobilevision_model_info{{{MODEL}}})", "{{model}} {{version}}"),
                stacked=True,
            ),
            lines(
                "Share of replicas with a ready worker",
                "1: every replica has a ready worker for the model.",
                units.PercentUnit,
                Query(f"avg by (model) (mobilevision_worker_ready{{{MODEL}}})", "{{model}}"),
                most=1,
                alert="MobilevisionReplicaNotReady",
            ),
            lines(
                "Share of replicas with shared memory",
                "1: every replica passes pictures to its workers in shared memory. Below 1: some send them in calls.",
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
                "All codes except OK, client errors included.",
                units.PercentUnit,
                Query(
                    f"1 - sum by (model) (rate({REQUESTS}{{{ANSWERED}}}[{RATE}]))"
                    f" / sum by (model) (rate({REQUESTS}{{{PICTURES}}}[{RATE}]))",
                    "{{model}}",
                ),
            ),
            lines(
                "p95 latency",
                "From the arrival of the call to its reply.",
                units.Seconds,
                Query(quantile(0.95, DURATION, PICTURES, "model"), "{{model}}"),
            ),
        ],
    )
    inference_seconds = mean(STAGES, f'{MODEL}, stage="inference"', "model")
    work = Row(
        "Work",
        [
            lines(
                "Inference, mean seconds",
                "Inference time of a picture's batch, measured by the worker.",
                units.Seconds,
                Query(inference_seconds, "{{model}}"),
            ),
            lines(
                "Predicted seconds per batch, and the error",
                "Prediction of the latency model for the batcher. The error should be small against the prediction.",
                units.Seconds,
                Query(mean("mobilevision_predicted_batch_seconds", MODEL, "model"), "{{model}}"),
                Query(mean("mobilevision_prediction_error_seconds", MODEL, "model"), "{{model}}, error"),
            ),
            lines(
                "Mean batch size",
                "Pictures per batch.",
                units.Short,
                Query(mean("mobilevision_batch_size", MODEL, "model"), "{{model}}"),
            ),
            lines(
                "Queueing, p95",
                "Seconds between the end of decoding and the dispatch of the batch.",
                units.Seconds,
                Query(quantile(0.95, STAGES, f'{MODEL}, stage="queue"', "model"), "{{model}}"),
                alert="MobilevisionQueueAge",
            ),
            lines(
                "Batches per second and engine",
                "What computed the batches in the workers. refused: faster engines that the workers refused, because "
                "they do not run the model or do not compute what TorchScript computes.",
                units.RequestsPerSecond,
                Query(
                    "sum by (model, engine, dtype, refused) "
                    f"(rate(mobilevision_engine_batches_total{{{MODEL}}}[{RATE}]))",
                    "{{model}} {{engine}} {{dtype}}, refused: {{refused}}",
                ),
            ),
            deadlines_missed(),
            lines(
                "Busy share of the workers",
                "Batches per second x mean seconds of a batch / ready workers. Near 1 the model is saturated. The mean "
                "is over pictures, so large batches count more and the share is an upper estimate.",
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
        "Rollout",
        [
            lines(
                "Share of the requests per version",
                "Share of each version in the rollout file. The stable version has less than 1 with a canary.",
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
                "passed_on: the candidate refused, failed or took too long, and the stable version answered.",
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
                    mean("mobilevision_version_agreement", MODEL, "model, stable, candidate, metric"),
                    "{{model}} {{stable}} / {{candidate}}, {{metric}}",
                ),
                most=1,
            ),
            lines(
                "Shadow runs",
                "Pictures run on the candidate for comparison only. dropped: not run, to leave capacity for callers.",
                units.RequestsPerSecond,
                Query(
                    f"sum by (model, version, outcome) (rate(mobilevision_shadow_runs_total{{{MODEL}}}[{RATE}]))",
                    "{{model}} {{version}}, {{outcome}}",
                ),
            ),
            lines(
                "p95 of an answer per version",
                "Latency in all stages, by the version that answered.",
                units.Seconds,
                Query(quantile(0.95, "mobilevision_version_duration_seconds", MODEL, "model, version"), by_version),
            ),
            lines(
                "Inference, mean seconds per version",
                "Mean of a batch, shadow runs included.",
                units.Seconds,
                Query(mean("mobilevision_version_inference_seconds", MODEL, "model, version"), by_version),
            ),
        ],
    )
    return page(
        uid="mobilevision-models",
        title="mobilevision / Models",
        about="Versions, traffic, latency, batches, saturation and rollouts of each model.",
        rows=[served, traffic, work, rollout],
        runbook=runbook,
    )
