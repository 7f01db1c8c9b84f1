"""How long the workers of one model version may take over a batch before they count as hung.

In: how long batches took, and which workers were hung. Out: seconds. Never reads a clock and never ends a worker.
"""

import math

_HUNG_BATCHES = 10  # a worker that takes so many times as long as its batches took is hung
_EVIDENCE_BATCHES = 3  # before them only the longest time counts
_FORGET = 0.98  # share of the longest time that is kept per batch


class Patience:
    """Learns what is usual.

    A worker that answers within `hung_seconds` is never hung. One that takes longer than `longest_seconds` always is.
    """

    def __init__(self, *, hung_seconds: float = math.inf, longest_seconds: float = math.inf) -> None:
        self._hung_seconds = hung_seconds
        self._longest_seconds = longest_seconds
        self._picture_seconds = 0.0  # the longest that batches took lately, per picture
        self._answered = 0
        self._hung_since_answer = 0

    def seconds(self, pictures: int) -> float:
        """How long a batch of so many pictures may take. Doubled after each hung worker, until a worker answers.

        So a machine that became much slower ends no worker again and again.
        """
        if self._answered < _EVIDENCE_BATCHES:
            return self._longest_seconds
        usual_seconds = max(self._hung_seconds, _HUNG_BATCHES * pictures * self._picture_seconds)
        return min(usual_seconds * 2.0 ** min(self._hung_since_answer, 16), self._longest_seconds)

    def answered(self, pictures: int, seconds: float) -> None:
        """A batch of so many pictures was answered after so many seconds."""
        self._answered += 1
        self._hung_since_answer = 0
        self._picture_seconds = max(seconds / pictures, self._picture_seconds * _FORGET)

    def hung(self) -> None:
        """A worker was ended because it did not answer."""
        self._hung_since_answer += 1
