"""A `mobilevision serve` in a process of its own, for as long as a `with` block lasts.

In: what to serve and how. Out: a `LocalServer` once the server answers. The server drains and stops when the block
ends, also after Ctrl-C, which only this process receives. Never reads settings.
"""

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

STARTUP_SECONDS = 300.0
STOP_SECONDS = 60.0
POLL_SECONDS = 0.05
TAIL_LINES = 15


@dataclass(frozen=True, slots=True)
class LocalServer:
    """Where the server listens (host:port), and how long its start took."""

    grpc: str
    http: str
    startup_seconds: float


class LocalServerFailed(Exception):
    """The server did not start. The message ends with the last lines of its log."""


@contextlib.contextmanager
def serving(
    models: Sequence[str],
    *,
    archives: Path,
    log: Path,
    config: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[LocalServer]:
    """Serve `models` on free ports until the block ends. Standard output and error go to `log`.

    `environment` replaces the environment of this process. Raises `LocalServerFailed`.
    """
    with tempfile.TemporaryDirectory(prefix="mobilevision-") as folder:
        ready_file = Path(folder) / "ready.json"
        command = [sys.executable, "-m", "service", "serve", *models, "--archives", str(archives)]
        command += ["--grpc-port", "0", "--http-port", "0", "--ready-file", str(ready_file)]
        command += [] if config is None else ["--config", str(config)]
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command, stdout=stream, stderr=stream, start_new_session=True, env=environment and dict(environment)
            )
        try:
            deadline = time.monotonic() + STARTUP_SECONDS
            while not ready_file.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    tail = "\n".join(log.read_text(errors="replace").splitlines()[-TAIL_LINES:])
                    raise LocalServerFailed(f"the server did not start; the end of {log}:\n{tail}")
                time.sleep(POLL_SECONDS)
            yield LocalServer(**json.loads(ready_file.read_text()))
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
