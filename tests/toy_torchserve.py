"""A TorchServe archive of a toy module, and functions that find the processes that serve it."""

import dataclasses
import hashlib
import io
import os
from pathlib import Path

import numpy as np
import psutil
import torch

from handlers.contract import frame
from handlers.contract.card import (
    Card,
    InputSize,
    Normalize,
    Output,
    Parity,
    Preprocess,
    Task,
    Weights,
    WeightsState,
)
from model_store.build import archive
from service.engines.torchserve.config import TorchServeConfig, TorchServeModel

SIDE = 32


class Toy(torch.nn.Module):
    """Scores a picture by brightness, [mean, -mean]. Raises for a white picture."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(1.0))

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean = pixels.to(self.scale.dtype).mean(dim=[1, 2, 3]) * self.scale
        if bool((mean > 254.0).any()):
            raise RuntimeError("toy refuses white")
        scores = torch.stack([mean, -mean], 1).to(torch.float32)
        return scores, torch.zeros(scores.shape, dtype=torch.int32)


def build(directory: Path, version: str = "1.0", *, name: str = "toy", module: bytes = b"") -> Path:
    """Write an archive. `module` stands in the place of the toy module."""
    buffer = io.BytesIO(module)
    if not module:
        torch.jit.save(torch.jit.script(Toy().eval()), buffer)
    card = Card(
        name=name,
        version=version,
        task=Task.CLASSIFY,
        family="toy",
        variant="toy",
        head="none",
        paper="",
        input=InputSize(height=SIDE, width=SIDE),
        preprocess=Preprocess(mode="squash"),
        normalize=Normalize(),
        labels=("dark", "bright"),
        outputs=(
            Output(name="scores", dtype="float32", shape=(2,)),
            Output(name="labels", dtype="int32", shape=(2,)),
        ),
        max_batch=8,
        parameters=1,
        macs=1,
        weights=Weights(state=WeightsState.RANDOM, source="test", sha256="0" * 64),
        parity=Parity(scripted_max_abs_diff=0, reloaded_max_abs_diff=0, batch_row_max_abs_diff=0),
        module_sha256=hashlib.sha256(buffer.getvalue()).hexdigest(),
    )
    return archive.write(directory, card, buffer.getvalue())


def config_for(toy: Path, **changes: object) -> TorchServeConfig:
    config = TorchServeConfig(
        models=(TorchServeModel("toy", toy),),
        environment=os.environ,
        worker_threads=1,
        dtype="float32",
        queue_size=2,
    )
    return dataclasses.replace(config, **changes)


def request(*values: int, side: int = SIDE) -> bytes:
    return frame.pack({"pixels": np.stack([np.full((side, side, 3), value, np.uint8) for value in values])})


def members(group: int | None) -> list[psutil.Process]:
    """The processes of a process group that have not ended."""
    assert group is not None
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def worker_of(group: int | None) -> psutil.Process:
    return next(p for p in members(group) if any("model_service_worker" in part for part in p.cmdline()))


def jvm_of(group: int | None) -> psutil.Process:
    return next(p for p in members(group) if Path(p.exe()).name == "java")
