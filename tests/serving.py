"""The real service for tests: archives built by the command line, and `mobilevision serve` as a process.

Test processes run side by side. They share the folders of archives: a lock lets one of them build at a time. Every
server listens on ports of its own.
"""

import contextlib
import fcntl
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import psutil
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from service.pb.mobilevision.v1 import vision_pb2, vision_pb2_grpc

ROOT = Path(__file__).parents[1]
MODELS = ("mobilevit_xxs_classify", "mobilevit_xxs_detect", "mobilevit_xxs_segment")
# Below the ports that the kernel hands out (Linux: 32768 to 60999), so that no other program is given one meanwhile.
CHOSEN_PORTS = range(20_000, 32_000)


@dataclass
class Served:
    """A running `mobilevision serve`."""

    process: subprocess.Popen[bytes]
    grpc: str
    http: str
    startup_seconds: float
    log: Path
    archives: Path
    children_seen: list[psutil.Process] = field(default_factory=list)

    def descendants(self) -> list[psutil.Process]:
        """TorchServe's JVM, its workers, and the processes that guard them."""
        self.children_seen = psutil.Process(self.process.pid).children(recursive=True)
        return self.children_seen

    def java(self) -> psutil.Process:
        """TorchServe's JVM."""
        return next(p for p in self.descendants() if "java" in p.name())

    def metric(self, series: str) -> float:
        """The value of one series, named without its prefix."""
        with urllib.request.urlopen(f"http://{self.http}/metrics", timeout=10) as reply:
            lines = reply.read().decode().splitlines()
        return float(next(line for line in lines if line.startswith(f"mobilevision_{series} ")).rpartition(" ")[2])

    def stop(self) -> int:
        """Send SIGTERM and wait for the end: the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def build_archives(folder: Path, *models: str, random_weights: bool = False) -> None:
    """Run `models build`, one test process at a time. Archives stay for the next run, which builds outdated ones."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "service", "models", "build", *models, "--out", str(folder)]
    command += ["--random"] if random_weights else []
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run(command, check=True, cwd=ROOT)


def free_ports(count: int) -> list[int]:
    """Different ports at which nothing listens now."""
    found: set[int] = set()
    while len(found) < count:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", random.choice(CHOSEN_PORTS)))
            found.add(probe.getsockname()[1])
    return list(found)


@pytest.fixture(scope="session")
def archives() -> Path:
    """The three MobileViT-XXS archives."""
    folder = ROOT / "build" / "test_archives"
    build_archives(folder, *MODELS)
    return folder


@contextlib.contextmanager
def served(
    archives: Path, folder: Path, *models: str, ready_seconds: float = 120, **environment: str
) -> Iterator[Served]:
    """Start `mobilevision serve` on free ports, wait until it answers, stop it at the end."""
    ready, log = folder / "ready.json", folder / "serve.log"
    command = [sys.executable, "-m", "service", "serve", *(models or MODELS), "--archives", str(archives)]
    command += ["--grpc-port", "0", "--http-port", "0", "--ready-file", str(ready)]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=stream, cwd=ROOT, env=os.environ | environment, start_new_session=True
        )
    try:
        deadline = time.monotonic() + ready_seconds
        while not ready.exists():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        address = json.loads(ready.read_text())
        yield Served(
            process=process,
            grpc=address["grpc"],
            http=address["http"],
            startup_seconds=address["startup_seconds"],
            log=log,
            archives=archives,
        )
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def refusals(address: str, image: bytes, stop: Callable[[], object], *, callers: int = 8) -> list[str]:
    """Code and reason of the error that ends each caller's calls. `stop` is called once all callers had answers.

    The callers never pause. They are plain gRPC clients: the project's own client watches the server's health, and
    would leave before the server refuses it.
    """
    answered: list[int] = []

    def call_until_refused(_: int) -> str:
        while True:
            try:
                stub.Classify(vision_pb2.ClassifyRequest(image=image), timeout=30)
                answered.append(1)
            except grpc.RpcError as error:
                info = error_details_pb2.ErrorInfo()
                status = rpc_status.from_call(error)
                if status is not None:
                    status.details[0].Unpack(info)
                return f"{error.code().name} {info.reason}"

    with grpc.insecure_channel(address) as channel, ThreadPoolExecutor(callers) as pool:
        stub = vision_pb2_grpc.VisionServiceStub(channel)
        refused = [pool.submit(call_until_refused, number) for number in range(callers)]
        deadline = time.monotonic() + 60
        while len(answered) < 2 * callers:
            assert time.monotonic() < deadline, "no answers"
            time.sleep(0.05)
        stop()
        return [one.result() for one in refused]


@pytest.fixture(scope="session")
def server(archives: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One served instance for every test that does not break it."""
    with served(archives, tmp_path_factory.mktemp("served")) as running:
        yield running
