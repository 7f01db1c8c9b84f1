"""What a section of docs/reliability.md is: a table with counts, and whether each row held."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a section's table. `cells` are in the order of the columns. `held`: the promise was kept."""

    cells: tuple[str, ...]
    held: bool


@dataclass(frozen=True, slots=True)
class Section:
    """A measured section. `text` is a paragraph of Markdown that says what was done and how to repeat it."""

    name: str
    title: str
    text: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def held(self) -> bool:
        """Whether every row held."""
        return all(row.held for row in self.rows)


@dataclass(frozen=True, slots=True)
class Budget:
    """How much a section may do. `seconds` is about how long it may take. `full`: the long form, `make hold-full`.

    `progress` takes a short text that says what is being done.
    """

    seconds: float
    full: bool
    progress: Callable[[str], None]
