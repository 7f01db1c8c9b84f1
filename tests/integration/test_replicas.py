"""Two replicas (gateway processes) before one real TorchServe with a toy module: one port, one page, a clean end."""

import contextlib
import json
import os
import re
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import psutil
import pytest
from fakes import picture
from serving import Served, refusals, served
from toy_torchserve import build

from service.pb.mobilevision.v1 import vision_pb2, vision_pb2_grpc

pytestmark = [
    pytest.mark.integration,
    # TorchScript is this project's format; torch deprecates it in favour of torch.export.
    pytest.mark.filterwarnings(r"ignore:`torch\.jit\.:DeprecationWarning"),
]
SECONDS = 60.0
MOST_CONNECTIONS = 64  # that all of them go to the same one of two processes has a chance of 2 ** -63


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    build(folder)
    return folder


@pytest.fixture
def shm(tmp_path: Path) -> Path:
    folder = tmp_path / "shm"
    folder.mkdir()
    return folder


@pytest.fixture
def replicated(toy: Path, tmp_path: Path, shm: Path) -> Iterator[Served]:
    with served(toy, tmp_path, "toy", MOBILEVISION_GATEWAY_PROCESSES="2", MOBILEVISION_SHM_DIR=str(shm)) as server:
        yield server


def http(server: Served, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{server.http}{path}", timeout=10) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def answered(server: Served) -> dict[str, int]:
    """Calls answered, by the number of the gateway process."""
    series = r'mobilevision_requests_total\{gateway_process="(\d)",code="OK",method="Classify",model="toy"\} (.*)'
    return {process: int(float(count)) for process, count in re.findall(series, http(server, "/metrics")[1])}


def classify(server: Served) -> str:
    """A call over a connection of its own."""
    with grpc.insecure_channel(server.grpc, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = vision_pb2_grpc.VisionServiceStub(channel)
        request = vision_pb2.ClassifyRequest(image=picture(gray=100))
        return str(stub.Classify(request, timeout=SECONDS, wait_for_ready=True).labels[0].name)


def call_until_both_answered(server: Served) -> int:
    before = answered(server)
    for calls in range(1, MOST_CONNECTIONS + 1):
        assert classify(server) == "dark"
        now = answered(server)
        if all(now.get(process, 0) > before.get(process, 0) for process in "01"):
            return calls
    pytest.fail(f"after {MOST_CONNECTIONS} connections only {answered(server)}")


def gateways(server: Served) -> dict[int, psutil.Process]:
    """The gateway processes by number, without their process guards."""
    found = {}
    for process in server.descendants():
        with contextlib.suppress(psutil.Error):  # it has just ended
            line = process.cmdline()
            if "gateway-process" in line and not any("process_guard" in part for part in line):
                found[int(line[-2])] = process
    return found


def wait(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def test_two_processes_share_the_calls_survive_a_kill_and_a_freeze_and_drain_together(
    replicated: Served, shm: Path
) -> None:
    calls = call_until_both_answered(replicated)
    assert sum(answered(replicated).values()) == calls
    assert http(replicated, "/livez") == (200, "ok\n")
    assert http(replicated, "/readyz")[0] == 200
    assert len(list(shm.iterdir())) == 2

    victim, other = gateways(replicated)[0], gateways(replicated)[1]
    victim.kill()
    wait(lambda: gateways(replicated).get(0, victim) != victim)
    wait(lambda: http(replicated, "/livez") == (200, "ok\n"))  # both answer again
    assert gateways(replicated)[1] == other
    assert 'mobilevision_gateway_restarts_total{gateway_process="supervisor"} 1.0' in http(replicated, "/metrics")[1]
    call_until_both_answered(replicated)
    assert len(list(shm.iterdir())) == 2  # that of the killed one is gone

    frozen, other = gateways(replicated)[0], gateways(replicated)[1]
    frozen.suspend()  # SIGSTOP
    assert http(replicated, "/livez") == (200, "gateway process 0: no answer\n")
    status, ready = http(replicated, "/readyz")
    assert (status, json.loads(ready)["not_ready"]) == (200, {"0": "no answer"})
    wait(lambda: gateways(replicated).get(0, frozen) != frozen)
    wait(lambda: http(replicated, "/livez") == (200, "ok\n"))
    assert gateways(replicated)[1] == other
    assert "gateway process 0 did not answer /livez 5 times in a row and is killed" in replicated.log.read_text()
    call_until_both_answered(replicated)

    started = replicated.descendants()
    assert len(gateways(replicated)) == 2
    assert replicated.stop() == 0
    assert not psutil.wait_procs(started, timeout=SECONDS)[1]
    assert list(shm.iterdir()) == []
    log = replicated.log.read_text()
    assert '"gateway_process": 0' in log
    assert '"gateway_process": 1' in log
    assert "Traceback" not in log


def test_a_killed_supervisor_takes_everything_along(replicated: Served) -> None:
    started = replicated.descendants()
    assert len(gateways(replicated)) == 2
    replicated.process.send_signal(signal.SIGKILL)
    replicated.process.wait()
    assert not psutil.wait_procs(started, timeout=SECONDS)[1]


def test_a_process_that_cannot_start_again_ends_the_server_only_if_none_is_left(tmp_path: Path, shm: Path) -> None:
    archives = tmp_path / "archives"
    archives.mkdir()
    build(archives)
    with served(archives, tmp_path, "toy", MOBILEVISION_GATEWAY_PROCESSES="2", MOBILEVISION_SHM_DIR=str(shm)) as server:
        started = server.descendants()
        for card in archives.glob("*.card.json"):
            card.unlink()
        first, second = gateways(server)[0], gateways(server)[1]
        second.kill()
        wait(lambda: "no archive of 'toy'" in " ".join(server.log.read_text().split()))
        assert classify(server) == "dark", "the other process serves on"
        first.kill()
        assert server.process.wait(SECONDS) == 1
        assert not psutil.wait_procs(started, timeout=SECONDS)[1]
        log = server.log.read_text()
        assert "error: no archive of 'toy'" in " ".join(log.split())  # the process's own words
        assert re.search(r"error: gateway process [01] could not be started 3 times in a row", " ".join(log.split()))
        assert not (tmp_path / "ready.json").exists()


def test_one_process_is_served_without_a_supervisor(toy: Path, tmp_path: Path, shm: Path) -> None:
    with served(toy, tmp_path, "toy", MOBILEVISION_GATEWAY_PROCESSES="1", MOBILEVISION_SHM_DIR=str(shm)) as server:
        assert classify(server) == "dark"
        assert gateways(server) == {}
        page = http(server, "/metrics")[1]
        assert "gateway_process=" not in page
        assert 'mobilevision_requests_total{code="OK",method="Classify",model="toy"} 1.0' in page
        assert server.stop() == 0
        assert list(shm.iterdir()) == []


@pytest.mark.parametrize("processes", ["1", "2"])
def test_sigterm_to_the_process_group_under_load_loses_no_call(
    toy: Path, tmp_path: Path, shm: Path, processes: str
) -> None:
    changes = {"MOBILEVISION_GATEWAY_PROCESSES": processes, "MOBILEVISION_SHM_DIR": str(shm)}
    with served(toy, tmp_path, "toy", **changes) as server:
        started = server.descendants()

        def stop() -> None:
            os.killpg(server.process.pid, signal.SIGTERM)
            server.process.send_signal(signal.SIGTERM)  # as from a parent that passes the signal on; it counts once
            assert server.process.wait(SECONDS) == 0

        refused = refusals(server.grpc, picture(gray=100), stop)
        # Every call was answered, or refused, or found the port closed.
        assert set(refused) <= {"UNAVAILABLE SHUTTING_DOWN", "UNAVAILABLE "}
        logged = [json.loads(line) for line in server.log.read_text().splitlines()]
        assert {line["reason"] for line in logged if "reason" in line} <= {"SHUTTING_DOWN"}
        assert not psutil.wait_procs(started, timeout=SECONDS)[1]
