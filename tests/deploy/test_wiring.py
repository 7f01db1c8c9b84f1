"""Ports, probes, environment and paths in the manifests lead to something that exists in the service."""

import asyncio
import http.client
import re
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
import yaml
from grpc_health.v1 import health_pb2
from manifests import K8S, ROOT, Built, cores, overlay

from service.core.settings import CLIENT_VARIABLES, Settings
from service.core.settings.listeners import DEFAULT_GRPC_PORT, DEFAULT_HTTP_PORT
from service.engines.torchserve import container_probe
from service.frontends.grpc.health import GrpcHealth
from service.frontends.http.probe_server import ProbeServer
from service.frontends.http.probes import Answer
from service.serving.health import HealthReport

PROBES = ("startupProbe", "livenessProbe", "readinessProbe")
DOCKER = ROOT / "deploy" / "docker"
VARIABLE = re.compile(r"\bMOBILEVISION_[A-Z0-9_]+\b")


class Fine:
    """`Probes` that are well."""

    def livez(self) -> Answer:
        return Answer.text(True, "ok")

    def readyz(self) -> Answer:
        return Answer.json(True, {})

    def metrics(self, accept: str) -> Answer:
        return Answer(HTTPStatus.OK, "text/plain", b"")


@pytest.fixture(scope="module")
def http_port() -> Iterator[int]:
    server = ProbeServer(host="127.0.0.1", port=0, probes=Fine())
    yield server.port
    server.close()


def status(port: int, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path)
    answer = connection.getresponse().status
    connection.close()
    return answer


def containers(built: Built) -> list[dict[str, Any]]:
    return [*built.pod["containers"], *built.pod["initContainers"]]


def numbers(built: Built) -> dict[str, int]:
    """The container ports of the pod by name."""
    ports = [port for container in containers(built) for port in container.get("ports", [])]
    named = {port["name"]: port["containerPort"] for port in ports}
    assert len(named) == len(ports), "names of ports are unique in a pod"
    return named


def test_every_port_that_is_named_exists(built: Built) -> None:
    known = numbers(built)
    asked: set[str | int] = set()
    for container in containers(built):
        for probe in PROBES:
            asked |= {
                check["port"]
                for check in container.get(probe, {}).values()
                if isinstance(check, dict) and "port" in check
            }
    for service in built.of("Service"):
        asked |= {port["targetPort"] for port in service["spec"]["ports"]}
    for monitor in built.of("PodMonitor"):
        asked |= {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]}
    for policy in built.of("NetworkPolicy"):
        for rule in policy["spec"].get("ingress", []):
            asked |= {port["port"] for port in rule["ports"]}
    assert asked <= known.keys() | set(known.values())
    assert set(known.values()) == {DEFAULT_GRPC_PORT, DEFAULT_HTTP_PORT}


def test_a_route_leads_to_a_port_of_a_service(built: Built) -> None:
    services = {o["metadata"]["name"]: {p["port"] for p in o["spec"]["ports"]} for o in built.of("Service")}
    for route in built.of("GRPCRoute"):
        for rule in route["spec"]["rules"]:
            for backend in rule["backendRefs"]:
                assert backend["port"] in services[backend["name"]]


def test_every_path_of_a_probe_or_scrape_answers(built: Built, http_port: int) -> None:
    known = numbers(built)
    paths = set()
    for container in containers(built):
        for probe in PROBES:
            check = container.get(probe, {}).get("httpGet")
            if check:
                assert known.get(check["port"], check["port"]) == DEFAULT_HTTP_PORT
                paths.add(check["path"])
    for monitor in built.of("PodMonitor"):
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            assert known[endpoint["port"]] == DEFAULT_HTTP_PORT
            paths.add(endpoint["path"])
    assert paths
    assert {path: status(http_port, path) for path in paths} == dict.fromkeys(paths, 200)
    assert status(http_port, "/nothing") == 404


async def health_of(service: str, report: HealthReport) -> str:
    health = GrpcHealth(max_watches=1)
    health.publish(report)
    reply = await health.servicer.Check(health_pb2.HealthCheckRequest(service=service), None)  # type: ignore[arg-type]
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status))


