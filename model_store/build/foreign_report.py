"""What is asked about a module that was not written here, and the report: one line per check, and why it was refused.

In: what was found. Out: lines for a person. Pydantic, because both travel between two processes as JSON.
"""

from typing import Literal, NoReturn

from pydantic import BaseModel

from handlers.contract.card import Task

_LONGEST_REASON = 300  # characters
State = Literal["held", "note", "not held"]


class Wish(BaseModel):
    """What the definition says about the module and its answers. None: to be found, or a default.

    `background`: the class that is none of the labels. `boxes`: the unit of corners. `normalize_given`: whether mean,
    std or channel order were said.
    """

    task: Task
    classes: int
    background: Literal["none", "first", "last"] | None = None
    boxes: Literal["pixels", "unit"] | None = None
    max_boxes: int | None = None
    score_threshold: float | None = None
    align_corners: bool | None = None
    normalize_given: bool = False


class Refused(Exception):
    """A check does not hold, so the module cannot be served. The message says why, and what to do."""


class Check(BaseModel):
    """One check. `figure` is what was found, in words or with a number."""

    name: str
    state: State
    figure: str

    def __str__(self) -> str:
        """The line in the report."""
        return f"{self.state:<8}  {self.name}: {self.figure}"


class Report(BaseModel):
    """The checks so far, in the order in which they were made."""

    checks: list[Check] = []

    def held(self, name: str, figure: str) -> None:
        """Add a check that holds."""
        self.checks.append(Check(name=name, state="held", figure=figure))

    def note(self, name: str, figure: str) -> None:
        """Add what is no fault here, but may matter elsewhere."""
        self.checks.append(Check(name=name, state="note", figure=figure))

    def refuse(self, name: str, figure: str, remedy: str) -> NoReturn:
        """Add a check that does not hold. Raises `Refused`."""
        self.checks.append(Check(name=name, state="not held", figure=figure))
        raise Refused(f"{name}: {figure}; {remedy}")

    def lines(self) -> tuple[str, ...]:
        """One line per check."""
        return tuple(str(check) for check in self.checks)


def reason(error: BaseException) -> str:
    """What went wrong, in one line: TorchScript writes a traceback first, and the reason last."""
    told = str(error).rpartition("Error:")[2]
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    return lines[0][:_LONGEST_REASON] if lines else type(error).__name__
