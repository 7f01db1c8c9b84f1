"""compose.yaml runs the server in one container, hardened as the pod in deploy/k8s, with its monitoring."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifests import ROOT

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
    if name == "server":  # build.sh writes the variable (test_image_names.py)
        assert service["image"].startswith("${SERVER_IMAGE:?")
        assert service["pull_policy"] == "never"
    else:
        assert re.match(r"v?\d+\.\d+\.\d+$", service["image"].rpartition(":")[2])
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:")


def test_every_mounted_path_exists() -> None:
    volumes = set(COMPOSE["volumes"])
    for name, service in SERVICES.items():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            assert source in volumes or (DOCKER / source).exists(), f"{name}: {source}"


def test_one_container_serves_whatever_becomes_of_torchserve() -> None:
    """A gateway in another container would keep the namespaces of a TorchServe that has started again."""
    server = SERVICES["server"]
    assert "network_mode" not in server
    assert "ipc" not in server
    assert "command" not in server, "the image's own: serve"
    assert server["environment"].keys() <= {f"MOBILEVISION_{name}".upper() for name in Settings.model_fields}
    assert not [name for name in server["environment"] if "TORCHSERVE" in name], "it starts TorchServe itself"
    assert [port.split(":")[1:] for port in server["ports"]] == [["50051", "50051"]]
    shm_megabytes = Settings.model_fields["shm_megabytes"].default
    assert int(server["shm_size"].removesuffix("m")) > shm_megabytes
    drain_seconds = float(server["environment"]["MOBILEVISION_DRAIN_TIMEOUT_SECONDS"])
    assert float(server["stop_grace_period"].removesuffix("s")) >= drain_seconds + 5


def test_the_image_of_the_server_starts_its_own_torchserve() -> None:
    text = (DOCKER / "torchserve.Dockerfile").read_text()
    stage = {
        name: text.partition(f" AS {name}\n")[2].partition("\nFROM ")[0] for name in ("common", "server", "runtime")
    }
    assert "MOBILEVISION_TORCHSERVE_" not in stage["common"] + stage["server"]
    assert "MOBILEVISION_TORCHSERVE_INFERENCE" in stage["runtime"]
    assert 'CMD ["serve"]' in stage["server"]
    assert 'CMD ["gateway-probe"]' in stage["server"]
    assert "COPY --from=models" in stage["server"]
    assert "FROM common AS server" in text


def test_every_alert_ends_in_a_receiver() -> None:
    config = yaml.safe_load((DOCKER / "alertmanager.yaml").read_text())
    receivers = {receiver["name"] for receiver in config["receivers"]}
    routes = [config["route"]]
    for route in routes:
        routes += route.get("routes", [])
        assert route["receiver"] in receivers
    scraped = yaml.safe_load((DOCKER / "prometheus.yaml").read_text())
    (alertmanager,) = scraped["alerting"]["alertmanagers"]
    assert alertmanager["static_configs"] == [{"targets": ["alertmanager:9093"]}]
    assert "alertmanager" in SERVICES
    assert "--enable-feature=exemplar-storage" in SERVICES["prometheus"]["command"]
    (source,) = yaml.safe_load((DOCKER / "grafana" / "datasources.yaml").read_text())["datasources"]
    assert source["jsonData"]["exemplarTraceIdDestinations"][0]["name"] == "trace_id"


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
    assert target["targets"] == ["server:50052"]
    assert "server" in SERVICES
