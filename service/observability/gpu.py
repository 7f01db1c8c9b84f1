"""Metrics of the GPUs that this process can see, read from NVIDIA's NVML whenever Prometheus scrapes.

They are for one machine whose GPUs gateway and workers share. In Kubernetes the gateway's container sees no GPU. There
DCGM's exporter provides the same values; dashboards and alerts read either. Needs the extra `gpu` (nvidia-ml-py).
Without it, without a driver or without a GPU there are no such metrics.
"""

from collections.abc import Iterator
from types import ModuleType

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


def watch(registry: CollectorRegistry) -> bool:
    """Add the metrics to `registry`. Returns False if no GPU can be read."""
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
    """Reads all GPUs at each scrape. `nvml` is the initialised module pynvml."""

    def __init__(self, nvml: ModuleType) -> None:
        self._nvml = nvml

    def describe(self) -> Iterator[Metric]:
        """Return the metrics without values."""
        yield from _families()

    def collect(self) -> Iterator[Metric]:
        """Return the metrics of all GPUs that can be read."""
        utilization, used, total = _families()
        for index in range(self._nvml.nvmlDeviceGetCount()):
            try:
                device = self._nvml.nvmlDeviceGetHandleByIndex(index)
                memory = self._nvml.nvmlDeviceGetMemoryInfo(device)
                busy_percent = self._nvml.nvmlDeviceGetUtilizationRates(device).gpu
            except self._nvml.NVMLError:  # a lost device, or a MIG device, which reports no utilisation
                continue
            utilization.add_metric([str(index)], busy_percent / 100)
            used.add_metric([str(index)], memory.used)
            total.add_metric([str(index)], memory.total)
        yield from (utilization, used, total)


def _families() -> tuple[GaugeMetricFamily, GaugeMetricFamily, GaugeMetricFamily]:
    return (
        GaugeMetricFamily(
            "mobilevision_gpu_utilization_ratio", "Share of the time in which a kernel ran, 0 to 1.", labels=["gpu"]
        ),
        GaugeMetricFamily("mobilevision_gpu_memory_used_bytes", "GPU memory used by all programs.", labels=["gpu"]),
        GaugeMetricFamily("mobilevision_gpu_memory_total_bytes", "Size of the GPU memory.", labels=["gpu"]),
    )
