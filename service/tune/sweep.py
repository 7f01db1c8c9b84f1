"""Serves the model with each candidate, measures, and yields what was found, one point at a time.

In: a `Plan`. Out: `Point`s as they are measured, so that an interrupted sweep has something to show. A candidate that
does not start, or whose calls fail, is reported and left out.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from handlers.hardware import cpu_has_bfloat16, cpu_has_fast_bfloat16
from model_store.card import Card
from service.allocation import Machine
from service.instance import InstanceFailed, serving
from service.settings import child_environment
from service.tune import candidates
from service.tune.candidates import Candidate
from service.tune.load import LoadFailed, measure
from service.tune.points import Point, best

WARM_SECONDS = 2.0  # a JVM's first thousand calls cost three times as much
SETTLE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Plan:
    """What to try. `seconds`: of each measurement; `folder`: for the servers' settings and logs."""

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
        """What is tried first; number types come last, for the best of these."""
        return candidates.first(self.machine, card_max_batch=self.card.max_batch, quick=self.quick)


def sweep(
    plan: Plan, *, on_start: Callable[[Candidate], None], on_failure: Callable[[Candidate, str], None]
) -> Generator[Point, None, None]:
    """Measure every candidate at every number of clients. Closing it stops the server that runs."""
    points: list[Point] = []

    def measured(some: Iterable[Candidate]) -> Iterator[Point]:
        for candidate in some:
            on_start(candidate)
            try:
                for point in _measured(plan, candidate):
                    points.append(point)
                    yield point
            except (InstanceFailed, LoadFailed) as error:
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


def _measured(plan: Plan, candidate: Candidate) -> Iterator[Point]:
    config = plan.folder / "candidate.toml"
    config.write_text(candidates.settings_file(candidate.settings(), ["one candidate of mobilevision tune"]))
    name = plan.card.name
    # Without the caller's MOBILEVISION_ variables, which would override the file.
    environment = child_environment()
    with serving(
        (name,), archives=plan.archives, log=plan.folder / "server.log", config=config, environment=environment
    ) as server:
        warm_seconds = WARM_SECONDS
        # The most clients first: they warm the JVM soonest.
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
            warm_seconds = SETTLE_SECONDS
            yield Point(candidate, clients, load.per_second, load.p50_ms, load.p99_ms)
