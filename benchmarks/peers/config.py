"""How a peer is set up, handed to its process and all its workers through one environment variable."""

import json
import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

VARIABLE = "BENCHMARK_PEER_CONFIG"


@dataclass(frozen=True)
class PeerConfig:
    """`folder` holds the unpacked archive; `timeout_seconds` is when the server may give up on a request."""

    folder: str
    workers: int
    threads: int
    max_batch: int
    max_wait_ms: int
    port: int
    timeout_seconds: float
    gpu: bool = False

    def to_environment(self) -> dict[str, str]:
        """What to add to the environment of the server."""
        return {VARIABLE: json.dumps(asdict(self)), "OMP_NUM_THREADS": str(self.threads)}

    @classmethod
    def from_environment(cls) -> "PeerConfig":
        """In the server and its workers."""
        return cls(**json.loads(os.environ[VARIABLE]))  # noqa: TID251 - the one way that reaches every worker

    @property
    def model_folder(self) -> Path:
        """The unpacked archive."""
        return Path(self.folder)


def free_ports(count: int) -> list[int]:
    """Different ports of this machine that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
