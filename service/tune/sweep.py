"""Serve the model with each candidate, measure, and yield one point at a time.

In: a `SweepPlan`. Out: `Point`s as they are measured, so that an interrupted sweep has points to show. A candidate that
does not start, or whose calls fail, is reported and left out.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from handlers.contract.card import Card
from handlers.hardware import cpu_has_bfloat16, cpu_has_fast_bfloat16
from service.app.local_server import LocalServerFailed, serving
from service.core.allocation import Machine
from service.core.settings import child_environment
from service.tune import candidates
from service.tune.candidates import Candidate
from service.tune.load import LoadFailed, measure
from service.tune.points import Point, best

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
        """The candidates to measure first. The best of them is measured with other number types at the end."""
        return candidates.first(self.machine, card_max_batch=self.card.max_batch, quick=self.quick)


def sweep(
    plan: SweepPlan, *, on_start: Callable[[Candidate], None], on_failure: Callable[[Candidate, str], None]
) -> Generator[Point, None, None]:
    """Measure every candidate with every number of clients.

    `on_start` is called before a candidate, `on_failure` with the reason where it is left out. Closing the generator
    stops the server that runs.
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

    yield from measured(plan.candidates)
    leading = best(points, plan.goal_ms) or min(points, key=lambda point: point.p99_ms, default=None)
    if leading is not None and not plan.quick:
        others = candidates.other_dtypes(
            leading.candidate,
            plan.machine,
            has_bfloat16=cpu_has_bfloat16(),
            fast_bfloat16=cpu_has_fast_bfloat16(),
        )
        yield from measured(others)


def _measured(plan: SweepPlan, candidate: Candidate) -> Iterator[Point]:
    config = plan.folder / "candidate.toml"
    config.write_text(candidates.settings_file(candidate.settings(), ["one candidate of mobilevision tune"]))
    name = plan.card.name
    # The MOBILEVISION_ variables of this process would override the file.
    environment = child_environment()
    with serving(
        (name,), archives=plan.archives, log=plan.folder / "server.log", config=config, environment=environment
    ) as server:
        warm_seconds = WARM_SECONDS
        # The largest number of clients first, because it warms up the JVM fastest.
        for clients in sorted(plan.clients, reverse=True):
            load = measure(
                server.grpc,
                name,
                plan.card.task,
                plan.image,
                clients=clients,
                warm_seconds=warm_seconds,
                seconds=plan.seconds,
            )
            warm_seconds = PAUSE_SECONDS
            yield Point(candidate, clients, load.per_second, load.p50_ms, load.p99_ms)
