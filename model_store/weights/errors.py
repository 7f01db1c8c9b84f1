"""The error of an unusable checkpoint, and lists of names in messages. Never imports torch."""

from collections.abc import Sequence


class CheckpointError(Exception):
    """A checkpoint cannot be read or does not fit. The three lists are empty where the file could not be read.

    `shapes` holds (name, shape in the checkpoint, shape in the network).
    """

    def __init__(
        self,
        message: str,
        *,
        missing: tuple[str, ...] = (),
        unexpected: tuple[str, ...] = (),
        shapes: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = (),
    ) -> None:
        super().__init__(message)
        self.missing = missing
        self.unexpected = unexpected
        self.shapes = shapes


def listed(names: Sequence[str], most: int) -> str:
    """The first `most` names in one line, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
