"""The transports that the settings ask for."""

from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine
from fakes import local_settings, toy_card, toy_run

from service.core.types import Usage
from service.observability.metrics import Metrics
from service.transport.batch_transport import BatchTransport
from service.transport.factory import TransportFactory

CARDS = (toy_card(name="toy_classify_a"), toy_card(name="toy_classify_b"))
MEBIBYTE = 2**20


def factory(folder: Path, **overrides: Any) -> TransportFactory:
    values = {"shm_dir": folder, "shm_megabytes": 16, "decode_threads": 2, "max_queue": 10, "max_batch": 4}
    return TransportFactory(
        settings=local_settings(**values | {"batches_per_worker": 2} | overrides),
        cards=CARDS,
        runner=FakeEngine(toy_run),
        metrics=Metrics(),
        clock=lambda: 0.0,
        workers=3,
        replicas=1,
    )


async def build(made: TransportFactory) -> BatchTransport:
    return made.build(CARDS[0], on_failure=lambda: None, on_change=lambda computed: None)


async def test_there_are_slots_for_what_is_decoded_queued_and_on_its_way(tmp_path: Path) -> None:
    transport = await build(factory(tmp_path))
    assert transport.has_shared_memory
    assert transport.usage("input") == Usage(free=2 + 10 + 3 * 2 * 4)
    assert transport.usage("output") == Usage(free=2 * 3 * 2)  # as many again may be in quarantine
    await transport.close()
    assert list(tmp_path.iterdir()) == []


async def test_models_share_the_budget(tmp_path: Path) -> None:
    made = factory(tmp_path, max_queue=1000, shm_megabytes=1)
    one, other = await build(made), made.build(CARDS[1], on_failure=lambda: None, on_change=lambda computed: None)
    slots = one.usage("input").free
    assert slots == other.usage("input").free
    assert 0.4 * MEBIBYTE < slots * 32 * 32 * 3 <= 0.5 * MEBIBYTE
    await one.close()
    await other.close()


@pytest.mark.parametrize("why", ["off", "no folder"])
async def test_without_shared_memory_batches_travel_inline(
    tmp_path: Path, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    overrides = {"off": {"shm_megabytes": 0}, "no folder": {"shm_dir": tmp_path / "absent"}}[why]
    transport = await build(factory(tmp_path, **overrides))
    await transport.start()
    assert not transport.has_shared_memory
    assert not transport.shared
    assert transport.usage("input") == Usage()
    assert len(caplog.records) == (1 if why == "no folder" else 0)
    await transport.close()
