"""Configuration of a peer. One environment variable passes it to the server process and to all its workers."""

import json
import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

VARIABLE = "BENCHMARK_PEER_CONFIG"


@dataclass(frozen=True)
class PeerConfig:
    """`folder` contains the unpacked archive. `timeout_seconds` is the time-out of the server for a request.

    `engine` and `dtype` are asked of our runtime; a peer that does not use it ignores them.
    """

    folder: str
    workers: int
    threads: int
    max_batch: int
    max_wait_ms: int
    port: int
    timeout_seconds: float
    gpu: bool = False
    engine: str = "auto"
    dtype: str = "auto"

    def to_environment(self) -> dict[str, str]:
        """Environment variables of the server."""
        return {VARIABLE: json.dumps(asdict(self)), "OMP_NUM_THREADS": str(self.threads)}

    @classmethod
    def from_environment(cls) -> "PeerConfig":
        """Read the configuration, in the server and its workers."""
        return cls(**json.loads(os.environ[VARIABLE]))  # noqa: TID251 - every worker inherits the environment

    @property
    def model_folder(self) -> Path:
        """Folder with the unpacked archive."""
        return Path(self.folder)


def free_ports(count: int) -> list[int]:
    """Different ports of this machine on which no process listens now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
