"""Verification: networks against golden files, and networks against the numbers of the zoo.

In: paths of golden files, and optionally the function by which the gateway brings a picture to a model's input. Out:
one `Report` per path, or per entry. A file that cannot be used gives a failed report with the reason, so that a run
over many files reports everything.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_store import zoo
from model_store.build import assemble
from model_store.verify.backbones import check_backbone
from model_store.verify.golden import Check, GoldenError, read
from model_store.verify.heads import check_heads
from model_store.verify.pictures import ToInput, check_preprocess


@dataclass(frozen=True)
class Report:
    """The result for one golden file or entry: all checks, or the reason why there are none."""

    subject: str
    checks: tuple[Check, ...]
    error: str = ""

    @property
    def ok(self) -> bool:
        """Whether there were checks and all of them passed."""
        return not self.error and bool(self.checks) and all(check.ok for check in self.checks)

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that did not pass."""
        return tuple(check for check in self.checks if not check.ok)


def check_content(content: Mapping[str, Any], to_input: ToInput | None = None) -> list[Check]:
    """All checks of one golden file's content. Raises `GoldenError` for a model that is not here."""
    try:
        if "family" in content:
            return check_backbone(content)
        if str(content.get("what")).startswith("preprocessing"):
            if to_input is None:
                raise GoldenError("the gateway reads pictures: give this file to `mobilevision models verify`")
            return check_preprocess(content, to_input)
        if "what" in content:
            return check_heads(content)
    except KeyError as error:
        raise GoldenError(f"the file lacks the field {error}") from error
    raise GoldenError("neither a backbone's nor a head's golden file: neither `family` nor `what`")


def verify(
    paths: Iterable[Path],
    on_progress: Callable[[Report], None] = lambda _report: None,
    *,
    to_input: ToInput | None = None,
) -> list[Report]:
    """Check golden files one after the other; `on_progress` is called with each report as it is made.

    Without `to_input` the golden file of pictures is a failed report.
    """
    reports = []
    for path in paths:
        try:
            report = Report(subject=path.name, checks=tuple(check_content(read(path), to_input)))
        except GoldenError as error:
            report = Report(subject=path.name, checks=(), error=str(error))
        on_progress(report)
        reports.append(report)
    return reports


def verify_costs(entry: zoo.ModelSpec) -> Report:
    """Learnable parameters and multiply-adds of an entry's network against the numbers in the zoo.

    Parameters must agree exactly, multiply-adds within 2 %: implementations may count attention differently.
    """
    network = assemble.build(entry)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    macs = assemble.count_macs(network, entry.input.height, entry.input.width)
    checks = (
        Check("parameters", abs(parameters - entry.parameters), 0),
        Check("macs, relative", abs(macs - entry.macs) / entry.macs, 0.02),
    )
    return Report(subject=entry.name, checks=checks)
