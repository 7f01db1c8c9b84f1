"""Arrival traces: when each request of an open-loop run is sent, decided beforehand, kept in a file, replayed exactly.

A trace is made at a rate of one request a second; `at_rate` compresses it. All systems and loads of a benchmark thus
see the same sequence of gaps, whatever their capacity.
"""

import itertools
import json
import random
from dataclasses import dataclass
from pathlib import Path


class TraceError(ValueError):
    """A file is not a trace, or too short for what is asked of it."""


@dataclass(frozen=True)
class Trace:
    """`arrivals_seconds`: rising times of requests, counted from the start, at one request a second on average."""

    seed: int
    arrivals_seconds: tuple[float, ...]

    def at_rate(self, per_second: float, seconds: float) -> tuple[float, ...]:
        """Arrivals within the first `seconds` at a rate of `per_second`. Raises `TraceError` if it is too short."""
        scaled = tuple(itertools.takewhile(lambda at: at < seconds, (at / per_second for at in self.arrivals_seconds)))
        if len(scaled) == len(self.arrivals_seconds):
            raise TraceError(
                f"the trace has {len(self.arrivals_seconds)} arrivals, too few for {seconds} s at {per_second:.1f} a "
                "second; make a longer one"
            )
        return scaled

    def part(self, number: int, parts: int) -> "Trace":
        """The part `number`, from 1, of `parts` of equally many arrivals, counted from the end of the part before."""
        length = len(self.arrivals_seconds) // parts
        first = (number - 1) * length
        start = self.arrivals_seconds[first - 1] if first else 0.0
        return Trace(self.seed, tuple(at - start for at in self.arrivals_seconds[first : first + length]))

    def write(self, path: Path) -> None:
        """Write it as JSON, to the microsecond."""
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"seed": self.seed, "arrivals_seconds": self.arrivals_seconds}
        path.write_text(json.dumps(content) + "\n")

    @classmethod
    def read(cls, path: Path) -> "Trace":
        """Read what `write` wrote. Raises `TraceError`."""
        try:
            content = json.loads(path.read_bytes())
            arrivals = tuple(float(at) for at in content["arrivals_seconds"])
            trace = cls(seed=int(content["seed"]), arrivals_seconds=arrivals)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TraceError(f"{path} is not an arrival trace: {error!r}") from error
        if any(a > b for a, b in itertools.pairwise(arrivals)):
            raise TraceError(f"{path}: arrivals must not go back in time")
        return trace


def poisson(*, seed: int, count: int) -> Trace:
    """A Poisson process of one request a second: the same seed gives the same trace on every machine."""
    gaps = random.Random(seed)  # noqa: S311 - a load, not a secret
    arrivals = itertools.accumulate(gaps.expovariate(1.0) for _ in range(count))
    return Trace(seed=seed, arrivals_seconds=tuple(round(at, 6) for at in arrivals))
