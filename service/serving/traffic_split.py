"""The deployments of one model, and the choice between them for each request.

A model has a stable deployment and, during a roll-out, a candidate. A request id in, a `Choice` out. The choice is a
hash of the request id, so a call that is repeated with its id is answered by the same version. A `TrafficSplit` never
makes, opens or closes a deployment.
"""

import hashlib
from dataclasses import dataclass

from service.core.errors import Bug
from service.serving.deployment import Deployment


@dataclass(frozen=True, slots=True)
class Choice:
    """The deployment that answers a request. `compared`: the candidate runs the picture too, for comparison."""

    deployment: Deployment
    compared: bool = False


class TrafficSplit:
    """The deployments of one model. For one event loop. The one home of which version is stable.

    `weight`: share of the requests that the candidate answers. `shadow`: share of the other requests that the candidate
    runs for comparison. Both are 0 to 1.
    """

    def __init__(self, stable: Deployment) -> None:
        self._stable = stable
        self._stable.become_stable(True)
        self.candidate: Deployment | None = None
        self.weight = 0.0
        self.shadow = 0.0

    @property
    def stable(self) -> Deployment:
        """The stable deployment."""
        return self._stable

    @property
    def model(self) -> str:
        """The name of the model."""
        return self._stable.card.name

    @property
    def version(self) -> str:
        """The stable version."""
        return self._stable.version

    @property
    def all(self) -> list[Deployment]:
        """The stable deployment, and the candidate if there is one."""
        return [self._stable] if self.candidate is None else [self._stable, self.candidate]

    def choose(self, request_id: str) -> Choice:
        """Choose the candidate if it is ready and the request falls into its share, else the stable deployment."""
        if self.candidate is None or self.candidate.why_not_ready is not None:
            return Choice(self._stable)
        answered, compared = _draws(f"{self.model} {request_id}")
        if answered < self.weight:
            return Choice(self.candidate)
        return Choice(self._stable, compared < self.shadow)

    def promote(self) -> Deployment:
        """Make the candidate the stable deployment. Returns the stable deployment before it."""
        if self.candidate is None:
            raise Bug("this is a bug: there is no candidate to promote")
        before, self._stable = self._stable, self.candidate
        before.become_stable(False)
        self._stable.become_stable(True)
        self.drop_candidate()
        return before

    def drop_candidate(self) -> Deployment | None:
        """End the roll-out. Returns the candidate, if there was one."""
        before, self.candidate = self.candidate, None
        self.weight = self.shadow = 0.0
        return before

    def shares(self) -> dict[str, tuple[str, float]]:
        """Role (`stable` or `candidate`) and share of the requests, by version."""
        shares = {self._stable.version: ("stable", 1 - self.weight)}
        if self.candidate is not None:
            shares[self.candidate.version] = ("candidate", self.weight)
        return shares


def _draws(text: str) -> tuple[float, float]:
    """Two independent numbers, 0 to 1 without 1, always the same for a text."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4]) / 2**32, int.from_bytes(digest[4:]) / 2**32
