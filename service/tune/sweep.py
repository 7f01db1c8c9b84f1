"""Serve the model with each candidate, measure, and yield one point at a time.

In: a `SweepPlan`. Out: `Point`s as they are measured, so that an interrupted sweep has points to show. A candidate that
does not start, or whose calls fail, is reported and left out. A candidate is reported as refused, and not measured, if
its workers compute with another engine or number type than it asks for.
"""

import importlib.util
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from handlers.contract.card import Card
from handlers.hardware import cpu_has_bfloat16
from handlers.options import LEAST_AGREEMENT
from service.app.local_server import LocalServerFailed, serving
from service.core.allocation import Machine
from service.core.settings import child_environment
from service.tune import candidates
from service.tune.candidates import Candidate
from service.tune.load import Load, LoadFailed, measure
from service.tune.points import Point, Refused, best

WARM_SECONDS = 2.0  # the first thousand calls of a JVM take three times as long
PAUSE_SECONDS = 0.5  # between two measurements on one server


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """What to measure. `seconds` is the duration of each measurement; `folder` takes the servers' settings and logs.

    `image` is an encoded picture. `clients` are the numbers of clients to measure with.
    """

    card: Card
    archives: Path
    image: bytes
    machine: Machine
    goal_ms: float
    clients: tuple[int, ...]
    seconds: float
    quick: bool
    folder: Path

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """The candidates to measure first. The best of them is measured with other engines and number types at last."""
        return candidates.first(self.machine, card_max_batch=self.card.max_batch, quick=self.quick)


class _NotServed(Exception):
    """The workers compute with something else than the candidate asks for: `computed_by`, as `engine/dtype`."""

    def __init__(self, computed_by: str) -> None:
        super().__init__(computed_by)
        self.computed_by = computed_by


def sweep(
    plan: SweepPlan,
    *,
    on_start: Callable[[Candidate], None],
    on_failure: Callable[[Candidate, str], None],
    on_refused: Callable[[Refused], None],
) -> Generator[Point, None, None]:
    """Measure every candidate with every number of clients.

    `on_start` is called before a candidate, `on_failure` with the reason where it is left out, `on_refused` where its
    workers compute with something else. Closing the generator stops the server that runs.
    """
    points: list[Point] = []

    def measured(some: Iterable[Candidate]) -> Iterator[Point]:
        for candidate in some:
            on_start(candidate)
            try:
                for point in _measured(plan, candidate):
                    points.append(point)
                    yield point
            except (LocalServerFailed, LoadFailed) as error:
                on_failure(candidate, str(error))
            except _NotServed as served:
                on_refused(Refused(candidate, served.computed_by))

    yield from measured(plan.candidates)
    leading = best(points, plan.goal_ms) or min(points, key=lambda point: point.p99_ms, default=None)
    if leading is not None and not plan.quick:
        agreement = plan.card.bfloat16
        others = candidates.other_engines(
            leading.candidate,
            leading.computed_by,
            plan.machine,
            has_openvino=openvino_installed(),
            has_bfloat16=cpu_has_bfloat16() and agreement is not None and agreement.agreement >= LEAST_AGREEMENT,
        )
        yield from measured(others)


def openvino_installed() -> bool:
    """Whether the workers of this machine can use OpenVINO. It is not imported."""
    return importlib.util.find_spec("openvino") is not None


def _measured(plan: SweepPlan, candidate: Candidate) -> Iterator[Point]:
    config = plan.folder / "candidate.toml"
    config.write_text(candidates.settings_file(candidate.settings(), ["one candidate of mobilevision tune"]))
    name = plan.card.name
    # The MOBILEVISION_ variables of this process would override the file.
    environment = child_environment()
    with serving(
        (name,), archives=plan.archives, log=plan.folder / "server.log", config=config, environment=environment
    ) as server:

        def measured(clients: int, warm_seconds: float, seconds: float) -> Load:
            """Measure. Raises `LoadFailed`, and `_NotServed`."""
            load = measure(
                server.grpc,
                name,
                plan.card.task,
                plan.image,
                clients=clients,
                warm_seconds=warm_seconds,
                seconds=seconds,
            )
            if not candidate.is_served_by(load.computed_by):
                raise _NotServed(load.computed_by)
            return load

        measured(1, warm_seconds=0.0, seconds=0.0)  # a few calls: a candidate that is refused takes no time
        warm_seconds = WARM_SECONDS
        # The largest number of clients first, because it warms up the JVM fastest.
        for clients in sorted(plan.clients, reverse=True):
            load = measured(clients, warm_seconds, plan.seconds)
            warm_seconds = PAUSE_SECONDS
            yield Point(candidate, clients, load.per_second, load.p50_ms, load.p99_ms, load.computed_by)
