"""A real TorchServe with a toy module: what it answers, and what is left when something dies."""

import asyncio
import dataclasses
import json
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
import pytest
import pytest_asyncio
from toy_torchserve import SIDE, build, config_for, jvm_of, members, request, worker_of

from handlers import frame
from service.embedded import EmbeddedTorchServe
from service.errors import BackendFault, BackendTimeout, BackendUnavailable
from service.launch import EmbeddedError
from service.pb.torchserve import inference_pb2, inference_pb2_grpc
from service.torchserve import TorchServeBackend

pytestmark = [
    pytest.mark.integration,
    pytest.mark.asyncio(loop_scope="module"),
    # TorchScript is this project's format; torch deprecates it in favour of torch.export.
    pytest.mark.filterwarnings(r"ignore:`torch\.jit\.:DeprecationWarning"),
]

SECONDS = 30.0


async def answering(backend: TorchServeBackend) -> None:
    """Wait until the toy answers again."""
    async with asyncio.timeout(SECONDS):
        while True:
            try:
                await backend.infer("toy", request(1), timeout_seconds=2)
            except (BackendUnavailable, BackendTimeout):
                await asyncio.sleep(0.1)
            else:
                return


async def gone(group: int) -> None:
    async with asyncio.timeout(SECONDS):
        while members(group):
            await asyncio.sleep(0.05)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("store"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(toy: Path) -> AsyncIterator[EmbeddedTorchServe]:
    progress: list[int] = []
    embedded = EmbeddedTorchServe(config_for(toy), on_progress=lambda s: progress.append(s["toy"].ready_workers))
    await embedded.start()
    assert (progress[0], progress[-1]) == (0, 1)
    supervising = asyncio.create_task(embedded.supervise())
    yield embedded
    await embedded.stop()
    await asyncio.wait_for(supervising, SECONDS)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def backend(server: EmbeddedTorchServe) -> AsyncIterator[TorchServeBackend]:
    connected = TorchServeBackend(server.endpoint)
    yield connected
    await connected.close()


async def test_every_row_of_a_batch_is_answered(backend: TorchServeBackend) -> None:
    results, meta = frame.unpack(await backend.infer("toy", request(3, 200, 7), timeout_seconds=SECONDS))
    np.testing.assert_array_equal(results["scores"], [[3, -3], [200, -200], [7, -7]])
    assert results["labels"].dtype == np.int32
    assert (meta["batch"], meta["dtype"], meta["device"]) == (3, "float32", "cpu")
    assert 0 < meta["inference_seconds"] < SECONDS


async def test_status_counts_ready_workers(backend: TorchServeBackend) -> None:
    status = await backend.model_status("toy")
    assert (status.ready_workers, status.total_workers) == (1, 1)
    unknown = await backend.model_status("absent")
    assert (unknown.ready_workers, unknown.total_workers) == (0, 0)
    assert "absent" in unknown.detail


@pytest.mark.parametrize("token", [None, "wrong", "management"])
async def test_a_call_without_the_inference_token_is_refused(server: EmbeddedTorchServe, token: str | None) -> None:
    key_file = server.endpoint.key_file
    assert key_file is not None
    assert key_file.stat().st_mode & 0o077 == 0
    assert server.run_directory.stat().st_mode & 0o077 == 0
    if token == "management":
        token = json.loads(key_file.read_bytes())["management"]["key"]
    metadata = () if token is None else (("authorization", f"Bearer {token}"),)
    async with grpc.aio.insecure_channel(server.endpoint.inference_address) as channel:
        call = inference_pb2_grpc.InferenceAPIsServiceStub(channel).Predictions(
            inference_pb2.PredictionsRequest(model_name="toy", input={"frame": request(1)}),
            metadata=metadata,
            timeout=SECONDS,
        )
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b"garbage", "not a tensor frame"),
        (request(1, side=40), r"takes uint8 \[N, 32, 32, 3\]"),
        (request(*[1] * 9), "9 rows"),
        (frame.pack({"pixel": np.zeros((1, SIDE, SIDE, 3), np.uint8)}), "holds the tensor 'pixels'"),
        (request(255), "toy refuses white"),
    ],
)
async def test_a_failing_batch_is_a_fault_that_says_why(backend: TorchServeBackend, bad: bytes, message: str) -> None:
    with pytest.raises(BackendFault, match=message):
        await backend.infer("toy", bad, timeout_seconds=SECONDS)
    await backend.infer("toy", request(1), timeout_seconds=SECONDS)


async def test_a_model_torchserve_lacks_is_unavailable(backend: TorchServeBackend) -> None:
    with pytest.raises(BackendUnavailable, match="Model not found"):
        await backend.infer("absent", request(1), timeout_seconds=SECONDS)


async def test_a_frame_over_the_limit_is_a_fault(server: EmbeddedTorchServe) -> None:
    small = TorchServeBackend(dataclasses.replace(server.endpoint, max_message_bytes=2000))
    with pytest.raises(BackendFault, match="larger than max"):
        await small.infer("toy", request(1), timeout_seconds=SECONDS)
    await small.close()


