"""When a deployment is ready: what the engine reports, connected workers, stuck batches."""

from types import SimpleNamespace
from typing import Any

import pytest
from fakes import toy_card

from service.engines.base import ModelStatus
from service.serving.deployment import BatchedDeployment

READY, SILENT = ModelStatus(1, 1), ModelStatus(0, 0, "TorchServe does not report", reported=False)
DOWN = ModelStatus(0, 1, "worker 9000 not ready")


def deployment(*, connected: bool, stuck: bool) -> BatchedDeployment:
    parts: Any = SimpleNamespace(
        connections=SimpleNamespace(complete=connected),
        all_stuck=lambda seconds: stuck,
    )
    return BatchedDeployment(
        card=toy_card(), decoder=parts, batcher=parts, transport=parts, observer=parts, workers=1, stuck_seconds=15.0
    )


@pytest.mark.parametrize(
    ("status", "connected", "stuck", "why"),
    [
        (READY, False, False, None),
        (READY, True, True, "its batches have been stuck for more than 15 s"),
        (DOWN, True, False, "worker 9000 not ready"),
        (SILENT, False, False, "TorchServe does not report"),
        (SILENT, True, False, None),  # the workers answer without the engine
        (SILENT, True, True, "its batches have been stuck for more than 15 s"),
    ],
)
def test_readiness(status: ModelStatus, connected: bool, stuck: bool, why: str | None) -> None:
    made = deployment(connected=connected, stuck=stuck)
    made.observe_workers(status)
    assert made.why_not_ready == why
