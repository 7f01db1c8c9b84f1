"""A whole gateway that records, and the command that replays against it."""

import asyncio
from pathlib import Path

import grpc
import numpy as np
import pytest
from fakes import picture, running_gateway, toy_run
from gateway_calls import stub
from typer.testing import CliRunner, Result

from handlers.contract.frame import Array
from mobilevision.cli.main import app
from service.pb.mobilevision.v1 import vision_pb2

REQUESTS = {
    "Classify": vision_pb2.ClassifyRequest(image=picture(), top_k=2),
    "Detect": vision_pb2.DetectRequest(image=picture(), score_threshold=0.1),
    "Segment": vision_pb2.SegmentRequest(image=picture(), include_confidence=True),
}


async def recorded(folder: Path, count: int) -> None:
    async with asyncio.timeout(60):
        while len(list(folder.glob("*.call"))) < count:
            await asyncio.sleep(0.01)


async def replayed(request_id: str, folder: Path, server: str) -> Result:
    arguments = ["replay", request_id, "--recording", str(folder), "--server", server]
    return await asyncio.to_thread(CliRunner().invoke, app, arguments)


async def test_answered_calls_are_replayed_with_the_same_bits_and_a_changed_model_is_seen(tmp_path: Path) -> None:
    folder = tmp_path / "calls"
    async with running_gateway(recording_dir=folder) as running:
        for method, request in REQUESTS.items():
            reply = await getattr(stub(running), method)(request, metadata=(("x-request-id", f"first/{method}"),))
            used = reply.model
            assert (used.engine, used.dtype, used.device, used.module_sha256) == ("fake", "float32", "cpu", "0" * 64)
        await recorded(folder, 3)
        for method in REQUESTS:
            result = await replayed(f"first/{method}", folder, running.grpc)
            assert result.exit_code == 0, result.output
            assert result.output == "the outcome is the same, bit for bit\n"

        def changed(model: str, pixels: Array) -> dict[str, Array]:
            outputs = toy_run(model, pixels)
            return (
                outputs | {"scores": np.asarray(outputs["scores"] * np.float32(0.5))}
                if "scores" in outputs
                else outputs
            )

        running.backend._run = changed
        result = await replayed("first/Classify", folder, running.grpc)
        assert result.exit_code == 1
        assert "labels[0].score: recorded 0.69" in result.output
        assert "largest difference of a score: 0.35" in result.output


async def test_a_failed_call_is_recorded_and_fails_again(tmp_path: Path) -> None:
    folder = tmp_path / "calls"
    async with running_gateway(recording_dir=folder) as running:
        request = vision_pb2.ClassifyRequest(image=b"no picture")
        with pytest.raises(grpc.aio.AioRpcError):
            await stub(running).Classify(request, metadata=(("x-request-id", "broken"),))
        await recorded(folder, 1)
        result = await replayed("broken", folder, running.grpc)
        assert (result.exit_code, result.output) == (0, "the outcome is the same, bit for bit\n")
        page = running.metrics.page().decode()
        assert 'mobilevision_recorded_calls_total{outcome="written"}' in page


async def test_nothing_is_recorded_by_default(tmp_path: Path) -> None:
    async with running_gateway() as running:
        await stub(running).Classify(REQUESTS["Classify"])
        assert 'mobilevision_recorded_calls_total{outcome="written"} 0.0' in running.metrics.page().decode()
