"""The images run as in the pod: with podman, host network, non-root user, read-only root. `make images` builds them.

Needs root, podman and runc. Inside a container it needs permission for nested containers. Skipped otherwise.
"""

import json
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from fakes import read
from manifests import pinned_images
from serving import refusals

from mobilevision.client import VisionClient

SECONDS = 240.0
PINNED = {each["name"]: f"{each['newName']}:{each['newTag']}" for each in pinned_images()}
TORCHSERVE, GATEWAY = PINNED["mobilevision/torchserve"], PINNED["mobilevision/gateway"]
MODELS = ["demo_classify", "demo_detect", "demo_segment"]
HARDENED = [
    "--read-only",
    "--read-only-tmpfs=false",
    "--cap-drop=all",
    "--security-opt=no-new-privileges",
    "--pull=never",
    "--no-healthcheck",  # the test runs the probes itself; podman's timers need systemd
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
    """Two running containers that share the resources of a pod."""

    gateway: str
    torchserve: str
    grpc: str
    http: str


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
    shared = {name: tmp_path / name for name in ("models", "run", "keys", "shm")}
    for folder in shared.values():
        folder.mkdir()
        folder.chmod(0o777)
    volumes = [f"--volume={shared['keys']}:/run/keys", f"--volume={shared['shm']}:/dev/shm"]
    environment = {
        "MOBILEVISION_MODELS": json.dumps(MODELS),  # an image contains every archive that existed when it was built
        "MOBILEVISION_GRPC_PORT": grpc,
        "MOBILEVISION_HTTP_PORT": http,
        "MOBILEVISION_TORCHSERVE_INFERENCE": f"127.0.0.1:{inference}",
        "MOBILEVISION_TORCHSERVE_MANAGEMENT": f"127.0.0.1:{management}",
    }
    options = [*HARDENED, *volumes, *(f"--env={name}={value}" for name, value in environment.items())]
    copy = ["--entrypoint=cp", f"--volume={shared['models']}:/shared", TORCHSERVE, "-R", "/models/.", "/shared/"]
    podman("run", "--rm", *HARDENED, *copy)
    models = f"--volume={shared['models']}:/models:ro"
    run = f"--volume={shared['run']}:/run/torchserve"
    torchserve = podman("run", "--detach", *options, models, run, TORCHSERVE)
    gateway = ""
    try:
        wait(lambda: ready(torchserve, "torchserve-probe", "torchserve-ready"), torchserve)
        gateway = podman("run", "--detach", *options, models, GATEWAY)
        wait(lambda: ready(gateway, "gateway-probe"), gateway)
        yield Pod(gateway=gateway, torchserve=torchserve, grpc=f"127.0.0.1:{grpc}", http=f"127.0.0.1:{http}")
    finally:
        for container in (gateway, torchserve):
            if container:
                podman("rm", "--force", "--time=1", container, check=False)


def logs(container: str) -> str:
    done = subprocess.run(command("logs", container), check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return done.stdout.decode(errors="replace")


def ready(container: str, *question: str) -> bool:
    done = subprocess.run(command("exec", container, *question), check=False, capture_output=True, text=True)
    assert done.returncode not in {125, 126, 127}, done.stderr  # errors of podman, not of the probe
    return done.returncode == 0


def wait(condition: Callable[[], bool], container: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, logs(container)
        assert podman("inspect", "--format={{.State.Running}}", container) == "true", logs(container)
        time.sleep(0.5)


def test_the_pod_answers_and_drains_without_losing_a_call(pod: Pod) -> None:
    image = read("chelsea.jpg")
    with VisionClient(pod.grpc) as client:
        classified = client.classify(image).reply
        assert classified.labels
        assert classified.model.engine == "torchserve/openvino"
        assert podman("exec", pod.torchserve, "find", "/run/torchserve", "-name", "compiled-*")
        assert client.detect(image, score_threshold=0.0).reply.model.name
        assert client.segment(image).reply.mask_png
        for container in (pod.gateway, pod.torchserve):
            assert podman("exec", container, "id", "-u") == "10001"
            root = podman("exec", container, "grep", " / ", "/proc/self/mounts").splitlines()[-1]
            assert "ro" in root.split()[3].split(","), root
            sbom = json.loads(podman("exec", container, "cat", "/opt/mobilevision/sbom.cdx.json"))
            assert sbom["bomFormat"] == "CycloneDX"
            assert "grpcio" in {component["name"] for component in sbom["components"]}

        page = urllib.request.urlopen(f"http://{pod.http}/metrics", timeout=10).read().decode()
        shared = re.findall(r'mobilevision_shm_in_use\{model="(\w+)"\} (.*)', page)
        assert len(shared) == 3
        assert {in_use for _, in_use in shared} == {"1.0"}, "pictures travel inside the calls"
        assert re.findall(r'mobilevision_shm_refused_total\{model="\w+"\} (.*)', page) == ["0.0"] * 3

    refused = refusals(pod.grpc, image, lambda: podman("stop", "--time=60", pod.gateway))
    assert podman("inspect", "--format={{.State.ExitCode}}", pod.gateway) == "0"
    # Every accepted call was answered. Later calls were refused with SHUTTING_DOWN or found the port closed.
    assert len(refused) == 8
    assert set(refused) <= {"UNAVAILABLE SHUTTING_DOWN", "UNAVAILABLE "}
    assert "UNAVAILABLE SHUTTING_DOWN" in refused
    lines = [json.loads(line) for line in podman("logs", pod.gateway).splitlines() if line.startswith("{")]
    assert {line["reason"] for line in lines if line.get("reason")} <= {"SHUTTING_DOWN"}
    began = time.monotonic()
    podman("stop", "--time=30", pod.torchserve)
    assert time.monotonic() - began < 20, "SIGTERM must reach the JVM"
