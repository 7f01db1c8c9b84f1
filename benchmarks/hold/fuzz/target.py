"""What is fuzzed: a function that takes bytes, inputs to begin with, and what the function may raise."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Target:
    """A parser under test.

    `seeds` yields inputs to begin with: valid ones, and hostile ones made by code. `prepare` imports the parser and
    returns the function that takes one input; nothing of it is imported before. The function raises one of `expected`
    for inputs that are refused. Everything else that it raises is a crash. `memory_bytes`: how much one process may
    grow over all inputs. `hang_seconds`: an input that takes longer is a hang. `instrumented`: packages whose coverage
    guides the mutation.
    """

    name: str
    prepare: Callable[[], Callable[[bytes], None]]
    seeds: Callable[[], Iterator[bytes]]
    expected: Callable[[], tuple[type[Exception], ...]]
    memory_bytes: int
    instrumented: tuple[str, ...]
    hang_seconds: float = 5.0
    longest_bytes: int = 2**16
