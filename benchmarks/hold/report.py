"""docs/reliability.md from `hold.json`: `python -m benchmarks.hold.report > docs/reliability.md`. Measures nothing."""

from collections.abc import Mapping

from benchmarks.hold import record
from benchmarks.hold.record import Record
from benchmarks.hold.rows import FOUND
from benchmarks.report import MEASURED, table

MARK = "<!-- measured by make hold -->"
_BEGIN = """\
# Reliability

`make hold` measures this page in less than ten minutes, and `make hold-full` with an hour of load. Both fail if
anything did not hold. The results are in [hold.json](../benchmarks/measured/hold.json).
[benchmarks/README.md](../benchmarks/README.md#hold) explains the program. `python -m benchmarks.hold --only NAME`
repeats one section."""

_REGRESSIONS = """\
## Faults that were found, and their tests

An audit found these kinds of faults. The tests of each run with every change."""


def page(records: Mapping[str, Record]) -> str:
    """The whole page."""
    return "\n\n".join([_BEGIN, *(_section(one) for one in records.values()), _regressions()]) + "\n"


def _regressions() -> str:
    rows = ((one.row, one.fault, "<br>".join(f"`{test}`" for test in one.tests)) for one in FOUND)
    return "\n\n".join([_REGRESSIONS, table(("", "fault", "tests"), rows)])


def _section(found: Record) -> str:
    section, machine = found.section, found.machine
    parts = [f"## {section.title}", section.text.strip()]
    if found.error:
        parts.append(f"This section was not measured: {found.error}")
    if section.rows:
        parts.append(table(section.columns, (row.cells for row in section.rows)))
    held = sum(row.held for row in section.rows)
    parts.append(
        f"{held} of {len(section.rows)} rows held. `{found.command}`: {found.seconds:.0f} s on {machine.cores} cores "
        f"({machine.cpu_model}, {machine.memory_gib:.0f} GiB), load {machine.load_average:.1f} before, "
        f"{machine.started_utc[:10]}, revision {machine.git_revision[:12]}"
        f"{' with changes' if machine.git_revision.endswith('+changes') else ''}."
    )
    return "\n\n".join(parts)


def summary(records: Mapping[str, Record]) -> str:
    """The sentence of the README: three figures. Needs the sections `faults` and `same_answers`."""
    faults, same = records["faults"].section, records["same_answers"].section
    column = {name: number for number, name in enumerate(faults.columns)}
    counted = [row.cells for row in faults.rows if row.cells[column["sent"]].isdecimal()]

    def total(name: str) -> int:
        return sum(int(cells[column[name]]) for cells in counted)

    answers = sum(int(row.cells[same.columns.index("right")]) for row in same.rows)
    bad = sum(int(row.cells[same.columns.index("wrong or lost")]) for row in same.rows)
    return (
        f"Under {len(counted)} faults, {total('sent'):,} calls were sent: {total('lost')} were lost. "
        f"{total('wrong')} got a wrong answer. "
        f"{answers:,} answers to the same pictures, alone, in batches and during faults, were compared bit by bit: "
        f"{bad} differed."
    )


def with_summary(readme: str, records: Mapping[str, Record]) -> str:
    """The README with the sentence of `summary` between its marks. Unchanged while a section is missing."""
    if not {"faults", "same_answers"} <= records.keys():
        return readme
    before, _, after = readme.split(MARK)
    return f"{before}{MARK}\n{summary(records)}\n{MARK}{after}"


if __name__ == "__main__":
    print(page(record.read(MEASURED)), end="")
