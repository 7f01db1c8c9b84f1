"""Properties that every build of deploy/k8s must have, with any components."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes import toy_card
from manifests import K8S, ROOT, Built, combinations, combined, image_environment

from service.app.gateway import GRPC_STOP_SECONDS
from service.core import settings as settings_module
from service.core.settings import Settings
from service.core.settings.listeners import DEFAULT_GRPC_PORT, DEFAULT_HTTP_PORT
from service.observability.metrics import Metrics
from service.serving import rollout_spec

CLOSING_SECONDS = 1.0 + GRPC_STOP_SECONDS  # for threads and connections after the drain
TORCHSERVE_STOP_SECONDS = 5.0  # a JVM ends within a second after the gateway has ended
PORTS = {DEFAULT_GRPC_PORT, DEFAULT_HTTP_PORT}


def running(built: Built) -> list[dict[str, Any]]:
    """The containers that keep running: the gateway and the sidecars."""
    pod = built.pod
    return [*pod["containers"], *(c for c in pod["initContainers"] if c.get("restartPolicy") == "Always")]


def selects(selector: dict[str, str], built: Built) -> bool:
    return bool(selector) and selector.items() <= built.pod_labels.items()


@pytest.fixture
def effective(built: Built, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings of the gateway in this build: those of its image, overridden by the ConfigMap."""
    for name, value in (image_environment("gateway") | built.settings).items():
        monkeypatch.setenv(name, value)
    return settings_module.load()


def test_one_file_holds_one_object() -> None:
    for file in K8S.rglob("*.yaml"):
        # Configuration of kustomize, and JSON patches.
        if file.name not in ("kustomization.yaml", "references.yaml", "images.yaml", "triggers.yaml", "metrics.yaml"):
            (document,) = yaml.safe_load_all(file.read_text())
            assert {"apiVersion", "kind"} <= document.keys(), file


def test_every_setting_is_known_and_valid(built: Built, effective: Settings) -> None:
    assert effective.drain_delay_seconds > 0
    assert effective.max_connection_age_seconds > 0
    assert built.pod["enableServiceLinks"] is False, "MOBILEVISION_PORT of a Service would be an unknown setting"


def test_calls_need_callers_with_the_component_and_only_then(built: Built, effective: Settings) -> None:
    if "MOBILEVISION_CALLERS_FILE" not in built.settings:
        assert effective.anonymous == "allow", "the gateway listens beyond loopback"
        return
    assert effective.anonymous == "deny"
    assert effective.callers_file is not None
    [mount] = [m for m in built.gateway["volumeMounts"] if m["mountPath"] == str(effective.callers_file.parent)]
    [volume] = [v for v in built.pod["volumes"] if v["name"] == mount["name"]]
    assert volume["secret"]["secretName"] == "mobilevision-callers"


def test_all_objects_are_in_one_namespace(built: Built) -> None:
    for item in built.objects:
        if item["kind"] not in ("Namespace", "PriorityClass"):
            assert item["metadata"]["namespace"] == "mobilevision", item["metadata"]["name"]
    text = yaml.safe_dump(built.of("ScaledObject") + built.of("InferenceService"))
    assert set(re.findall(r'namespace="([^"]*)"', text)) <= {"mobilevision"}


def test_torchserve_starts_before_the_gateway_and_outlives_it(built: Built) -> None:
    assert built.torchserve["restartPolicy"] == "Always"
    names = [c["name"] for c in built.pod["initContainers"]]
    assert names == (["models", "torchserve"] if built.of("Deployment") else ["torchserve"]), "models come first"
    assert "torchserve-ready" in built.torchserve["startupProbe"]["exec"]["command"]
    assert [c["name"] for c in built.pod["containers"]] in (["gateway"], ["kserve-container"])


