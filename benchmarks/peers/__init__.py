"""Other model servers, given the same module, the same decoding and the same rendering of answers as ours.

`PEERS` is the list. Each server is one short file here, written as its own documentation shows, run by a Python of its
own (`environments`), configured by a `PeerConfig`. What differs between them and us is the server alone.
"""

import base64
import json
from dataclasses import dataclass


@dataclass(frozen=True)
class Peer:
    """A server to compare with. `requirements` go into its environment; empty: it runs in ours."""

    name: str
    package: str  # the distribution whose version is reported
    module: str  # run with `python -m`
    requirements: tuple[str, ...]
    path: str = "/predict"
    content_type: str = "image/jpeg"
    json_field: str | None = None  # for servers that take nothing but JSON: the picture as base64 under this name
    json_lists: bool = False  # for servers whose batches are lists on the wire: a list of one picture, of one reply

    environment: tuple[tuple[str, str], ...] = ()  # more variables for it

    def body(self, picture: bytes) -> bytes:
        """The request body that carries a picture."""
        if self.json_field is None:
            return picture
        text = base64.b64encode(picture).decode()
        return json.dumps({self.json_field: [text] if self.json_lists else text}).encode()

    def reply(self, body: bytes) -> bytes:
        """The reply message that a body carries."""
        return base64.b64decode(json.loads(body)[0]) if self.json_lists else body


PEERS = (
    Peer("torchserve_alone", "torchserve", "benchmarks.peers.torchserve_alone", (), path="/predictions/peer"),
    Peer("torchserve_documented", "torchserve", "benchmarks.peers.torchserve_documented", (), path="/predictions/peer"),
    Peer("mosec", "mosec", "benchmarks.peers.mosec_server", ("mosec==0.9.8",), path="/inference"),
    Peer(
        "litserve",
        "litserve",
        "benchmarks.peers.litserve_server",
        ("litserve==0.2.19",),
        content_type="application/json",
        json_field="image",
    ),
    Peer(
        "bentoml",
        "bentoml",
        "benchmarks.peers.bentoml_server",
        ("bentoml==1.4.39",),
        content_type="application/json",
        json_field="images",
        json_lists=True,
    ),
    Peer(
        "ray_serve",
        "ray",
        "benchmarks.peers.ray_server",
        ("ray[serve]==2.60.0",),
        path="/",
        environment=(
            ("RAY_AUTH_MODE", "disabled"),  # or it leaves a token in the home directory
            ("RAY_USAGE_STATS_ENABLED", "0"),
            # A busy machine is slow to start all of it, and all of it is stopped between turns.
            ("RAY_raylet_start_wait_time_s", "300"),
            ("RAY_worker_register_timeout_seconds", "300"),
            ("RAY_health_check_failure_threshold", "1000"),
        ),
    ),
)
