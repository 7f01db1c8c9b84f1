"""How clients find and keep a server: connection age, several servers behind one name, TLS and its renewal."""

import asyncio
import shutil
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest
from fakes import RunningGateway, local_settings, picture, running_gateway, toy_card
from grpc import aio

from benchmarks.name_server import NameServer
from mobilevision.client import VisionClient
from service.core.settings import SettingsError
from service.frontends.grpc.tls import server_credentials
from service.pb.mobilevision.v1 import vision_pb2, vision_pb2_grpc

CALL = vision_pb2.ListModelsRequest()
SECONDS = 20.0


async def test_an_old_connection_is_asked_to_end_and_no_call_fails() -> None:
    async with running_gateway([toy_card()], max_connection_age_seconds=0.2) as running:
        stub = vision_pb2_grpc.VisionServiceStub(running.channel)
        await stub.ListModels(CALL)
        seen = running.channel.get_state()
        async with asyncio.timeout(SECONDS):
            while running.channel.get_state() is grpc.ChannelConnectivity.READY:
                await stub.ListModels(CALL)
        assert seen is grpc.ChannelConnectivity.READY
        await stub.ListModels(CALL)


async def test_a_connection_may_stay_for_ever_by_default() -> None:
    async with running_gateway([toy_card()]) as running:
        stub = vision_pb2_grpc.VisionServiceStub(running.channel)
        await stub.ListModels(CALL)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.6):
                await running.channel.wait_for_state_change(grpc.ChannelConnectivity.READY)


async def test_the_client_spreads_its_calls_over_all_servers_of_a_name() -> None:
    async with running_gateway([toy_card()]) as first, running_gateway([toy_card()]) as second:
        with VisionClient(f"ipv4:{first.grpc},{second.grpc}", wait_for_ready=True) as client:
            async with asyncio.timeout(SECONDS):
                while not (first.backend.batch_sizes and second.backend.batch_sizes):
                    await asyncio.to_thread(client.classify, picture())


async def test_the_client_leaves_a_server_that_will_stop_while_it_still_answers() -> None:
    async with running_gateway([toy_card()]) as leaving, running_gateway([toy_card()]) as staying:
        with VisionClient(f"ipv4:{leaving.grpc},{staying.grpc}", wait_for_ready=True) as client:

            async def batches_of_ten_calls() -> int:
                before = len(leaving.backend.batch_sizes)
                for _ in range(10):
                    await asyncio.to_thread(client.classify, picture())
                return len(leaving.backend.batch_sizes) - before

            async with asyncio.timeout(SECONDS):
                while not await batches_of_ten_calls():
                    pass
                leaving.gateway.health.drain()
                while await batches_of_ten_calls():
                    pass
            stub = vision_pb2_grpc.VisionServiceStub(leaving.channel)
            await stub.Classify(vision_pb2.ClassifyRequest(image=picture()))  # by who does not watch


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8 without asking")
async def test_the_client_finds_what_its_name_stands_for_now_when_a_connection_ends() -> None:
    async with running_gateway([toy_card()], grpc_host="127.0.0.2", max_connection_age_seconds=0.5) as first:
        port = int(first.grpc.rpartition(":")[2])
        with NameServer("pods.test") as names, VisionClient(names.target(port)) as client:
            names.point(["127.0.0.2"])
            await asyncio.to_thread(client.classify, picture())
            async with running_gateway([toy_card()], grpc_host="127.0.0.3", grpc_port=port) as second:
                names.point(["127.0.0.3"])
                async with asyncio.timeout(SECONDS):  # gRPC itself would not ask again for 30 s
                    while not second.backend.batch_sizes:
                        await asyncio.to_thread(client.classify, picture())


def certificate(folder: Path, name: str, days: int = 1) -> tuple[Path, Path]:
    """A self-signed certificate for `localhost`, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    paths = folder / "tls.crt", folder / "tls.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", str(days), "-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*command, "-out", paths[0], "-keyout", paths[1]], check=True, capture_output=True)
    return paths


async def answered(address: str, trusted: bytes) -> bool:
    options = (("grpc.ssl_target_name_override", "localhost"), ("grpc.use_local_subchannel_pool", 1))
    credentials = grpc.ssl_channel_credentials(trusted)
    async with aio.secure_channel(address, credentials, options=options) as channel:
        try:
            await vision_pb2_grpc.VisionServiceStub(channel).ListModels(CALL, timeout=SECONDS)
        except aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            return False
    return True


def days_left(running: RunningGateway) -> float:
    """What the metric says about the certificate, in days from now."""
    series = "mobilevision_tls_not_after_timestamp_seconds"
    not_after = running.metrics.registry.get_sample_value(series, {"file": "certificate"})
    assert not_after is not None
    return (not_after - time.time()) / 86400


async def test_tls_with_a_certificate_that_is_renewed_in_place(tmp_path: Path) -> None:
    chain, key = certificate(tmp_path, "first")
    first = chain.read_bytes()
    async with running_gateway([toy_card()], tls_certificate=chain, tls_key=key) as running:
        assert await answered(running.grpc, first)
        assert days_left(running) == pytest.approx(1, abs=0.1)
        with pytest.raises(aio.AioRpcError):  # no TLS, no answer
            await vision_pb2_grpc.VisionServiceStub(running.channel).ListModels(CALL, timeout=SECONDS)
        certificate(tmp_path, "second", days=30)
        assert days_left(running) == pytest.approx(30, abs=0.1), "read at the scrape, before any new connection"
        assert await answered(running.grpc, chain.read_bytes())
        assert not await answered(running.grpc, first)
        key.unlink()  # half a renewal: the last good pair stays
        assert await answered(running.grpc, chain.read_bytes())


def test_a_certificate_that_cannot_be_read_is_told_at_start(tmp_path: Path) -> None:
    settings = local_settings(tls_certificate=tmp_path / "none.crt", tls_key=tmp_path / "none.key")
    with pytest.raises(SettingsError, match=r"none\.crt"):
        server_credentials(settings)
