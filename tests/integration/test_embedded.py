"""A real TorchServe with a toy module: what it answers, and what is left when something dies."""

import asyncio
import dataclasses
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
import pytest
import pytest_asyncio
from toy_torchserve import SIDE, build, config_for, jvm_of, members, request, worker_of

from handlers.contract import frame
from service.core import locked_directory
from service.core.errors import BackendFault, BackendTimeout, BackendUnavailable
from service.engines.torchserve.client import TorchServeClient
from service.engines.torchserve.config import TorchServeFailed
from service.engines.torchserve.process import RUN_PREFIX, TorchServeProcess
from service.engines.torchserve.server_state import ServerState
from service.pb.torchserve import inference_pb2, inference_pb2_grpc, management_pb2, management_pb2_grpc

pytestmark = [
    pytest.mark.integration,
    pytest.mark.asyncio(loop_scope="module"),
    # TorchScript is this project's format; torch deprecates it in favour of torch.export.
    pytest.mark.filterwarnings(r"ignore:`torch\.jit\.:DeprecationWarning"),
]

SECONDS = 30.0


async def answering(backend: TorchServeClient) -> None:
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
    return build(tmp_path_factory.mktemp("ä 日本"))  # Java does not read such names by itself


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(toy: Path) -> AsyncIterator[TorchServeProcess]:
    progress: list[int] = []
    base = Path(tempfile.mkdtemp(prefix="ä 日本 "))
    environment = {name: value for name, value in os.environ.items() if name not in ("LANG", "LC_ALL", "LC_CTYPE")}
    config = config_for(toy, base_directory=base, environment=environment)
    embedded = TorchServeProcess(config, on_progress=lambda s: progress.append(s["toy"].ready_workers))
    await embedded.start()
    assert (progress[0], progress[-1]) == (0, 1)
    supervising = asyncio.create_task(embedded.supervise())
    yield embedded
    await embedded.stop()
    await asyncio.wait_for(supervising, SECONDS)
    base.rmdir()  # it is empty


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def backend(server: TorchServeProcess) -> AsyncIterator[TorchServeClient]:
    connected = TorchServeClient(server.endpoint)
    yield connected
    await connected.close()


async def test_every_row_of_a_batch_is_answered(backend: TorchServeClient) -> None:
    results, meta = frame.unpack(await backend.infer("toy", request(3, 200, 7), timeout_seconds=SECONDS))
    np.testing.assert_array_equal(results["scores"], [[3, -3], [200, -200], [7, -7]])
    assert results["labels"].dtype == np.int32
    assert (meta["batch"], meta["dtype"], meta["device"]) == (3, "float32", "cpu")
    assert 0 < meta["inference_seconds"] < SECONDS


async def test_status_counts_ready_workers(backend: TorchServeClient) -> None:
    status = await backend.model_status("toy")
    assert (status.ready_workers, status.total_workers) == (1, 1)
    unknown = await backend.model_status("absent")
    assert (unknown.ready_workers, unknown.total_workers) == (0, 0)
    assert "absent" in unknown.detail


@pytest.mark.parametrize("token", [None, "wrong", "management"])
async def test_a_call_without_the_inference_token_is_refused(server: TorchServeProcess, token: str | None) -> None:
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


# All methods that TorchServe 0.12 has, and the kind of key that opens them.
METHODS = [
    *(
        ("management", f"management.ManagementAPIsService/{name}")
        for name in ("DescribeModel", "ListModels", "RegisterModel", "ScaleWorker", "SetDefault", "UnregisterModel")
    ),
    *(
        ("inference", f"inference.InferenceAPIsService/{name}")
        for name in ("Ping", "Predictions", "StreamPredictions", "StreamPredictions2")
    ),
]


