from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from transport_bench import Bench


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    yield made
    await made.transport.close()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
async def started(bench: Bench) -> Bench:
    await bench.transport.start()
    assert bench.transport.shared
    return bench
