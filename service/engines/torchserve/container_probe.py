"""Report the state of a container to the orchestrator: `python -I -S container_probe.py QUESTION ARGUMENT...`.

    gateway URL                       0 when URL (its /readyz) answers 200
    torchserve-ready RUN KEY_FILE     0 when every model has a ready worker; after the first time, one is enough
    torchserve-live RUN KEY_FILE      0 while TorchServe answers and has not given up on a model

The argument RUN is TorchServe's run directory (`service.engines.torchserve.container`); the probe calls its Unix
sockets. Any other exit status means no, and the reason is on standard output. The probe runs every few seconds: it uses
the standard library only, is never imported by the service, and takes about 50 ms of CPU.
"""

import http.client
import json
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

TIMEOUT_SECONDS = 4.0
# TorchServe gives up on a model after its worker has died for five minutes. If no model is left, a new JVM is tried.
# The same as `TorchServeConfig.unready_seconds`, which this file cannot import.
GIVEN_UP_SECONDS = 400.0


class Unwell(Exception):
    """The answer is no. The message says why."""


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
    """Raise `Unwell` unless every model of config.properties has a ready worker. After the first time, one is enough.

    In a new pod every model must load, so that the rollout of a broken archive stops before it replaces a pod that
    works. When TorchServe starts again in this pod, a model that has broken since must not end the others.
    """
    all_were_ready = Path(run).parent / "all_were_ready"  # outlives TorchServe's own folder
    reasons = _models(run, key_file)
    failures = [why for why in reasons.values() if why is not None]
    if not failures:
        all_were_ready.touch()
    elif len(failures) == len(reasons) or not all_were_ready.exists():
        raise Unwell(failures[0])


def torchserve_live(run: str, key_file: str) -> None:
    """Raise `Unwell` when TorchServe does not answer, or no model has had a ready worker for too long.

    A model that cannot be loaded must not end the others: a new JVM would not load it either.
    """
    _get(_UnixConnection(Path(run) / "inference"), "/ping", {})
    # Its modification time is the only state kept between probes, a time of the monotonic clock: a wall clock that
    # is stepped would end a healthy container.
    last_ready = Path(run) / "last_ready"
    now = time.monotonic()
    try:
        states = _models(run, key_file)
        none_ready = "; ".join(why or "" for why in states.values()) if all(states.values()) else None
    except Unwell as why:
        none_ready = str(why)
    if none_ready is None:
        _touch(last_ready, now)
    else:
        # Later than now: the machine has started again since, and with it the clock.
        if not last_ready.exists() or last_ready.stat().st_mtime > now:
            _touch(last_ready, now)
        if now - last_ready.stat().st_mtime > GIVEN_UP_SECONDS:
            raise Unwell(f"for more than {GIVEN_UP_SECONDS:.0f} s: {none_ready}")


def _models(run: str, key_file: str) -> dict[str, str | None]:
    """Why each model of config.properties has no ready worker, None if it has one. Raises `Unwell`."""
    try:
        properties = (Path(run) / "config.properties").read_text()
        token = json.loads(Path(key_file).read_bytes())["management"]["key"]
    except (OSError, ValueError, KeyError) as error:
        raise Unwell(f"TorchServe is starting: {error}") from error
    archives = next(line for line in properties.splitlines() if line.startswith("load_models=")).partition("=")[2]
    # Without a version: the default version may change.
    models = [archive.removesuffix(".mar").partition("@")[0] for archive in archives.split(",")]
    return {model: _why_not_ready(Path(run), token, model) for model in models}


def _why_not_ready(run: Path, token: str, model: str) -> str | None:
    headers = {"Authorization": f"Bearer {token}"}
    status, body = _get(_UnixConnection(run / "management"), f"/models/{model}", headers)
    if status != http.client.OK:
        return f"model {model}: TorchServe answers {status}"
    if not any(worker["status"] == "READY" for version in json.loads(body) for worker in version["workers"]):
        return f"model {model}: no worker is ready"
    return None


def _touch(path: Path, at_seconds: float) -> None:
    path.touch()
    os.utime(path, (at_seconds, at_seconds))


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
