"""Who may reach which port, by the rules of NetworkPolicy (networking.k8s.io/v1), without a cluster.

https://kubernetes.io/docs/concepts/services-networking/network-policies/: a pod that no policy selects for a direction
is open in that direction. Otherwise a connection is allowed if at least one rule of one of these policies allows it.
Address blocks match no pod here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Labels = Mapping[str, str]
NAMESPACE_NAME = "kubernetes.io/metadata.name"  # the API server gives every namespace this label


@dataclass(frozen=True)
class Peer:
    """A pod at the other end. `namespace_labels` are those beside the name."""

    namespace: str
    labels: Labels = field(default_factory=dict)
    namespace_labels: Labels = field(default_factory=dict)


@dataclass(frozen=True)
class Network:
    """The policies of one namespace, and our pods in it. `ports` are the numbers of the named container ports."""

    namespace: str
    policies: Sequence[Mapping[str, Any]]
    pod_labels: Labels
    ports: Mapping[str, int]

    def admits(self, peer: Peer, port: int) -> bool:
        """Whether `peer` may connect to our pods at a TCP port."""
        return self._allowed("Ingress", "ingress", "from", peer, port, "TCP")

    def lets_out(self, peer: Peer, port: int, protocol: str = "TCP") -> bool:
        """Whether our pods may connect to `peer` at a port."""
        return self._allowed("Egress", "egress", "to", peer, port, protocol)

    def _allowed(self, kind: str, rules: str, peers: str, peer: Peer, port: int, protocol: str) -> bool:
        specs = [policy["spec"] for policy in self.policies]
        chosen = [
            spec
            for spec in specs
            if _selects(spec["podSelector"], self.pod_labels) and kind in spec.get("policyTypes", ["Ingress"])
        ]
        return not chosen or any(
            self._peer_fits(rule.get(peers, []), peer) and self._port_fits(rule.get("ports", []), port, protocol)
            for spec in chosen
            for rule in spec.get(rules) or []
        )

    def _peer_fits(self, allowed: Sequence[Mapping[str, Any]], peer: Peer) -> bool:
        if not allowed:
            return True
        here = {NAMESPACE_NAME: peer.namespace, **peer.namespace_labels}
        for each in allowed:
            if "ipBlock" in each:
                continue
            if "namespaceSelector" in each:
                in_namespace = _selects(each["namespaceSelector"], here)
            else:
                in_namespace = peer.namespace == self.namespace
            if in_namespace and _selects(each.get("podSelector", {}), peer.labels):
                return True
        return False

    def _port_fits(self, allowed: Sequence[Mapping[str, Any]], port: int, protocol: str) -> bool:
        return not allowed or any(
            each.get("protocol", "TCP") == protocol
            and ("port" not in each or self.ports.get(str(each["port"]), each["port"]) == port)
            for each in allowed
        )


def _selects(selector: Mapping[str, Any], labels: Labels) -> bool:
    if "matchExpressions" in selector:
        raise NotImplementedError("no policy of ours has matchExpressions")
    return dict(selector.get("matchLabels") or {}).items() <= dict(labels).items()
