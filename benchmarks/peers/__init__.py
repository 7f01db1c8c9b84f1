"""Other model servers with the same module, the same decoding and the same replies as our server.

`PEERS` lists them. Each server is one short file, written as the server's documentation shows. It runs in a Python
environment of its own (`environments`) and is configured by a `PeerConfig`. Only the server differs from ours. All but
those with an `own_engine` run the module in our runtime, with the network engine and dtype that our server is asked
for.
"""

import base64
import json
from dataclasses import dataclass

from handlers.options import OPENVINO, TORCHSCRIPT

_MOSEC = ("mosec==0.9.8",)


@dataclass(frozen=True)
class Peer:
    """A server to compare with. Without `requirements` it runs in the Python environment of this project."""

    name: str
    package: str  # distribution whose version is reported
    module: str  # run with `python -m`
    requirements: tuple[str, ...]
    path: str = "/predict"
    content_type: str = "image/jpeg"
    json_field: str | None = None  # for servers that take only JSON: the field with the picture as base64
    json_lists: bool = False  # for servers whose requests and replies are lists: lists with one item

    environment: tuple[tuple[str, str], ...] = ()  # environment variables of the server
    own_engine: str = ""  # what computes its networks, where that is not our runtime

    def body(self, picture: bytes) -> bytes:
        """The request body for a picture."""
        if self.json_field is None:
            return picture
        text = base64.b64encode(picture).decode()
        return json.dumps({self.json_field: [text] if self.json_lists else text}).encode()

    def reply(self, body: bytes) -> bytes:
        """The reply message in the body of a reply."""
        return base64.b64decode(json.loads(body)[0]) if self.json_lists else body


PEERS = (
    Peer("torchserve_alone", "torchserve", "benchmarks.peers.torchserve_alone", (), path="/predictions/peer"),
    Peer(
        "torchserve_documented",
        "torchserve",
        "benchmarks.peers.torchserve_documented",
        (),
        path="/predictions/peer",
        own_engine=TORCHSCRIPT,
    ),
    Peer("mosec", "mosec", "benchmarks.peers.mosec_server", _MOSEC, path="/inference"),
    Peer(
        "mosec_openvino",
        "mosec",
        "benchmarks.peers.mosec_openvino_server",
        _MOSEC,
        path="/inference",
        own_engine=OPENVINO,
    ),
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
            ("RAY_AUTH_MODE", "disabled"),  # otherwise it writes a token to the home directory
            ("RAY_USAGE_STATS_ENABLED", "0"),
            # Starting takes long on a busy machine, and all processes are paused between turns.
            ("RAY_raylet_start_wait_time_s", "300"),
            ("RAY_worker_register_timeout_seconds", "300"),
            ("RAY_health_check_failure_threshold", "1000"),
        ),
    ),
)
