"""Waiting things in the order of their deadlines; equal deadlines keep the order they came in.

Two parallel lists, because the policy looks at deadlines only and searches them by bisection: adding and removing cost
O(log n) comparisons and one move of pointers. Knows no policy and no clock.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Line(Generic[Item]):
    """A line of items. `deadlines` and `items` are for reading."""

    def __init__(self) -> None:
        self.deadlines: list[float] = []
        self.items: list[Item] = []

    def __len__(self) -> int:
        return len(self.items)

    @contextmanager
    def trying(self, deadline_seconds: float) -> Iterator[int]:
        """Within, `deadlines` is as if an item with this deadline had been added; yields its place."""
        place = bisect_right(self.deadlines, deadline_seconds)
        self.deadlines.insert(place, deadline_seconds)
        try:
            yield place
        finally:
            del self.deadlines[place]

    def add(self, deadline_seconds: float, item: Item) -> None:
        """Put an item in its place."""
        place = bisect_right(self.deadlines, deadline_seconds)
        self.deadlines.insert(place, deadline_seconds)
        self.items.insert(place, item)

    def discard(self, deadline_seconds: float, item: Item) -> None:
        """Take an item out, if it is still here."""
        for place in range(
            bisect_left(self.deadlines, deadline_seconds), bisect_right(self.deadlines, deadline_seconds)
        ):
            if self.items[place] is item:
                self.take(place, place + 1)
                return

    def take(self, first: int, stop: int) -> list[Item]:
        """Remove and return the items from `first` up to `stop`."""
        taken = self.items[first:stop]
        del self.items[first:stop], self.deadlines[first:stop]
        return taken

    def clear(self) -> list[Item]:
        """Remove and return all."""
        return self.take(0, len(self))
