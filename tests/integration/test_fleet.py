"""Two gateway processes in front of one real TorchServe with a toy module: one port, one page, nothing left behind."""

import contextlib
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
from serving import Served, served
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
def fleet(toy: Path, tmp_path: Path, shm: Path) -> Iterator[Served]:
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
    """The gateway processes themselves, without their leashes."""
    found = {}
    for process in server.descendants():
        with contextlib.suppress(psutil.Error):  # it has just ended
            line = process.cmdline()
            if "gateway-process" in line and not any("leash" in part for part in line):
                found[int(line[-2])] = process
    return found


def wait(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def test_two_processes_share_the_calls_survive_a_kill_and_drain_together(fleet: Served, shm: Path) -> None:
    calls = call_until_both_answered(fleet)
    assert sum(answered(fleet).values()) == calls
    assert http(fleet, "/livez") == (200, "ok\n")
    assert http(fleet, "/readyz")[0] == 200
    assert len(list(shm.iterdir())) == 2

    victim, other = gateways(fleet)[0], gateways(fleet)[1]
    victim.kill()
    wait(lambda: gateways(fleet).get(0, victim) != victim)
    wait(lambda: http(fleet, "/livez")[0] == 200)
    assert gateways(fleet)[1] == other
    assert 'mobilevision_gateway_restarts_total{gateway_process="supervisor"} 1.0' in http(fleet, "/metrics")[1]
    call_until_both_answered(fleet)
    assert len(list(shm.iterdir())) == 2  # that of the killed one is gone

    started = fleet.descendants()
    assert len(gateways(fleet)) == 2
    assert fleet.stop() == 0
    assert not psutil.wait_procs(started, timeout=SECONDS)[1]
    assert list(shm.iterdir()) == []
    log = fleet.log.read_text()
    assert '"gateway_process": 0' in log
    assert '"gateway_process": 1' in log
    assert "Traceback" not in log


def test_a_killed_supervisor_takes_everything_along(fleet: Served) -> None:
    started = fleet.descendants()
    assert len(gateways(fleet)) == 2
    fleet.process.send_signal(signal.SIGKILL)
    fleet.process.wait()
    assert not psutil.wait_procs(started, timeout=SECONDS)[1]


def test_a_process_that_cannot_start_again_ends_the_whole_and_says_which(tmp_path: Path, shm: Path) -> None:
    archives = tmp_path / "archives"
    archives.mkdir()
    build(archives)
    with served(archives, tmp_path, "toy", MOBILEVISION_GATEWAY_PROCESSES="2", MOBILEVISION_SHM_DIR=str(shm)) as server:
        started = server.descendants()
        for card in archives.glob("*.card.json"):
            card.unlink()
        gateways(server)[1].kill()
        assert server.process.wait(SECONDS) == 1
        assert not psutil.wait_procs(started, timeout=SECONDS)[1]
        log = server.log.read_text()
        assert "error: no archive of 'toy'" in " ".join(log.split())  # the process's own words
        assert "error: gateway process 1 could not be started 3 times in a row" in " ".join(log.split())
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
