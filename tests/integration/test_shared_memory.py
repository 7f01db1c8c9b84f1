"""Shared memory as an operator meets it: real models, a real TorchServe, processes that are killed."""

import signal
import time
from pathlib import Path

import pytest
from fakes import read
from google.protobuf.message import Message
from serving import Served, served

from mobilevision.client import CallFailed, VisionClient

pytestmark = pytest.mark.integration
PICTURES = ("astronaut.jpg", "chelsea.jpg", "coffee.jpg", "rocket.jpg")
MODEL = "mobilevit_xxs_classify"


def replies(server: Served) -> list[bytes]:
    found: list[Message] = []
    with VisionClient(server.grpc) as client:
        for name in PICTURES:
            image = read(name)
            found += [client.classify(image).reply, client.detect(image, score_threshold=0.01).reply]
            found.append(client.segment(image, include_confidence=True).reply)
    return [reply.SerializeToString(deterministic=True) for reply in found]


def test_answers_are_those_of_the_inline_transport_bit_for_bit(server: Served, archives: Path, tmp_path: Path) -> None:
    assert server.metric(f'shm_in_use{{model="{MODEL}"}}') == 1
    assert server.metric(f'worker_channels{{model="{MODEL}"}}') >= 1
    with served(archives, tmp_path, MOBILEVISION_SHM_MEGABYTES="0") as inline:
        assert inline.metric(f'shm_in_use{{model="{MODEL}"}}') == 0
        assert inline.metric(f'worker_channels{{model="{MODEL}"}}') == 0
        expected = replies(inline)
    assert replies(server) == expected
    for kind in ("input", "output"):
        assert server.metric(f'shm_slots{{kind="{kind}",model="{MODEL}",state="used"}}') == 0
        assert server.metric(f'shm_slots{{kind="{kind}",model="{MODEL}",state="quarantined"}}') == 0


def test_a_killed_worker_and_a_killed_gateway_leave_no_slot_and_no_file(archives: Path, tmp_path: Path) -> None:
    shm = tmp_path / "shm"
    shm.mkdir()
    image = read("chelsea.jpg")
    with served(archives, tmp_path, MODEL, MOBILEVISION_SHM_DIR=str(shm)) as server:
        with VisionClient(server.grpc) as client:
            client.classify(image)
            channels = server.metric(f'worker_channels{{model="{MODEL}"}}')
            assert channels >= 1
            next(p for p in server.descendants() if "model_service_worker" in " ".join(p.cmdline())).kill()
            deadline = time.monotonic() + 90
            while True:
                try:
                    client.classify(image, timeout_seconds=10)
                    break
                except CallFailed:
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
            while server.metric(f'worker_channels{{model="{MODEL}"}}') < channels:
                assert time.monotonic() < deadline
                client.classify(image)
                time.sleep(0.2)
            for kind in ("input", "output"):
                for state in ("used", "quarantined"):
                    assert server.metric(f'shm_slots{{kind="{kind}",model="{MODEL}",state="{state}"}}') == 0
        [left] = shm.iterdir()
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
    assert left.is_dir()
    (tmp_path / "ready.json").unlink()
    with served(archives, tmp_path, MODEL, MOBILEVISION_SHM_DIR=str(shm)) as server:
        assert not left.exists()
        assert len(list(shm.iterdir())) == 1
        with VisionClient(server.grpc) as client:
            client.classify(image)
        assert server.stop() == 0
    assert list(shm.iterdir()) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_a_hung_worker_is_replaced_within_seconds(archives: Path, tmp_path: Path, workers: int) -> None:
    image = read("chelsea.jpg")
    with (
        served(archives, tmp_path, MODEL, MOBILEVISION_WORKERS_PER_MODEL=str(workers)) as server,
        VisionClient(server.grpc) as client,
    ):
        for _ in range(5):
            client.classify(image)
        assert server.metric(f'worker_channels{{model="{MODEL}"}}') == workers
        worker = next(p for p in server.descendants() if "model_service_worker" in " ".join(p.cmdline()))
        worker.suspend()
        hung_at = time.monotonic()
        while True:
            try:
                client.classify(image, timeout_seconds=20)
                # With two workers, calls in turn may never need the hung one.
                if not worker.is_running() or (workers == 2 and time.monotonic() - hung_at > 8):
                    break
            except CallFailed:
                assert workers == 1
                assert time.monotonic() - hung_at < 45
                time.sleep(0.1)
        # Without the watch it takes twice the batch timeout, 60 s. A busy machine starts a worker in 18 s.
        assert time.monotonic() - hung_at < (45 if workers == 1 else 20)
