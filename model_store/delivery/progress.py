"""What a delivery reports while it works. The command line shows it, tests ignore it."""

from typing import Protocol


class Progress(Protocol):
    """Receives the plan once, then each step."""

    def begin(self, files: int, total_bytes: int) -> None:
        """So many files will be transferred, with so many bytes that are still missing."""

    def advance(self, name: str, count: int) -> None:
        """So many bytes of a file were transferred. Less than 0: they were useless, and come again."""


class Quiet:
    """Shows nothing."""

    def begin(self, files: int, total_bytes: int) -> None:
        """Ignore the plan."""

    def advance(self, name: str, count: int) -> None:
        """Ignore the step."""
