"""Say cheaply how a container of ours is: `python -I -S container_probe.py QUESTION ARGUMENT...`, for the orchestrator.

    gateway URL                       0 when URL (its /readyz) answers 200
    torchserve-ready RUN KEY_FILE     0 when every model to be loaded has a ready worker
    torchserve-live RUN KEY_FILE      0 while TorchServe answers and has not given up on a model

RUN is TorchServe's run directory (`service.container`), whose Unix sockets are asked. Says why on standard output when
the answer is no. Runs every few seconds for ever: standard library only, never imported, some 50 ms of CPU.
"""

import http.client
import json
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

TIMEOUT_SECONDS = 4.0
# TorchServe gives up on a model whose worker died too often for five minutes; only a new JVM tries again.
GIVEN_UP_SECONDS = 400.0


class Unwell(Exception):
    """The answer is no; the message says why."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def gateway(url: str) -> None:
    """Raise `Unwell` unless `url` answers 200."""
    parts = urlsplit(url)
    status, body = _get(http.client.HTTPConnection(parts.netloc, timeout=TIMEOUT_SECONDS), parts.path, {})
    if status != http.client.OK:
        raise Unwell(f"{url} answers {status}: {body.decode(errors='replace').strip()}")


def torchserve_ready(run: str, key_file: str) -> None:
    """Raise `Unwell` unless every model of config.properties has a ready worker."""
    try:
        properties = (Path(run) / "config.properties").read_text()
        token = json.loads(Path(key_file).read_bytes())["management"]["key"]
    except (OSError, ValueError, KeyError) as error:
        raise Unwell(f"TorchServe is starting: {error}") from error
    archives = next(line for line in properties.splitlines() if line.startswith("load_models=")).partition("=")[2]
    for archive in archives.split(","):
        model = archive.removesuffix(".mar").partition("@")[0]  # which version of it is the default may change
        connection = _UnixConnection(Path(run) / "management")
        status, body = _get(connection, f"/models/{model}", {"Authorization": f"Bearer {token}"})
        if status != http.client.OK:
            raise Unwell(f"model {model}: TorchServe answers {status}")
        if not any(worker["status"] == "READY" for version in json.loads(body) for worker in version["workers"]):
            raise Unwell(f"model {model}: no worker is ready")


def torchserve_live(run: str, key_file: str) -> None:
    """Raise `Unwell` when TorchServe does not answer, or a model has had no ready worker for too long."""
    _get(_UnixConnection(Path(run) / "inference"), "/ping", {})
    last_ready = Path(run) / "last_ready"  # its time is all that is remembered from probe to probe
    try:
        torchserve_ready(run, key_file)
    except Unwell as why:
        if not last_ready.exists():
            last_ready.touch()
        if time.time() - last_ready.stat().st_mtime > GIVEN_UP_SECONDS:
            raise Unwell(f"for more than {GIVEN_UP_SECONDS:.0f} s: {why}") from why
    else:
        last_ready.touch()


def _get(connection: http.client.HTTPConnection, path: str, headers: dict[str, str]) -> tuple[int, bytes]:
    try:
        connection.request("GET", path, headers=headers)
        reply = connection.getresponse()
        return reply.status, reply.read()
    except (OSError, http.client.HTTPException) as error:
        raise Unwell(f"no answer on {path}: {error!r}") from error
    finally:
        connection.close()


QUESTIONS: dict[str, Callable[..., None]] = {
    "gateway": gateway,
    "torchserve-ready": torchserve_ready,
    "torchserve-live": torchserve_live,
}


if __name__ == "__main__":
    try:
        QUESTIONS[sys.argv[1]](*sys.argv[2:])
    except Unwell as why:
        print(why)
        sys.exit(1)