async def test_a_stopped_worker_times_out_and_a_full_queue_is_unavailable(
    server: EmbeddedTorchServe, backend: TorchServeBackend
) -> None:
    worker = worker_of(server.process_group)
    worker.suspend()
    try:
        calls = [backend.infer("toy", request(1), timeout_seconds=1.5) for _ in range(6)]
        outcomes = [type(outcome) for outcome in await asyncio.gather(*calls, return_exceptions=True)]
    finally:
        worker.resume()
    # One in work, two queued (queue_size), the rest refused at once.
    assert sorted(outcomes, key=lambda kind: kind.__name__) == [BackendTimeout] * 3 + [BackendUnavailable] * 3
    await answering(backend)


async def test_a_killed_worker_loses_its_batch_as_unavailable_and_comes_back(
    server: EmbeddedTorchServe, backend: TorchServeBackend
) -> None:
    worker = worker_of(server.process_group)
    worker.suspend()  # so that the batch is surely in its hands
    call = asyncio.create_task(backend.infer("toy", request(1), timeout_seconds=SECONDS))
    await asyncio.sleep(0.3)
    worker.kill()
    with pytest.raises(BackendUnavailable, match="Worker died"):
        await call
    await answering(backend)
    assert server.restarts == 0


async def test_a_killed_jvm_is_started_again_on_its_ports(
    server: EmbeddedTorchServe, backend: TorchServeBackend
) -> None:
    group = server.process_group
    worker_of(group).suspend()  # a worker that hangs does not see its socket close
    call = asyncio.create_task(backend.infer("toy", request(1), timeout_seconds=SECONDS))
    await asyncio.sleep(0.3)
    jvm_of(group).kill()
    with pytest.raises(BackendUnavailable):
        await call
    await gone(group)
    await answering(backend)
    assert server.restarts == 1
    assert server.process_group != group


async def test_a_model_whose_workers_stay_dead_gets_a_new_torchserve(toy: Path) -> None:
    embedded = EmbeddedTorchServe(config_for(toy, unready_seconds=4.0))
    await embedded.start()
    supervising = asyncio.create_task(embedded.supervise())
    first = embedded.process_group
    connected = TorchServeBackend(embedded.endpoint)
    try:
        async with asyncio.timeout(60):
            while embedded.restarts == 0:  # no worker lives long enough to become ready
                for process in members(first):
                    if any("model_service_worker" in part for part in process.cmdline()):
                        process.kill()
                await asyncio.sleep(0.2)
        await answering(connected)
        assert embedded.process_group != first
    finally:
        await connected.close()
        await embedded.stop()
        await asyncio.wait_for(supervising, SECONDS)


async def test_a_second_instance_runs_beside_and_stop_leaves_nothing(
    toy: Path, server: EmbeddedTorchServe, backend: TorchServeBackend, tmp_path: Path
) -> None:
    base = Path("/tmp") if len(str(tmp_path)) > 60 else tmp_path
    other = EmbeddedTorchServe(config_for(toy, base_directory=base))
    await other.start()
    run, group = other.run_directory, other.process_group
    beside = TorchServeBackend(other.endpoint)
    answers = await asyncio.gather(
        *(b.infer("toy", request(9), timeout_seconds=SECONDS) for b in (backend, beside, backend, beside))
    )
    assert len({answer[-64:] for answer in answers}) == 1
    await beside.close()
    await other.stop()
    assert members(group) == []
    assert not run.exists()
    await other.stop()
    await backend.infer("toy", request(1), timeout_seconds=SECONDS)


async def test_a_worker_that_cannot_load_is_reported_with_its_own_words(toy: Path) -> None:
    seen: list[Path] = []
    embedded = EmbeddedTorchServe(
        config_for(toy, dtype="int8"), on_progress=lambda _: seen.append(embedded.run_directory)
    )
    with pytest.raises(EmbeddedError, match="MOBILEVISION_DTYPE is 'int8'"):
        await embedded.start()
    assert not seen[-1].exists()


async def test_when_the_gateway_is_killed_nothing_survives_it(toy: Path) -> None:
    program = (
        "import asyncio, os, sys\n"
        "from pathlib import Path\n"
        "from service.embedded import EmbeddedTorchServe\n"
        "from service.launch import EmbeddedConfig, EmbeddedModel\n"
        "async def main():\n"
        "    model = EmbeddedModel('toy', Path(sys.argv[1]))\n"
        "    e = EmbeddedTorchServe(EmbeddedConfig(models=(model,), environment=os.environ, worker_threads=1))\n"
        "    await e.start()\n"
        "    print(e.process_group, e.run_directory, flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    gateway = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(toy), stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert gateway.stdout is not None
    line = await asyncio.wait_for(gateway.stdout.readline(), 60)
    group, run = line.decode().split()
    assert len(members(int(group))) >= 3  # leash, JVM, worker
    worker_of(int(group)).suspend()
    gateway.send_signal(signal.SIGKILL)
    await gateway.wait()
    await gone(int(group))
    # Only the directory is left: nobody lives who could remove it.
    shutil.rmtree(run)