def test_a_pod_with_one_broken_model_stays_ready(built: Built) -> None:
    """The readiness probe asks what is true while any model answers, and false while none does or the pod drains."""
    check = built.gateway["readinessProbe"].get("grpc")
    if check is None:
        assert built.gateway["readinessProbe"]["httpGet"]["path"] == "/readyz"  # the same: tests of the probes
        return
    broken = HealthReport({"one": None, "two": "its worker died"}, draining=False)
    none = HealthReport({"one": "it is starting", "two": "its worker died"}, draining=False)
    draining = HealthReport({"one": None, "two": None}, draining=True)
    service = check.get("service", "")
    assert asyncio.run(health_of(service, broken)) == "SERVING"
    assert asyncio.run(health_of(service, none)) == "NOT_SERVING"
    assert asyncio.run(health_of(service, draining)) == "NOT_SERVING"


def test_every_command_of_a_probe_is_in_the_image_and_asks_what_is_known(built: Built) -> None:
    for container in containers(built):
        for probe in PROBES:
            command = container.get(probe, {}).get("exec", {}).get("command")
            if command:
                script, question = command
                assert (DOCKER / script).is_file()
                assert question in container_probe.QUESTIONS
                assert script in (DOCKER / "torchserve.Dockerfile").read_text()


def environment_files() -> list[Path]:
    found = [*K8S.rglob("*.yaml"), *K8S.rglob("*.env"), *DOCKER.glob("*.Dockerfile"), *DOCKER.glob("*.yaml")]
    return sorted([*found, *DOCKER.glob("*-probe")])


def without_comments(file: Path) -> str:
    return "\n".join(line for line in file.read_text().splitlines() if not line.lstrip().startswith("#"))


def test_every_variable_is_a_setting() -> None:
    known = {f"MOBILEVISION_{name}".upper() for name in Settings.model_fields} | CLIENT_VARIABLES
    named = {(file.name, name) for file in environment_files() for name in VARIABLE.findall(without_comments(file))}
    assert len(named) > 20
    assert {(file, name) for file, name in named if name not in known} == set()


def test_the_docs_apply_folders_that_exist() -> None:
    for page in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"]:
        for folder in re.findall(r"(?:apply|delete|kustomize|diff)(?: -k)? (deploy/k8s/[\w/-]+)", page.read_text()):
            known = folder.endswith("/FOLDER") or (ROOT / folder / "kustomization.yaml").is_file()
            assert known, f"{page.name}: {folder}"


def test_a_laptop_can_run_the_dev_overlay() -> None:
    built = overlay("dev")
    assert built.one("Deployment")["spec"]["replicas"] == 1
    running = [built.gateway, built.torchserve]
    assert sum(cores(container, "requests") for container in running) <= 1
    assert sum(cores(container) for container in running) < 2
    assert not built.of("NetworkPolicy")
    kinds = {item["kind"] for item in built.objects}
    assert kinds == {
        "ConfigMap",
        "Deployment",
        "Namespace",
        "PodDisruptionBudget",
        "Service",
        "ServiceAccount",
    }, "nothing that has to be installed in the cluster"


def test_gpu_pods_need_no_label_of_nodes_and_find_the_driver(built: Built) -> None:
    assert "nodeSelector" not in built.pod, "labels of GPU nodes differ between clouds; the resource limit chooses"
    if "nvidia.com/gpu" not in built.torchserve["resources"]["limits"]:
        return
    assert built.settings["MOBILEVISION_REQUIRE_GPU"] == "true"
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in built.pod["tolerations"]
    text = (DOCKER / "torchserve.Dockerfile").read_text()
    assert "LD_LIBRARY_PATH=/usr/local/nvidia/lib64" in text
    assert re.search(r"\bPATH=\S*:/usr/local/nvidia/bin\b", text)
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility" in text


def test_clusters_whose_default_runtime_has_no_gpus_have_a_component() -> None:
    patch = yaml.safe_load((K8S / "components" / "gpu-runtime-class" / "deployment.yaml").read_text())
    assert patch["spec"]["template"]["spec"]["runtimeClassName"] == "nvidia"
