"""The images, run as the pod runs them: podman, host network, non-root, read-only root. `make images` builds them.

Needs root, podman and runc, and a Linux that lets containers be nested where it is one itself; skipped otherwise.
"""

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from fakes import read
from manifests import VERSION

from service.client import CallFailed, VisionClient

SECONDS = 240.0
TORCHSERVE, GATEWAY = f"mobilevision/torchserve:{VERSION}", f"mobilevision/gateway:{VERSION}"
HARDENED = [
    "--read-only",
    "--read-only-tmpfs=false",
    "--cap-drop=all",
    "--security-opt=no-new-privileges",
    "--pull=never",
    "--no-healthcheck",  # the probes are asked here, and podman's timers need systemd
    "--network=host",
]

pytestmark = [pytest.mark.exhaustive, pytest.mark.timeout(600)]


def command(*arguments: str) -> list[str]:
    runtime = ["--runtime", runc] if (runc := shutil.which("runc")) else []
    return ["podman", *runtime, *arguments]


def podman(*arguments: str, check: bool = True) -> str:
    done = subprocess.run(command(*arguments), check=False, capture_output=True, text=True)
    assert done.returncode == 0 or not check, done.stderr
    return done.stdout.strip()


@dataclass(frozen=True)
class Pod:
    """Two running containers that share what the pod's share."""

    gateway: str
    torchserve: str
    grpc: str


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    if shutil.which("podman") is None or not all(podman("images", "-q", image) for image in (GATEWAY, TORCHSERVE)):
        pytest.skip("needs podman and the images: make images")
    ports = [socket.socket() for _ in range(4)]
    for port in ports:
        port.bind(("127.0.0.1", 0))
    grpc, http, inference, management = (port.getsockname()[1] for port in ports)
    for port in ports:
        port.close()
    shared = {name: tmp_path / name for name in ("models", "keys", "shm")}
    for folder in shared.values():
        folder.mkdir()
        folder.chmod(0o777)
    volumes = [f"--volume={shared['keys']}:/run/keys", f"--volume={shared['shm']}:/dev/shm"]
    environment = {
        "MOBILEVISION_GRPC_PORT": grpc,
        "MOBILEVISION_HTTP_PORT": http,
        "MOBILEVISION_TORCHSERVE_INFERENCE": f"127.0.0.1:{inference}",
        "MOBILEVISION_TORCHSERVE_MANAGEMENT": f"127.0.0.1:{management}",
    }
    options = [*HARDENED, *volumes, *(f"--env={name}={value}" for name, value in environment.items())]
    copy = ["--entrypoint=cp", f"--volume={shared['models']}:/shared", TORCHSERVE, "-R", "/models/.", "/shared/"]
    podman("run", "--rm", *HARDENED, *copy)
    models = f"--volume={shared['models']}:/models:ro"
    run_tmpfs = "--tmpfs=/run/torchserve:rw,exec,mode=1777,size=1g"
    torchserve = podman("run", "--detach", *options, models, run_tmpfs, TORCHSERVE)
    gateway = ""
    try:
        wait(lambda: ready(torchserve, "torchserve-probe", "torchserve-ready"), torchserve)
        gateway = podman("run", "--detach", *options, models, GATEWAY)
        wait(lambda: ready(gateway, "gateway-probe"), gateway)
        yield Pod(gateway=gateway, torchserve=torchserve, grpc=f"127.0.0.1:{grpc}")
    finally:
        for container in (gateway, torchserve):
            if container:
                podman("rm", "--force", "--time=1", container, check=False)


def ready(container: str, *question: str) -> bool:
    return subprocess.run(command("exec", container, *question), check=False, capture_output=True).returncode == 0


def wait(condition: Callable[[], bool], container: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, podman("logs", container)
        assert podman("inspect", "--format={{.State.Running}}", container) == "true", podman("logs", container)
        time.sleep(0.5)


def test_the_pod_answers_and_drains_without_losing_a_call(pod: Pod) -> None:
    image = read("chelsea.jpg")
    with VisionClient(pod.grpc) as client:
        assert client.classify(image).reply.labels
        assert client.detect(image, score_threshold=0.0).reply.model.name
        assert client.segment(image).reply.mask_png
        for container in (pod.gateway, pod.torchserve):
            assert podman("exec", container, "id", "-u") == "10001"
            refused = podman("exec", container, "sh", "-c", "touch /etc/x 2>/dev/null || echo read-only")
            assert refused == "read-only"
            sbom = json.loads(podman("exec", container, "cat", "/opt/mobilevision/sbom.cdx.json"))
            assert sbom["bomFormat"] == "CycloneDX"
            assert "grpcio" in {component["name"] for component in sbom["components"]}

        answered: list[int] = []
        refusals: list[str] = []

        def call_until_refused(_: int) -> None:
            while True:
                try:
                    client.classify(image, timeout_seconds=30)
                    answered.append(1)
                except CallFailed as error:
                    refusals.append(f"{error.code.name} {error.reason}")
                    return

        with ThreadPoolExecutor(8) as pool:
            callers = [pool.submit(call_until_refused, n) for n in range(8)]
            wait(lambda: len(answered) >= 16, pod.gateway)
            podman("stop", "--time=60", pod.gateway)
            for caller in callers:
                caller.result()
        assert podman("inspect", "--format={{.State.ExitCode}}", pod.gateway) == "0"
        # Whatever was accepted was answered; each caller was then told to go elsewhere, or found the port closed.
        assert len(refusals) == 8
        assert set(refusals) <= {"UNAVAILABLE SHUTTING_DOWN", "UNAVAILABLE "}
        assert "UNAVAILABLE SHUTTING_DOWN" in refusals
        lines = [json.loads(line) for line in podman("logs", pod.gateway).splitlines() if line.startswith("{")]
        assert {line["reason"] for line in lines if line.get("reason")} <= {"SHUTTING_DOWN"}
        began = time.monotonic()
        podman("stop", "--time=30", pod.torchserve)
        assert time.monotonic() - began < 20, "SIGTERM must reach the JVM"
