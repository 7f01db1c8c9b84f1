"""A gateway with toy models, which shares memory with its workers."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fakes import RunningGateway, running_gateway


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[RunningGateway]:
    async with running_gateway(worker_shm_dir=tmp_path, shm_dir=tmp_path, shm_megabytes=16) as gateway:
        yield gateway
