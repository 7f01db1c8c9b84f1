"""The systemd unit lets a server drain."""

from pathlib import Path

from service.app.gateway import GRPC_STOP_SECONDS, REFUSAL_SECONDS
from service.app.server import REPLICA_STOP_SECONDS
from service.core.settings import Settings

UNIT = Path(__file__).parents[2] / "deploy" / "systemd" / "mobilevision.service"


def test_only_the_server_gets_the_signal_and_there_is_time_for_its_drain() -> None:
    lines = [line for line in UNIT.read_text().splitlines() if "=" in line and not line.startswith("#")]
    values = dict(line.split("=", 1) for line in lines)
    assert values["KillMode"] == "mixed"
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    drain_seconds = defaults["drain_delay_seconds"] + defaults["drain_timeout_seconds"]
    assert float(values["TimeoutStopSec"]) > drain_seconds + REFUSAL_SECONDS + GRPC_STOP_SECONDS + REPLICA_STOP_SECONDS
    settings = {line.split("=")[1] for line in lines if line.startswith("Environment=")}
    assert settings
    assert all(name.removeprefix("MOBILEVISION_").lower() in Settings.model_fields for name in settings)
