"""What the autoscalers' queries say in situations that a recording of one pod does not have.

No call at all, a scrape that was lost, a wrong namespace, a slow model, several gateway processes. `scaler_value` is
what KEDA makes of a result (pkg/scalers/prometheus_scaler.go): no result is 0 unless `ignoreNullValues` is false, and
several results are an error.
"""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from promql import LAST, Result, Store, fleet, needs_prometheus, openmetrics, stored
from scaling_queries import COMPONENTS, HPA, SCALED, hpa

from handlers.contract.card import Task
from service.frontends.tasks.registry import TASKS
from service.observability.request_metrics import method_of

pytestmark = needs_prometheus

TRIGGERS = SCALED["triggers"]
KSERVE = yaml.safe_load((COMPONENTS.parent / "overlays" / "kserve" / "inferenceservice.yaml").read_text())


class Failed(Exception):
    """KEDA reports an error for the trigger. With a fallback it uses that."""


def scaler_value(result: Result, ignore_nulls: bool) -> float:
    if len(result) > 1:
        raise Failed("multiple elements")
    if not result or not math.isfinite(result[0][1]):
        if ignore_nulls:
            return 0.0
        raise Failed("the result is empty")
    return result[0][1]


def triggers() -> list[tuple[str, bool]]:
    """Each query that KEDA runs, and whether no result counts as 0: those of our ScaledObject, and that of KServe."""
    ours = [t["metadata"] for t in TRIGGERS]
    (metric,) = KSERVE["spec"]["predictor"]["autoScaling"]["metrics"]
    return [
        *((t["query"], t.get("ignoreNullValues", "true") == "true") for t in ours),
        (metric["external"]["metric"]["query"], True),
    ]


def values(store: Store, step: float = LAST) -> list[float]:
    return [scaler_value(store.query(query, step=step), nulls) for query, nulls in triggers()]


def test_a_gateway_without_calls_shows_no_load(tmp_path: Path) -> None:
    with stored(tmp_path, openmetrics(fleet(2, 2, 0, 0))) as store:
        assert values(store) == [0.0] * len(triggers())


def test_no_scrape_and_a_wrong_namespace_are_errors_and_not_zero(tmp_path: Path) -> None:
    series = fleet(2, 2, 30, 0.1)
    elsewhere = {name.replace('namespace="mobilevision"', 'namespace="other"'): v for name, v in series.items()}
    with stored(tmp_path, openmetrics(elsewhere)) as store:
        for query, ignore_nulls in triggers():
            with pytest.raises(Failed):
                scaler_value(store.query(query, step=LAST), ignore_nulls)
            right = query.replace('namespace="mobilevision"', 'namespace="other"')
            scaler_value(store.query(right, step=LAST), ignore_nulls)
            with pytest.raises(Failed):
                scaler_value(store.query(right, step=LAST + 60), ignore_nulls)  # the scrape was lost 15 minutes ago


def wanted(store: Store) -> int:
    """The number of pods that the queries of KEDA and of the HPA ask for."""
    asked = [
        scaler_value(store.query(t["metadata"]["query"], step=LAST), ignore_nulls=True)
        / float(t["metadata"]["threshold"])
        for t in TRIGGERS
    ]
    asked += [
        scaler_value(store.query(query, step=LAST), ignore_nulls=True) / target for query, target in hpa().items()
    ]
    return max(math.ceil(value) for value in asked)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_a_model_slower_than_the_goal_asks_for_no_more_pods_than_its_load(processes: int, tmp_path: Path) -> None:
    with stored(tmp_path, openmetrics(fleet(2, processes, 6, 2.5))) as store:
        assert wanted(store) <= HPA["minReplicas"] == 2


def test_the_number_of_processes_does_not_change_what_the_queries_say(tmp_path: Path) -> None:
    found: list[Any] = []
    for processes in (1, 2, 3):
        folder = tmp_path / str(processes)
        folder.mkdir()
        with stored(folder, openmetrics(fleet(2, processes, 30, 0.25))) as store:
            found.append(values(store))
    assert found[1] == pytest.approx(found[0])
    assert found[2] == pytest.approx(found[0])
    assert sorted(found[0]) == pytest.approx([0.0, 1.0, 4.0, 4.0])  # queue age, calls in work, calls per second


def test_calls_that_carry_no_picture_are_no_load(tmp_path: Path) -> None:
    with stored(tmp_path, openmetrics(fleet(2, 1, 30, 0.25, method="ListModels"))) as store:
        assert values(store) == [0.0] * len(triggers())


def test_the_series_that_exist_from_the_start_are_those_that_calls_write() -> None:
    assert {task: front.method for task, front in TASKS.items()} == {task: method_of(task) for task in Task}
