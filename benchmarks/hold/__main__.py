"""`python -m benchmarks.hold [--full] [--only SECTION ...]`. Exit status 1 if anything did not hold.

Runs the sections one after another. After each it writes hold.json, docs/reliability.md, and the figures of the README.
Ctrl-C keeps the sections that have ended. With `--only` the other sections of the file stay as they are.
"""

import argparse
import importlib
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.hold import record, report
from benchmarks.hold.record import Record
from benchmarks.hold.section import Budget, Section
from benchmarks.machine import ROOT, describe
from benchmarks.options import make_console, parse
from benchmarks.report import MEASURED

# Seconds in the short form. They add up to less than ten minutes.
SECTIONS = {
    "faults": 270.0,
    "same_answers": 60.0,
    "attackers": 90.0,
    "fuzz_inputs": 40.0,
    "fuzz_wire": 20.0,
    "soak": 75.0,
}
FULL_FACTOR = 10.0  # of the long form; the soak has an hour of its own

README = ROOT / "README.md"
Run = Callable[[Budget], Section]


def section(name: str) -> Run:
    """The function that measures a section. Its module is imported only now. Raises ImportError."""
    run: Run = importlib.import_module(f"benchmarks.hold.sections.{name}").run
    return run


def measure(name: str, *, full: bool, progress: Callable[[str], None], find: Callable[[str], Run] = section) -> Record:
    """Run one section. An exception of it is the error of its record."""
    machine, began_at = describe(), time.monotonic()
    command = f"python -m benchmarks.hold{' --full' if full else ''} --only {name}"
    budget = Budget(seconds=SECTIONS[name] * (FULL_FACTOR if full else 1), full=full, progress=progress)
    try:
        found, error = find(name)(budget), ""
    except Exception as failure:  # noqa: BLE001 - the other sections are measured all the same
        found, error = Section(name, name, "", (), ()), f"{type(failure).__name__}: {failure}"
    return Record(found, machine, command, time.monotonic() - began_at, error)


def run_sections(
    names: Sequence[str], *, full: bool, out: Path, page: Path, console: Console, find: Callable[[str], Run] = section
) -> bool:
    """Measure sections and write the files after each. Returns whether all held."""
    records = record.read(out)
    held = True
    for name in names:
        console.rule(name)
        began_at = time.monotonic()

        def progress(text: str, began_at: float = began_at) -> None:
            console.print(f"  {time.monotonic() - began_at:5.0f} s  {escape(text)}")

        found = measure(name, full=full, progress=progress, find=find)
        records[name] = found
        held &= found.held
        show(found, console)
        ordered = {one: records[one] for one in SECTIONS if one in records}
        record.write(out, ordered)
        page.write_text(report.page(ordered))
        if out == MEASURED:
            README.write_text(report.with_summary(README.read_text(), ordered))
    return held


def show(found: Record, console: Console) -> None:
    """Print the table of a section."""
    if found.error:
        console.print(f"[red]{found.section.name} was not measured:[/] {escape(found.error)}")
        return
    table = Table(title=found.section.title)
    for column in found.section.columns:
        table.add_column(column)
    for row in found.section.rows:
        table.add_row(*map(escape, row.cells), style="" if row.held else "red")
    console.print(table)


def main() -> None:
    """Parse, measure, and end with status 1 if anything did not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the long form: an hour of load, more of everything")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), help="these sections [all]")
    parser.add_argument("--out", type=Path, default=MEASURED, help="folder of hold.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "reliability.md", help="the page that is written")
    options = parse(parser)
    console = make_console()
    names = [name for name in SECTIONS if options.only is None or name in options.only]
    try:
        held = run_sections(names, full=options.full, out=options.out, page=options.page, console=console)
    except KeyboardInterrupt:
        console.print("[yellow]stopped early:[/] the sections that have ended are kept")
        sys.exit(130)
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()
