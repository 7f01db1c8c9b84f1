"""The pod's two processes without a pod: `mobilevision torchserve` and a gateway that is given the same settings."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import read
from serving import ROOT, Served, free_ports, served

from mobilevision.client import CallFailed, VisionClient
from service.engines.torchserve import container_probe

pytestmark = pytest.mark.integration
MODEL = "mobilevit_xxs_classify"
SECONDS = 120.0


@contextlib.contextmanager
def torchserve(environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The TorchServe container's process, from the moment it is ready. It is killed at the end."""
    command = [sys.executable, "-m", "service", "torchserve"]
    with log.open("wb") as stream:
        process = subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, stdout=stream, stderr=stream)
    try:
        deadline = time.monotonic() + SECONDS
        while probe("torchserve-ready", environment) is not None:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield process
    finally:
        process.kill()
        process.wait()


def probe(question: str, environment: dict[str, str]) -> str | None:
    """The reason why the probe fails. None: it passes."""
    run = f"{environment['MOBILEVISION_RUN_DIR']}/torchserve"
    try:
        container_probe.QUESTIONS[question](run, environment["MOBILEVISION_TORCHSERVE_KEY_FILE"])
    except container_probe.Unwell as why:
        return str(why)
    return None


def answer(client: VisionClient, server: Served) -> None:
    """Wait until the gateway answers, and it shares memory with its TorchServe."""
    deadline = time.monotonic() + SECONDS
    while True:
        with contextlib.suppress(CallFailed):
            assert client.classify(read("chelsea.jpg"), timeout_seconds=10).reply.model.name == MODEL
            if server.metric(f'shm_in_use{{model="{MODEL}"}}') == 1:
                return
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_gateway_beside_torchserve_finds_it_again_after_its_restart(archives: Path, tmp_path: Path) -> None:
    inference, management = free_ports(2)
    (tmp_path / "keys").mkdir()
    environment = {
        "MOBILEVISION_ARCHIVES": str(archives),
        "MOBILEVISION_MODELS": f'["{MODEL}"]',
        "MOBILEVISION_RUN_DIR": str(tmp_path),
        "MOBILEVISION_TORCHSERVE_INFERENCE": f"127.0.0.1:{inference}",
        "MOBILEVISION_TORCHSERVE_MANAGEMENT": f"127.0.0.1:{management}",
        "MOBILEVISION_TORCHSERVE_KEY_FILE": str(tmp_path / "keys" / "key_file.json"),
    }
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(torchserve(environment, tmp_path / "first.log"))
        server = stack.enter_context(served(archives, tmp_path, MODEL, **environment))
        client = stack.enter_context(VisionClient(server.grpc))
        answer(client, server)
        assert server.descendants() == []  # none of its own
        assert probe("torchserve-live", environment) is None

        process.send_signal(signal.SIGTERM)
        process.wait(10)
        assert "no answer" in str(probe("torchserve-live", environment))
        with pytest.raises(CallFailed):
            client.classify(read("chelsea.jpg"), timeout_seconds=5)

        stack.enter_context(torchserve(environment, tmp_path / "second.log"))  # with other tokens
        answer(client, server)
