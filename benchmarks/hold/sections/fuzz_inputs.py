"""Fuzzing of every parser that reads bytes of others: inputs, crashes, hangs, slowest input, memory."""

from benchmarks.hold.fuzz import child, runner
from benchmarks.hold.fuzz.target import MIB
from benchmarks.hold.fuzz.targets import TARGETS
from benchmarks.hold.section import Budget, Row, Section

_TEXT = """\
Each parser runs in a process of its own, with hostile files made by code first, then with mutations of them{how}.
A crash is any exception that the parser does not document, or the end of the process. A hang is an input that takes
longer than {seconds:.0f} s. Memory is how much the process grew over all inputs, and its budget. Repeat one line:
`python -m benchmarks.hold.fuzz decode --seconds 60`. What crashes is kept in `build/fuzz`."""

START_SECONDS = 1.0  # of the process of a target: imports, and making what it tries first
LEAST_SECONDS = {"decode": 15.0}  # it has many hostile files made by code, and mutates only after them


def seconds_of(name: str, seconds: float) -> float:
    """The seconds of one target after its start: an equal share of `seconds`, or what it needs at least."""
    left = seconds - sum(LEAST_SECONDS.values()) - START_SECONDS * len(TARGETS)
    share = left / (len(TARGETS) - len(LEAST_SECONDS))
    return max(share, LEAST_SECONDS.get(name, 0.0), 1.0)


def run(budget: Budget) -> Section:
    """Fuzz every target for its share of the time."""
    rows = []
    for name, target in TARGETS.items():
        budget.progress(f"fuzzing {name}")
        outcome = runner.fuzz(target, seconds_of(name, budget.seconds))
        found = (*outcome.crashes, *outcome.hangs)
        for line in found:
            budget.progress(f"{name}: {line}")
        cells = (
            name,
            f"{outcome.inputs:,}",
            f"{outcome.refused:,}",
            "-" if outcome.coverage is None else str(outcome.coverage),
            str(len(outcome.crashes)),
            str(len(outcome.hangs)),
            f"{outcome.slowest_seconds:.2f} s",
            f"{outcome.grown_bytes / MIB:.0f} of {target.memory_bytes / MIB:.0f} MiB",
        )
        rows.append(Row(cells, outcome.held(target)))
    guided = child.atheris_module() is not None
    how = ", guided by the coverage of Python code (atheris)" if guided else ", drawn without coverage: no atheris here"
    return Section(
        name="fuzz_inputs",
        title="Files and messages that nobody should send",
        text=_TEXT.format(how=how, seconds=max(target.hang_seconds for target in TARGETS.values())),
        columns=("parser", "inputs", "refused", "coverage", "crashes", "hangs", "slowest", "memory"),
        rows=tuple(rows),
    )
