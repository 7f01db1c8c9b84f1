"""Arrival traces: the times at which an open-loop run sends its requests. A trace can be kept in a file and replayed.

A trace has a rate of one request per second, and `at_rate` compresses it. All systems and loads of a benchmark
therefore have the same sequence of gaps, whatever their capacity.
"""

import itertools
import json
import random
from dataclasses import dataclass
from pathlib import Path


class TraceError(ValueError):
    """A file is not a trace, or the trace is too short."""


@dataclass(frozen=True)
class Trace:
    """`arrivals_seconds`: rising times of requests from the start of the run, one request per second on average."""

    seed: int
    arrivals_seconds: tuple[float, ...]

    def at_rate(self, per_second: float, seconds: float) -> tuple[float, ...]:
        """Arrivals within the first `seconds` at `per_second` requests per second. Raises `TraceError` if too short."""
        scaled = tuple(itertools.takewhile(lambda at: at < seconds, (at / per_second for at in self.arrivals_seconds)))
        if len(scaled) == len(self.arrivals_seconds):
            raise TraceError(
                f"the trace has {len(self.arrivals_seconds)} arrivals, too few for {seconds} s at {per_second:.1f} per "
                "second; make a longer trace"
            )
        return scaled

    def part(self, number: int, parts: int) -> "Trace":
        """Part `number` (from 1) of `parts` equal parts. Its times count from the last arrival of the previous part."""
        length = len(self.arrivals_seconds) // parts
        first = (number - 1) * length
        start = self.arrivals_seconds[first - 1] if first else 0.0
        return Trace(self.seed, tuple(at - start for at in self.arrivals_seconds[first : first + length]))

    def write(self, path: Path) -> None:
        """Write the trace as JSON, with times in microsecond precision."""
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"seed": self.seed, "arrivals_seconds": self.arrivals_seconds}
        path.write_text(json.dumps(content) + "\n")

    @classmethod
    def read(cls, path: Path) -> "Trace":
        """Read a file that `write` wrote. Raises `TraceError`."""
        try:
            content = json.loads(path.read_bytes())
            arrivals = tuple(float(at) for at in content["arrivals_seconds"])
            trace = cls(seed=int(content["seed"]), arrivals_seconds=arrivals)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TraceError(f"{path} is not an arrival trace: {error!r}") from error
        if any(a > b for a, b in itertools.pairwise(arrivals)):
            raise TraceError(f"{path}: the arrivals must be in rising order")
        return trace


def poisson(*, seed: int, count: int) -> Trace:
    """A Poisson process with one request per second. The same seed gives the same trace on every machine."""
    gaps = random.Random(seed)  # noqa: S311 - a load, not a secret
    arrivals = itertools.accumulate(gaps.expovariate(1.0) for _ in range(count))
    return Trace(seed=seed, arrivals_seconds=tuple(round(at, 6) for at in arrivals))
