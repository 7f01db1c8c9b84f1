"""The memory limits of the containers follow from the settings, by the arithmetic in docs/kubernetes.md."""

import json
import re

import pytest
from manifests import ROOT, Built, combined, cores, image_environment, mebibytes

from service.core import allocation
from service.core import settings as settings_module
from service.core.settings import Settings

PROCESS_MEBIBYTES = 112  # interpreter, libraries, catalog: 87 measured after the start
JVM_MEBIBYTES = 512  # its heap is bounded by it
WORKER_MEBIBYTES = allocation.WORKER_BYTES // 2**20
PAGE = (ROOT / "docs" / "kubernetes.md").read_text()


@pytest.fixture
def effective(built: Built, monkeypatch: pytest.MonkeyPatch) -> Settings:
    return _effective(built, monkeypatch)


def _effective(built: Built, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name, value in (image_environment("gateway") | built.settings).items():
        monkeypatch.setenv(name, value)
    return settings_module.load()


def gateway_processes(built: Built, settings: Settings) -> int:
    """As `serve` chooses it in the container: by its CPU limit."""
    return allocation.with_gateways(settings, max(1, int(cores(built.gateway)))).gateway_processes


def gateway_needs(built: Built, settings: Settings) -> int:
    """Mebibytes that the gateway container may take. With several processes there is a supervisor too."""
    processes = gateway_processes(built, settings)
    supervisor = PROCESS_MEBIBYTES if processes > 1 else 0
    of_one = PROCESS_MEBIBYTES + settings.decode_megabytes + settings.call_megabytes
    return supervisor + processes * of_one + settings.shm_megabytes


def torchserve_needs(settings: Settings) -> int:
    """Mebibytes that the TorchServe container may take."""
    workers = len(settings.models) * settings.workers_per_model
    return JVM_MEBIBYTES + workers * WORKER_MEBIBYTES + settings.shm_megabytes


def test_the_gateway_fits_its_limit(built: Built, effective: Settings) -> None:
    assert effective.max_inflight_megabytes < effective.call_megabytes
    assert gateway_needs(built, effective) <= mebibytes(built.gateway["resources"]["limits"]["memory"])


def test_torchserve_fits_its_limit(built: Built, effective: Settings) -> None:
    assert effective.models
    assert effective.workers_per_model > 0
    assert torchserve_needs(effective) <= mebibytes(built.torchserve["resources"]["limits"]["memory"])


def test_shared_memory_fits_its_volume(built: Built, effective: Settings) -> None:
    (shm,) = (v["emptyDir"] for v in built.pod["volumes"] if v["name"] == "shm")
    assert effective.shm_megabytes < mebibytes(shm["sizeLimit"])


def test_limits_below_the_settings_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check can fail: half a gateway more, or one model more, does not fit."""
    built = combined()
    settings = _effective(built, monkeypatch)
    limit = mebibytes(built.gateway["resources"]["limits"]["memory"])
    assert gateway_needs(built, settings.model_copy(update={"gateway_processes": 2})) > limit
    assert gateway_needs(built, settings.model_copy(update={"decode_megabytes": 512})) > limit
    more = settings.model_copy(update={"models": (*settings.models, "another")})
    assert torchserve_needs(more) > mebibytes(built.torchserve["resources"]["limits"]["memory"])


def test_two_gateway_processes_of_the_gpu_pod_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    built = combined("gpu")
    assert gateway_processes(built, _effective(built, monkeypatch)) == 2


def test_the_page_has_the_same_arithmetic() -> None:
    for figure in (PROCESS_MEBIBYTES, JVM_MEBIBYTES, WORKER_MEBIBYTES):
        assert re.search(rf"\b{figure}\b", PAGE), figure
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    for name in ("decode_megabytes", "call_megabytes", "shm_megabytes"):
        assert f"`{name}` ({defaults[name]})" in PAGE


def test_a_model_more_says_what_it_takes() -> None:
    """What docs/kubernetes.md says of a further model is what the arithmetic says."""
    assert len(json.loads(combined().settings["MOBILEVISION_MODELS"])) == 3
    assert "3 x 1024" in PAGE