@pytest.mark.parametrize(("api", "method"), METHODS)
@pytest.mark.parametrize("token", [None, "wrong", "other"])
async def test_no_method_of_torchserve_answers_without_its_token(
    server: TorchServeProcess, api: str, method: str, token: str | None
) -> None:
    if token == "other":
        keys = json.loads((server.run_directory / "key_file.json").read_bytes())
        token = keys["inference" if api == "management" else "management"]["key"]
    metadata = () if token is None else (("authorization", f"Bearer {token}"),)
    endpoint = server.endpoint
    address = endpoint.management_address if api == "management" else endpoint.inference_address
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_stream(f"/org.pytorch.serve.grpc.{method}")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(b"", metadata=metadata, timeout=SECONDS).read()
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize(
    ("api", "method", "path"),
    [
        ("management", "GET", "/models"),
        ("management", "POST", "/models?url=toy@1.0.mar"),
        ("management", "DELETE", "/models/toy"),
        ("inference", "POST", "/predictions/toy"),
    ],
)
async def test_http_without_a_token_is_refused(server: TorchServeProcess, api: str, method: str, path: str) -> None:
    socket = server.run_directory / api
    reader, writer = await asyncio.open_unix_connection(socket)
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
    reply = await asyncio.wait_for(reader.read(), SECONDS)
    writer.close()
    await writer.wait_closed()
    assert reply.split()[1] == b"400"
    assert b"Token Authorization failed" in reply


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/x.mar", "https://example.com/x.mar", "file:///tmp/x.mar", "../x.mar"]
)
async def test_an_archive_from_elsewhere_is_refused_even_with_the_token(server: TorchServeProcess, url: str) -> None:
    token = json.loads((server.run_directory / "key_file.json").read_bytes())["management"]["key"]
    async with grpc.aio.insecure_channel(server.endpoint.management_address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await management_pb2_grpc.ManagementAPIsServiceStub(channel).RegisterModel(
                management_pb2.RegisterModelRequest(url=url),
                metadata=(("authorization", f"Bearer {token}"),),
                timeout=SECONDS,
            )
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    assert "allowed" in (refused.value.details() or "")


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
async def test_a_failing_batch_is_a_fault_that_says_why(backend: TorchServeClient, bad: bytes, message: str) -> None:
    with pytest.raises(BackendFault, match=message):
        await backend.infer("toy", bad, timeout_seconds=SECONDS)
    await backend.infer("toy", request(1), timeout_seconds=SECONDS)


async def test_a_model_torchserve_lacks_is_unavailable(backend: TorchServeClient) -> None:
    with pytest.raises(BackendUnavailable, match="Model not found"):
        await backend.infer("absent", request(1), timeout_seconds=SECONDS)


async def test_a_frame_over_the_limit_is_a_fault(server: TorchServeProcess) -> None:
    small = TorchServeClient(dataclasses.replace(server.endpoint, max_message_bytes=2000))
    with pytest.raises(BackendFault, match="larger than max"):
        await small.infer("toy", request(1), timeout_seconds=SECONDS)
    await small.close()


async def test_a_stopped_worker_times_out_and_a_full_queue_is_unavailable(
    server: TorchServeProcess, backend: TorchServeClient
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
    server: TorchServeProcess, backend: TorchServeClient
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


async def test_a_killed_jvm_is_started_again_on_fresh_ports(
    server: TorchServeProcess, backend: TorchServeClient
) -> None:
    group = server.process_group
    before = ServerState.read(server.run_directory)
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
    after = ServerState.read(server.run_directory)
    ports = {before.inference_port, before.management_port, after.inference_port, after.management_port}
    assert len(ports) == 4


async def test_workers_that_hang_are_ended_when_the_engine_is_asked(
    server: TorchServeProcess, backend: TorchServeClient
) -> None:
    worker = worker_of(server.process_group)
    worker.suspend()
    call = asyncio.create_task(backend.infer("toy", request(1), timeout_seconds=SECONDS))
    await asyncio.sleep(0.3)
    assert await backend.end_workers("toy", "1.0") == 1
    with pytest.raises(BackendUnavailable, match="Worker died"):
        await call
    assert await backend.end_workers("toy", "1.0") == 0  # the one that starts is not ready, so it is spared
    await answering(backend)


async def test_a_second_instance_runs_beside_and_stop_leaves_nothing(
    toy: Path, server: TorchServeProcess, backend: TorchServeClient, tmp_path: Path
) -> None:
    base = Path("/tmp") if len(str(tmp_path)) > 60 else tmp_path
    left_over = base / f"{RUN_PREFIX}of-a-killed-server"
    left_over.mkdir(exist_ok=True)
    other = TorchServeProcess(config_for(toy, base_directory=base))
    await other.start()
    assert not left_over.exists()
    assert server.run_directory.exists()
    run, group = other.run_directory, other.process_group
    beside = TorchServeClient(other.endpoint)
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
    embedded = TorchServeProcess(
        config_for(toy, dtype="int8"), on_progress=lambda _: seen.append(embedded.run_directory)
    )
    with pytest.raises(TorchServeFailed, match="MOBILEVISION_DTYPE is 'int8'"):
        await embedded.start()
    assert not seen[-1].exists()


async def test_when_the_gateway_is_killed_nothing_survives_it(toy: Path) -> None:
    program = (
        "import asyncio, os, sys\n"
        "from pathlib import Path\n"
        "from service.engines.torchserve.process import TorchServeProcess\n"
        "from service.engines.torchserve.config import TorchServeConfig, TorchServeModel\n"
        "async def main():\n"
        "    model = TorchServeModel('toy', Path(sys.argv[1]))\n"
        "    e = TorchServeProcess(TorchServeConfig(models=(model,), environment=os.environ, worker_threads=1))\n"
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
    assert len(members(int(group))) >= 3  # process guard, JVM, worker
    worker_of(int(group)).suspend()
    gateway.send_signal(signal.SIGKILL)
    await gateway.wait()
    await gone(int(group))
    # Only the directory is left: nobody lives who could remove it. The next server does.
    assert Path(run).exists()
    locked_directory.remove_stale(Path(tempfile.gettempdir()), RUN_PREFIX)
    assert not Path(run).exists()
