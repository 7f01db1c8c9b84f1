"""How long rendering a reply takes: sizes of pictures and seconds in, predicted seconds out. One per model.

A mask has the size of its picture, so the time of rendering is learned per class of size. Pictures of one class differ
by less than a factor of two in pixels. A class without recent evidence has no prediction: so a wrong prediction, which
refuses the calls that would correct it, ends by itself.

Never reads a clock, and knows no queues and no deadlines.
"""

from dataclasses import dataclass

EVIDENCE_REPLIES = 3  # a single slow reply is no evidence
EVIDENCE_SECONDS = 5.0  # after the last reply of the class

_MOST_WEIGHT = 20  # the last twenty or so replies count


@dataclass(slots=True)
class _SizeClass:
    mean_seconds: float = 0.0
    replies: int = 0
    learned_at: float = 0.0


class RenderingModel:
    """Predicted seconds of rendering by size of the picture."""

    def __init__(self) -> None:
        self._classes: dict[int, _SizeClass] = {}  # by bits of the number of pixels, so there are some thirty

    def observe(self, picture_px: int, seconds: float, now: float) -> None:
        """Learn from the reply to a picture of `picture_px` pixels that took `seconds`."""
        known = self._classes.setdefault(picture_px.bit_length(), _SizeClass())
        if now - known.learned_at >= EVIDENCE_SECONDS:
            known.replies = 0
        known.replies = min(known.replies + 1, _MOST_WEIGHT)
        known.mean_seconds += (seconds - known.mean_seconds) / known.replies
        known.learned_at = now

    def predict(self, picture_px: int, now: float) -> float:
        """Seconds for a picture of `picture_px` pixels. 0 without evidence."""
        known = self._classes.get(picture_px.bit_length())
        if known is None or known.replies < EVIDENCE_REPLIES or now - known.learned_at >= EVIDENCE_SECONDS:
            return 0.0
        return known.mean_seconds
