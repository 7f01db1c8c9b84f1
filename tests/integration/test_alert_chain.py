"""Alerts that need a cluster come and go in a real Prometheus and Alertmanager, from series of a fake exporter.

Two namespaces run the service, prod and staging, and kube-state-metrics tells about them. Each alert is seen firing and
resolving. What the gateway itself exports is in test_monitoring.py.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from alert_chain import ALERTMANAGER, Webhook, alert_chain, until
from promql import needs_prometheus

pytestmark = [
    pytest.mark.integration,
    pytest.mark.exhaustive,  # two minutes
    needs_prometheus,
    pytest.mark.skipif(ALERTMANAGER is None, reason="Alertmanager (Debian: prometheus-alertmanager) is not installed"),
]

POD = "mobilevision-5d9c-abcde"
OBJECT = f'namespace="prod",pod="{POD}",container="torchserve"'
CHECKED = {
    "MobilevisionTorchServeRestarts": "pod",
    "MobilevisionPodNotScraped": "pod",
    "MobilevisionPodsMissing": "deployment",
    "MobilevisionCertificateExpires": "file",
    "MobilevisionCertificateExpiresToday": "file",
    "MobilevisionAutoscalerAtMaximum": "horizontalpodautoscaler",
    "MobilevisionGpuUnused": "pod",
    "MobilevisionNotScraped": "namespace",
}


class Exporter:
    """One target. `lines` is its page; without it, it answers 503."""

    def __init__(self) -> None:
        self.lines: list[str] | None = []
        self.address = ""

    @contextmanager
    def serving(self) -> Iterator[str]:
        exporter = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(503 if exporter.lines is None else 200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.end_headers()
                self.wfile.write("".join(f"{line}\n" for line in exporter.lines or ()).encode())

            def log_message(self, format: str, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        server.server_close()
        thread.join()


def gateway(*, expires_in_seconds: float = 1e7, device: str = "cuda") -> list[str]:
    return [
        f'mobilevision_model_info{{model="m",device="{device}"}} 1',
        "mobilevision_inflight_requests 0",
        'mobilevision_worker_ready{model="m"} 1',
        f'mobilevision_tls_not_after_timestamp_seconds{{file="certificate"}} {time.time() + expires_in_seconds}',
    ]


def cluster(*, restarts: int = 0, wanted: int = 2, asked: int = 2) -> list[str]:
    scaler = 'namespace="prod",horizontalpodautoscaler="keda-hpa-mobilevision"'
    return [
        f"kube_pod_container_status_restarts_total{{{OBJECT}}} {restarts}",
        f'kube_pod_container_resource_limits{{{OBJECT},resource="nvidia_com_gpu",unit="integer"}} 1',
        f'kube_deployment_spec_replicas{{namespace="prod",deployment="mobilevision"}} {wanted}',
        f"kube_horizontalpodautoscaler_status_desired_replicas{{{scaler}}} {asked}",
        f"kube_horizontalpodautoscaler_spec_max_replicas{{{scaler}}} 20",
    ]


def scraped(job: str, targets: dict[str, dict[str, str]], *, honor: bool = False) -> dict[str, object]:
    configs = [{"targets": [target], "labels": labels} for target, labels in targets.items()]
    return {"job_name": job, "honor_labels": honor, "static_configs": configs}


def test_alerts_of_a_cluster_come_and_go(tmp_path: Path) -> None:
    one, two, staging, kube = (Exporter() for _ in range(4))
    one.lines, two.lines, staging.lines, kube.lines = gateway(), gateway(), gateway(), cluster()
    with (
        one.serving() as first,
        two.serving() as second,
        staging.serving() as third,
        kube.serving() as fourth,
        alert_chain(
            tmp_path,
            [
                scraped(
                    "prod/mobilevision",
                    {
                        first: {"namespace": "prod", "pod": POD},
                        second: {"namespace": "prod", "pod": "mobilevision-5d9c-fghij"},
                    },
                ),
                scraped("staging/mobilevision", {third: {"namespace": "staging", "pod": "mobilevision-1-1"}}),
                scraped("kube-state-metrics", {fourth: {}}, honor=True),
            ],
        ) as (_, webhook),
    ):
        restarts = 0

        def restarted() -> bool:
            nonlocal restarts
            restarts += 1
            kube.lines = cluster(restarts=restarts, wanted=3, asked=20)
            return seen(webhook, "firing") >= set(CHECKED) - {"MobilevisionNotScraped", "MobilevisionPodNotScraped"}

        one.lines = gateway(expires_in_seconds=3600, device="cpu")
        until(restarted, lambda: webhook.heard)
        two.lines = None
        until(lambda: "MobilevisionPodNotScraped" in seen(webhook, "firing"), lambda: webhook.heard)
        one.lines = None
        until(lambda: seen(webhook, "firing") == set(CHECKED), lambda: webhook.heard)
        assert webhook.said("firing", "MobilevisionNotScraped", "namespace") == {"prod"}, "staging lives"
        assert webhook.said("firing", "MobilevisionTorchServeRestarts", "pod") == {POD}
        assert webhook.said("firing", "MobilevisionGpuUnused", "pod") == {POD}
        one.lines, two.lines, kube.lines = gateway(), gateway(), cluster(restarts=restarts)
        until(lambda: seen(webhook, "resolved") == set(CHECKED), lambda: webhook.heard)


def seen(webhook: Webhook, status: str) -> set[str]:
    return {alert for alert, label in CHECKED.items() if webhook.said(status, alert, label)}
