"""Who may reach which port of the pods, for every build that has network policies."""

import pytest
from manifests import Built, combined, overlay
from network_policy import Network, Peer

from service.core.settings.listeners import DEFAULT_GRPC_PORT, DEFAULT_HTTP_PORT

TORCHSERVE_PORTS = (7070, 7071, 8080)
STORE = Peer("somewhere-else")


def network(built: Built) -> Network:
    return Network(
        namespace=built.namespace,
        policies=built.of("NetworkPolicy"),
        pod_labels=built.pod_labels,
        ports={port["name"]: port["containerPort"] for port in built.gateway["ports"]},
    )


def reached(built: Built, peer: Peer) -> set[int]:
    ports = (DEFAULT_GRPC_PORT, DEFAULT_HTTP_PORT, *TORCHSERVE_PORTS)
    return {port for port in ports if network(built).admits(peer, port)}


def test_clients_the_gateway_and_prometheus_reach_their_ports_and_nobody_else_does(built: Built) -> None:
    if not any(policy["metadata"]["name"].endswith("mobilevision") for policy in built.of("NetworkPolicy")):
        return
    grpc, http = {DEFAULT_GRPC_PORT}, {DEFAULT_HTTP_PORT}
    cluster = built.cluster
    assert reached(built, Peer(built.namespace)) == grpc
    assert reached(built, Peer("shop", namespace_labels={"mobilevision-client": "true"})) == grpc
    assert reached(built, Peer(cluster["gatewayProxyNamespace"])) == grpc
    assert reached(built, Peer(cluster["monitoringNamespace"])) == http
    assert reached(built, Peer("shop")) == set()


def test_pods_open_connections_only_to_what_they_need(built: Built) -> None:
    policies = {policy["metadata"]["name"] for policy in built.of("NetworkPolicy")}
    if "mobilevision" not in policies:
        return
    from_store = "mobilevision-models-store" in policies
    assert network(built).lets_out(STORE, 443) == from_store
    assert network(built).lets_out(Peer("kube-system"), 53, "UDP") == from_store
    assert not network(built).lets_out(STORE, 80)


def test_a_pod_that_copies_its_models_from_a_store_can_reach_it(built: Built) -> None:
    (models,) = [c for c in built.pod["initContainers"] if c["name"] == "models"] or [{}]
    if "sync" in models.get("args", []):
        assert network(built).lets_out(STORE, 443)
        assert network(built).lets_out(Peer("kube-system"), 53, "UDP")


def test_the_job_that_fills_the_claim_is_not_closed_in_by_the_policies_of_the_pods() -> None:
    from manifests import standalone  # noqa: PLC0415 - only here

    labels = standalone("sync").one("Job")["spec"]["template"]["metadata"]["labels"]
    pods = combined("network-policy")
    job = Network(pods.namespace, pods.of("NetworkPolicy"), labels, {})
    assert job.lets_out(STORE, 443)


def test_a_route_through_a_gateway_needs_the_policy_to_let_its_proxies_in() -> None:
    built = overlay("gpu-prod")
    assert built.of("GRPCRoute")
    assert reached(built, Peer(built.cluster["gatewayProxyNamespace"])) == {DEFAULT_GRPC_PORT}


def test_a_gateway_speaks_the_protocol_of_the_pods(built: Built) -> None:
    """Without a BackendTLSPolicy a Gateway speaks plain HTTP/2, which a port with TLS refuses."""
    tls = "MOBILEVISION_TLS_CERTIFICATE" in built.settings
    if built.of("GRPCRoute") and not built.of("BackendTLSPolicy"):
        assert not tls
    for service in built.of("Service"):
        (port,) = service["spec"]["ports"]
        assert port["appProtocol"] == ("https" if tls else "kubernetes.io/h2c")


@pytest.mark.parametrize("unrelated", ["observability", "default"])
def test_a_namespace_of_another_name_needs_the_setting(unrelated: str) -> None:
    assert reached(combined("network-policy"), Peer(unrelated)) == set()