def test_liveness_probes_check_what_a_restart_would_repair(built: Built) -> None:
    for container in running(built):
        assert {"startupProbe", "livenessProbe"} <= container.keys(), container["name"]
        for probe in ("startupProbe", "livenessProbe"):
            assert container[probe]["timeoutSeconds"] >= 4, "a busy machine must not cause a restart"
    gateway, tls = built.gateway, "MOBILEVISION_TLS_CERTIFICATE" in built.settings
    assert gateway["startupProbe"]["httpGet"]["path"] == gateway["livenessProbe"]["httpGet"]["path"] == "/livez"
    readiness = gateway["readinessProbe"]
    if tls:  # the kubelet's gRPC probe does not support TLS
        assert readiness["httpGet"]["path"] == "/readyz"
        assert "grpc" not in readiness
    else:
        assert readiness["grpc"] == {"port": DEFAULT_GRPC_PORT}
    assert built.torchserve["livenessProbe"]["exec"]["command"] == ["torchserve-probe", "torchserve-live"]


def test_the_startup_probe_waits_as_long_as_loading_may_take(built: Built, effective: Settings) -> None:
    probe = built.torchserve["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= effective.startup_timeout_seconds


def test_the_drain_fits_into_the_grace_period(built: Built, effective: Settings) -> None:
    gateway_seconds = (
        built.gateway["lifecycle"]["preStop"]["sleep"]["seconds"]
        + effective.drain_delay_seconds
        + effective.drain_timeout_seconds
        + CLOSING_SECONDS
    )
    assert gateway_seconds + TORCHSERVE_STOP_SECONDS <= built.pod["terminationGracePeriodSeconds"]
    # The endpoint is removed, and new calls go to other pods, before any call is refused.
    readiness = built.gateway["readinessProbe"]
    assert readiness["periodSeconds"] * readiness["failureThreshold"] <= effective.drain_delay_seconds


def test_min_ready_seconds_lets_clients_resolve_the_name_again(built: Built, effective: Settings) -> None:
    for deployment in built.of("Deployment"):
        # A client resolves the name again when its connection ends, after the drain of the old pod.
        left_seconds = (
            built.gateway["lifecycle"]["preStop"]["sleep"]["seconds"] + effective.drain_delay_seconds + CLOSING_SECONDS
        )
        assert deployment["spec"]["minReadySeconds"] > left_seconds


def test_containers_have_least_privileges(built: Built) -> None:
    pod = built.pod
    assert pod["automountServiceAccountToken"] is False
    context = pod["securityContext"]
    assert (context["runAsNonRoot"], context["seccompProfile"]) == (True, {"type": "RuntimeDefault"})
    # The key file is readable by its owner only, and the image's user.
    assert context["runAsUser"] == context["runAsGroup"] == context["fsGroup"] == 10001
    for image in ("gateway", "torchserve"):
        assert "USER 10001:10001" in (ROOT / "deploy" / "docker" / f"{image}.Dockerfile").read_text()
    for container in (*pod["containers"], *pod["initContainers"]):
        own = container["securityContext"]
        assert own["capabilities"] == {"drop": ["ALL"]}
        assert (own["readOnlyRootFilesystem"], own["runAsNonRoot"]) == (True, True)
        assert (own["allowPrivilegeEscalation"], own["privileged"]) == (False, False)
    assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"}


def test_every_container_has_requests_and_limits(built: Built) -> None:
    for container in (*built.pod["containers"], *built.pod["initContainers"]):
        for kind in ("requests", "limits"):
            assert {"cpu", "memory", "ephemeral-storage"} <= container["resources"][kind].keys(), container["name"]


def test_both_containers_count_the_same_workers(effective: Settings) -> None:
    assert effective.models, "an image may contain more models than fit into the memory limit"
    assert effective.workers_per_model > 0, "the gateway would assume 1"


def test_volumes_fit_their_mounts_and_memory_is_bounded(built: Built, effective: Settings) -> None:
    volumes = {volume["name"]: volume for volume in built.pod["volumes"]}
    mounted: dict[str, dict[str, str]] = {}
    for container in (*built.pod["containers"], *built.pod["initContainers"]):
        mounted[container["name"]] = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert {name for mounts in mounted.values() for name in mounts} == volumes.keys()
    for name, volume in volumes.items():
        assert "sizeLimit" in volume.get("emptyDir", {"sizeLimit": None}), name
    gateway, torchserve = mounted[built.gateway["name"]], mounted["torchserve"]
    assert volumes["shm"]["emptyDir"]["medium"] == volumes["keys"]["emptyDir"]["medium"] == "Memory"
    assert gateway["shm"] == torchserve["shm"] == str(effective.shm_dir)
    environment = image_environment("torchserve")
    assert gateway["keys"] == torchserve["keys"] == str(Path(environment["MOBILEVISION_TORCHSERVE_KEY_FILE"]).parent)
    assert torchserve["run"] == environment["MOBILEVISION_RUN_DIR"]
    archives = (environment | built.settings)["MOBILEVISION_ARCHIVES"]
    if built.of("Deployment"):
        assert gateway["models"] == torchserve["models"] == archives
    else:  # KServe mounts it into the gateway, at the same path
        assert torchserve["kserve-pvc-source"] == archives == "/mnt/models"
    writable = {m["name"] for c in running(built) for m in c["volumeMounts"] if not m.get("readOnly")}
    assert writable == {"run", "keys", "shm"}


def test_torchserve_is_not_reachable_from_outside_the_pod(built: Built) -> None:
    """TorchServe's ports are on loopback, and no container port, Service or policy names them."""
    ports = set()
    for image in ("gateway", "torchserve"):
        for name in ("MOBILEVISION_TORCHSERVE_INFERENCE", "MOBILEVISION_TORCHSERVE_MANAGEMENT"):
            host, _, port = image_environment(image)[name].rpartition(":")
            assert host == "127.0.0.1"
            ports.add(int(port))
    assert len(ports) == 2
    assert not [name for name in built.settings if "TORCHSERVE" in name]
    assert "ports" not in built.torchserve
    assert {port["containerPort"] for port in built.gateway["ports"]} == PORTS
    for service in built.of("Service"):
        targets = {port["targetPort"] for port in service["spec"]["ports"]}
        assert targets <= {"grpc", DEFAULT_GRPC_PORT}, "metrics are scraped from the pods"
        assert service["spec"]["type"] == "ClusterIP"
    for policy in built.of("NetworkPolicy"):
        for rule in policy["spec"].get("ingress", []):
            assert {port["port"] for port in rule["ports"]} <= {"grpc", "http"}


def test_selectors_find_the_pods(built: Built) -> None:
    for service in built.of("Service"):
        assert selects(service["spec"]["selector"], built)
    for kind in ("PodDisruptionBudget", "PodMonitor"):
        for item in built.of(kind):
            assert selects(item["spec"]["selector"]["matchLabels"], built)
    for constraint in built.pod.get("topologySpreadConstraints", []):
        assert selects(constraint["labelSelector"]["matchLabels"], built)
    if built.of("Deployment"):
        assert selects(built.one("Deployment")["spec"]["selector"]["matchLabels"], built)
    for monitor in built.of("PodMonitor"):
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        assert endpoint["port"] in {port["name"] for port in built.gateway["ports"]}
    for route in built.of("GRPCRoute"):
        names = {service["metadata"]["name"] for service in built.of("Service")}
        assert {b["name"] for rule in route["spec"]["rules"] for b in rule["backendRefs"]} <= names


def test_a_rollout_takes_no_pod_away_before_its_successor_is_ready(built: Built) -> None:
    if built.of("Deployment"):
        rolling = built.one("Deployment")["spec"]["strategy"]["rollingUpdate"]
    else:
        rolling = built.one("InferenceService")["spec"]["predictor"]["deploymentStrategy"]["rollingUpdate"]
    assert rolling == {"maxUnavailable": 0, "maxSurge": 1}
    assert built.one("PodDisruptionBudget")["spec"]["maxUnavailable"] == 1


def test_both_containers_mount_the_rollout_file(built: Built, effective: Settings) -> None:
    if effective.rollout_file is None:
        assert not [o for o in built.of("ConfigMap") if "rollout" in o["metadata"]["name"]]
        return
    (volume,) = (v for v in built.pod["volumes"] if v["name"] == "rollout")
    (file,) = (o for o in built.of("ConfigMap") if o["metadata"]["name"] == volume["configMap"]["name"])
    rollout_spec.parse(file["data"][effective.rollout_file.name].encode(), effective.rollout_file)
    assert file["metadata"]["name"] == "mobilevision-rollout", "under another name only new pods would see it"
    for container in (built.gateway, built.torchserve):
        (mount,) = (m for m in container["volumeMounts"] if m["name"] == "rollout")
        assert mount["mountPath"] == str(effective.rollout_file.parent)
        assert "subPath" not in mount, "a subPath mount is never updated"


def test_at_most_one_object_sets_the_number_of_replicas(built: Built) -> None:
    scalers = built.of("HorizontalPodAutoscaler") + built.of("ScaledObject")
    assert len(scalers) <= 1
    if built.of("InferenceService"):
        assert not scalers
        assert built.one("InferenceService")["spec"]["predictor"]["minReplicas"] >= 2
        return
    deployment = built.one("Deployment")
    assert ("replicas" in deployment["spec"]) == (not scalers)
    for scaler in scalers:
        spec = scaler["spec"]
        target = spec["scaleTargetRef"]
        assert (target["kind"], target["name"]) == ("Deployment", deployment["metadata"]["name"])
        assert spec.get("minReplicas", spec.get("minReplicaCount")) >= 2
        behavior = spec.get("behavior") or spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        assert behavior["scaleDown"]["stabilizationWindowSeconds"] >= 300
        assert behavior["scaleUp"]["stabilizationWindowSeconds"] == 0


def test_scaling_uses_existing_metrics(built: Built) -> None:
    metrics = Metrics()
    metrics.add_model(toy_card(), queue_length=lambda: 0, queue_age=lambda: 0)
    declared = {metric.name for metric in metrics.registry.collect()}
    asked = set()
    for scaler in built.of("ScaledObject") + built.of("InferenceService"):
        asked |= set(re.findall(r"mobilevision_[a-z_]+(?=\{)", yaml.safe_dump(scaler, width=10_000)))
    for scaler in built.of("HorizontalPodAutoscaler"):
        names = {m["pods"]["metric"]["name"] for m in scaler["spec"]["metrics"] if m["type"] == "Pods"}
        page = (ROOT / "docs" / "kubernetes.md").read_text()
        (block,) = re.findall(r"```yaml\n(rules:.*?)```", page, re.DOTALL)
        rules = yaml.safe_load(block)["rules"]
        series = {rule["name"]["as"]: rule["seriesQuery"].partition("{")[0] for rule in rules}
        assert names <= set(series), "prometheus-adapter needs a rule for each"
        asked |= set(series.values())
    assert {re.sub("_(bucket|count|sum|total)$", "", name) for name in asked} <= declared


@pytest.mark.exhaustive
@pytest.mark.parametrize("components", [c for c in combinations(2) if len(c) > 1], ids="+".join)
def test_every_pair_builds_and_keeps_both_components(components: tuple[str, ...]) -> None:
    """Everything that a component adds alone is also there together with others."""
    together = combined(*components)
    for component in components:
        alone = combined(component)
        assert _names(alone) <= _names(together)
        assert {v["name"] for v in alone.pod["volumes"]} <= {v["name"] for v in together.pod["volumes"]}
        assert alone.settings.items() - combined().settings.items() <= together.settings.items()


def _names(built: Built) -> set[tuple[str, str]]:
    return {(o["kind"], o["metadata"]["name"].partition("settings-")[0]) for o in built.objects}
