"""A queue in the order of deadlines. Items with equal deadlines keep the order in which they were added.

Two parallel lists, because the policy needs only the deadlines and searches them by bisection. Adding and removing cost
O(log n) comparisons and one move of pointers. The queue never reads a clock and knows no policy.
"""

from bisect import bisect_left, bisect_right
from typing import Generic, TypeVar

Item = TypeVar("Item")


class DeadlineQueue(Generic[Item]):
    """The queue. Read `deadlines` and `items`, but never change them: use the methods."""

    def __init__(self) -> None:
        self.deadlines: list[float] = []
        self.items: list[Item] = []

    def __len__(self) -> int:
        return len(self.items)

    def add(self, deadline_at: float, item: Item) -> None:
        """Add an item behind those with the same or an earlier deadline."""
        place = bisect_right(self.deadlines, deadline_at)
        self.deadlines.insert(place, deadline_at)
        self.items.insert(place, item)

    def discard(self, deadline_at: float, item: Item) -> None:
        """Remove an item, if it is still in the queue."""
        for place in range(bisect_left(self.deadlines, deadline_at), bisect_right(self.deadlines, deadline_at)):
            if self.items[place] is item:
                self.take(range(place, place + 1))
                return

    def take(self, places: range) -> list[Item]:
        """Remove the items at these places, a range with step 1, and return them."""
        taken = self.items[places.start : places.stop]
        del self.items[places.start : places.stop], self.deadlines[places.start : places.stop]
        return taken

    def clear(self) -> list[Item]:
        """Remove all items and return them."""
        return self.take(range(len(self)))
