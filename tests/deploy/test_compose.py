"""compose.yaml and its monitoring have the structure and the hardening of the pod in deploy/k8s."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifests import ROOT, VERSION

from service.core.settings import Settings

DOCKER = ROOT / "deploy" / "docker"
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_hardened_and_pinned(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    image, _, tag = service["image"].rpartition(":")
    assert re.match(r"v?\d+\.\d+\.\d+$", tag)
    if image.startswith("mobilevision/"):
        assert tag == VERSION
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:")


def test_every_mounted_path_exists() -> None:
    volumes = set(COMPOSE["volumes"])
    for name, service in SERVICES.items():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            assert source in volumes or (DOCKER / source).exists(), f"{name}: {source}"


def test_the_gateway_runs_in_the_namespaces_of_torchserve() -> None:
    gateway, torchserve = SERVICES["gateway"], SERVICES["torchserve"]
    assert gateway["network_mode"] == gateway["ipc"] == "service:torchserve"
    assert torchserve["ipc"] == "shareable"
    assert gateway["depends_on"]["torchserve"] == {"condition": "service_healthy"}
    assert [port.split(":")[1:] for port in torchserve["ports"]] == [["50051", "50051"]]
    for service in (gateway, torchserve):
        assert {name.removeprefix("MOBILEVISION_").lower() for name in service.get("environment", {})} <= set(
            Settings.model_fields
        )
        assert service["environment"].items() >= COMPOSE["x-settings"].items(), "both containers have the same"
    shm_megabytes = Settings.model_fields["shm_megabytes"].default
    assert int(torchserve["shm_size"].removesuffix("m")) > shm_megabytes
    drain_seconds = float(gateway["environment"]["MOBILEVISION_DRAIN_TIMEOUT_SECONDS"])
    assert float(gateway["stop_grace_period"].removesuffix("s")) >= drain_seconds + 5


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian package: prometheus)")
def test_prometheus_accepts_its_configuration(tmp_path: Path) -> None:
    shutil.copy(DOCKER / "prometheus.yaml", tmp_path)
    shutil.copytree(ROOT / "deploy" / "monitoring" / "rules", tmp_path / "rules")
    checked = subprocess.run(
        ["promtool", "check", "config", str(tmp_path / "prometheus.yaml")], check=False, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    (scrape,) = yaml.safe_load((DOCKER / "prometheus.yaml").read_text())["scrape_configs"]
    (target,) = scrape["static_configs"]
    assert target["targets"] == ["gateway:50052"]
    assert "gateway" in SERVICES["torchserve"]["networks"]["default"]["aliases"]
