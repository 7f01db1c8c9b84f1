import sys
from types import ModuleType, SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from service.observability import gpu


class NVMLError(Exception):
    pass


def fake_nvml(*, cards: int = 2, driver: bool = True, lost: int = -1) -> ModuleType:
    """What pynvml says of some cards: card `i` is (10 + i) % busy and uses i + 1 of 100 bytes."""
    module = ModuleType("pynvml")

    def init() -> None:
        if not driver:
            raise NVMLError("Driver Not Loaded")

    def handle(index: int) -> int:
        if index == lost:
            raise NVMLError("GPU is lost")
        return index

    vars(module).update(
        NVMLError=NVMLError,
        nvmlInit=init,
        nvmlDeviceGetCount=lambda: cards,
        nvmlDeviceGetHandleByIndex=handle,
        nvmlDeviceGetMemoryInfo=lambda card: SimpleNamespace(used=card + 1, total=100, free=99 - card),
        nvmlDeviceGetUtilizationRates=lambda card: SimpleNamespace(gpu=10 + card, memory=0),
    )
    return module


def page(monkeypatch: pytest.MonkeyPatch, nvml: ModuleType | None) -> str:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)  # type: ignore[arg-type]
    registry = CollectorRegistry()
    gpu.watch(registry)
    return generate_latest(registry).decode()


def test_every_gpu_is_reported_in_base_units(monkeypatch: pytest.MonkeyPatch) -> None:
    text = page(monkeypatch, fake_nvml())
    for line in (
        'mobilevision_gpu_utilization_ratio{gpu="1"} 0.11',
        'mobilevision_gpu_memory_used_bytes{gpu="0"} 1.0',
        'mobilevision_gpu_memory_total_bytes{gpu="1"} 100.0',
    ):
        assert line in text


def test_a_lost_gpu_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    text = page(monkeypatch, fake_nvml(lost=0))
    assert 'gpu="0"' not in text
    assert 'gpu="1"' in text


@pytest.mark.parametrize("nvml", [None, fake_nvml(driver=False)])
def test_without_package_or_driver_there_are_no_such_metrics(
    monkeypatch: pytest.MonkeyPatch, nvml: ModuleType | None
) -> None:
    assert page(monkeypatch, nvml) == ""
