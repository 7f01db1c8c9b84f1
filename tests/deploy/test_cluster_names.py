"""Namespace, instance and the names of other parts of the cluster come from one place each, and reach every object."""

import re
from pathlib import Path

import pytest
import yaml
from manifests import K8S, OVERLAYS, Built, combined, overlay, standalone, written

SELECTOR = re.compile(r"\{([^}]*)\}")
MATCHER = re.compile(r'(\w+)="([^"]*)"')

POOL = """
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
namespace: vision
namePrefix: {name}-
labels:
  - pairs: {{app.kubernetes.io/instance: {name}}}
    includeSelectors: true
    includeTemplates: true
resources: [../../base]
components:
  - ../../components/network-policy
  - ../../components/gateway-api
  - ../../components/{scraping}
  - ../../components/keda-cpu-2
  - ../../images
configMapGenerator:
  - name: mobilevision-cluster
    behavior: merge
    literals:
      - monitoringNamespace=observability
      - prometheusAddress=http://prometheus.observability.svc:9090
      - prometheusRelease=prom
      - gatewayName=edge
      - gatewayNamespace=edge-system
      - gatewayProxyNamespace=edge-proxies
      - gatewayHost=pictures.example.com
transformers: [../../names]
"""


@pytest.fixture(scope="module")
def pools() -> tuple[Built, Built]:
    """Two deployments in one namespace."""
    return written(POOL.format(name="a", scraping="monitoring")), written(POOL.format(name="b", scraping="podmonitor"))


def queries(built: Built) -> list[str]:
    found = [t["metadata"]["query"] for o in built.of("ScaledObject") for t in o["spec"]["triggers"]]
    for service in built.of("InferenceService"):
        metrics = service["spec"]["predictor"]["autoScaling"]["metrics"]
        found += [metric["external"]["metric"]["query"] for metric in metrics]
    return found


def test_every_query_asks_for_the_pods_of_its_own_build(built: Built) -> None:
    for query in queries(built):
        for selector in SELECTOR.findall(query):
            matchers = dict(MATCHER.findall(selector))
            assert matchers["namespace"] == built.namespace, query
            assert matchers["app_kubernetes_io_instance"] == built.pod_labels["app.kubernetes.io/instance"], query


def test_scraping_gives_series_the_label_that_queries_ask_for(built: Built) -> None:
    for monitor in built.of("PodMonitor"):
        for label in monitor["spec"]["podTargetLabels"]:
            assert label in built.pod_labels
        assert "app.kubernetes.io/instance" in monitor["spec"]["podTargetLabels"]


def test_an_autoscaler_with_queries_comes_with_scraping() -> None:
    for name in OVERLAYS:
        if queries(overlay(name)):
            assert overlay(name).of("PodMonitor"), name


def test_a_namespace_and_a_prefix_of_ones_own_reach_queries_and_references(pools: tuple[Built, Built]) -> None:
    for name, pool in zip("ab", pools, strict=True):
        assert pool.namespace == "vision"
        assert len(queries(pool)) == 3
        test_every_query_asks_for_the_pods_of_its_own_build(pool)
        assert pool.one("ScaledObject")["spec"]["scaleTargetRef"]["name"] == f"{name}-mobilevision"
        [[backend]] = [rule["backendRefs"] for rule in pool.one("GRPCRoute")["spec"]["rules"]]
        assert backend["name"] == f"{name}-mobilevision"


def test_names_of_the_cluster_reach_every_object(pools: tuple[Built, Built]) -> None:
    pool, _ = pools
    triggers = pool.one("ScaledObject")["spec"]["triggers"]
    assert {t["metadata"]["serverAddress"] for t in triggers} == {"http://prometheus.observability.svc:9090"}
    assert {o["metadata"]["labels"]["release"] for o in pool.of("PodMonitor") + pool.of("PrometheusRule")} == {"prom"}
    route = pool.one("GRPCRoute")["spec"]
    assert route["parentRefs"] == [{"name": "edge", "namespace": "edge-system"}]
    assert route["hostnames"] == ["pictures.example.com"]
    (policy,) = pool.of("NetworkPolicy")
    text = yaml.safe_dump(policy)
    assert "observability" in text
    assert "edge-proxies" in text
    assert "mobilevision-cluster" not in yaml.safe_dump(list(pool.objects)), "it is not applied"
    for other in ("monitoring", "gateway-system", "kube-prometheus-stack"):
        assert other not in text


def test_every_name_of_the_cluster_is_used() -> None:
    names = combined().cluster
    used = re.findall(r"fieldPath: data\.(\w+)", (K8S / "names" / "replacements.yaml").read_text())
    assert set(used) == set(names)


def test_two_deployments_in_one_namespace_share_nothing(pools: tuple[Built, Built]) -> None:
    first, second = pools
    names = [{(o["kind"], o["metadata"]["name"]) for o in pool.objects} for pool in pools]
    assert not names[0] & names[1]
    for own, other in ((first, second), (second, first)):
        selectors = [o["spec"]["selector"] for o in own.of("Service")]
        for kind in ("Deployment", "PodDisruptionBudget", "PodMonitor"):
            selectors += [o["spec"]["selector"]["matchLabels"] for o in own.of(kind)]
        selectors += [o["spec"]["podSelector"]["matchLabels"] for o in own.of("NetworkPolicy")]
        for constraint in own.pod["topologySpreadConstraints"]:
            selectors.append(constraint["labelSelector"]["matchLabels"])
        for selector in selectors:
            assert selector.items() <= own.pod_labels.items()
            assert not selector.items() <= other.pod_labels.items(), selector


def test_prometheus_of_kube_prometheus_stack_selects_what_is_shipped(built: Built) -> None:
    """Its default is the label `release` with the name of the Helm release."""
    for item in built.of("PodMonitor") + built.of("PrometheusRule"):
        assert item["metadata"]["labels"]["release"] == "kube-prometheus-stack"


def test_deleting_an_overlay_deletes_neither_the_namespace_nor_the_archives() -> None:
    for name in OVERLAYS:
        assert not overlay(name).of("PersistentVolumeClaim"), name
        assert bool(overlay(name).of("Namespace")) == (name == "dev"), f"{name}: only a throw-away cluster"
    assert not combined().of("Namespace")


def test_claims_are_applied_by_themselves() -> None:
    for name in ("claim", "claim-rwo"):
        assert [o["kind"] for o in standalone(name).objects] == ["PersistentVolumeClaim"]


def test_no_manifest_repeats_a_name_of_the_cluster() -> None:
    """A copy that `names` does not replace would stay when an operator changes the setting."""
    replaced = {"podmonitor.yaml", "scaledobject.yaml", "triggers.yaml", "inferenceservice.yaml", "networkpolicy.yaml"}
    for file in sorted(K8S.rglob("*.yaml")):
        text = "\n".join(line for line in file.read_text().splitlines() if not line.lstrip().startswith("#"))
        if re.search(r"monitoring\.svc|metadata\.name: monitoring|kube-prometheus-stack", text):
            assert Path(file).name in replaced, file
