"""Metrics of the graphics cards this process can see, read from NVIDIA's NVML when Prometheus asks.

For one machine, where gateway and workers share it. In Kubernetes the gateway's container sees no device: there DCGM's
exporter tells the same, and the dashboards and alerts read either. Needs the extra `gpu` (nvidia-ml-py); without it,
without a driver or without a card there are no such metrics.
"""

from collections.abc import Iterator
from types import ModuleType

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


def watch(registry: CollectorRegistry) -> bool:
    """Add the metrics to a registry; False where there is no card to read."""
    try:
        import pynvml  # noqa: PLC0415 - an extra
    except ModuleNotFoundError:
        return False
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver
        return False
    registry.register(GpuCollector(pynvml))
    return True


class GpuCollector(Collector):
    """Reads every card at each scrape. `nvml` is the module pynvml, initialised."""

    def __init__(self, nvml: ModuleType) -> None:
        self._nvml = nvml

    def describe(self) -> Iterator[Metric]:
        """The metrics, without values."""
        yield from _families()

    def collect(self) -> Iterator[Metric]:
        """The metrics of the cards there are; a card that cannot be read is left out."""
        utilization, used, total = _families()
        for index in range(self._nvml.nvmlDeviceGetCount()):
            try:
                device = self._nvml.nvmlDeviceGetHandleByIndex(index)
                memory = self._nvml.nvmlDeviceGetMemoryInfo(device)
                busy_percent = self._nvml.nvmlDeviceGetUtilizationRates(device).gpu
            except self._nvml.NVMLError:  # fallen off the bus, or split in slices that report no utilisation
                continue
            utilization.add_metric([str(index)], busy_percent / 100)
            used.add_metric([str(index)], memory.used)
            total.add_metric([str(index)], memory.total)
        yield from (utilization, used, total)


def _families() -> tuple[GaugeMetricFamily, GaugeMetricFamily, GaugeMetricFamily]:
    return (
        GaugeMetricFamily("mobilevision_gpu_utilization_ratio", "Share of the time a kernel ran.", labels=["gpu"]),
        GaugeMetricFamily("mobilevision_gpu_memory_used_bytes", "Memory in use, by all programs.", labels=["gpu"]),
        GaugeMetricFamily("mobilevision_gpu_memory_total_bytes", "Memory of the card.", labels=["gpu"]),
    )
