"""Which of two ways is faster, timed by turns.

In: a function that times both ways once and says whether the first won. Out: by how many rounds the first is ahead. The
speed of a machine that other programs use changes within a second, by more than the two ways differ. So both are timed
within each round, and the rounds are counted.
"""

import time
from collections.abc import Callable

CLEAR_LEAD = 4  # rounds: then no more are played
LONGEST_SECONDS = 2.0


def lead(first_wins: Callable[[], bool], *, clock: Callable[[], float] = time.perf_counter) -> int:
    """Play rounds until one way leads by `CLEAR_LEAD`, or `LONGEST_SECONDS` are over; negative: the second leads."""
    ahead, started_at = 0, clock()
    while abs(ahead) < CLEAR_LEAD and clock() - started_at < LONGEST_SECONDS:
        ahead += 1 if first_wins() else -1
    return ahead
