"""The command `mobilevision models verify`: golden files in, a table of differences out.

Exit codes: 0 all checks passed, 1 a difference is over its tolerance, 2 a file cannot be used or an option is wrong.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from model_store.cli import terminal

if TYPE_CHECKING:
    from model_store.verify.pictures import ToInput
    from model_store.verify.run import Report


def verify_command(to_input: "ToInput | None") -> Callable[..., None]:
    """The command. With `to_input`, it compares the gateway's reading of pictures too."""

    def verify_golden(
        golden: Annotated[
            list[Path] | None, typer.Option(help="Golden file, or folder of them. May be repeated.")
        ] = None,
        paths: Annotated[list[Path] | None, typer.Argument(help="More golden files or folders.")] = None,
    ) -> None:
        """Compare what is built here with stored outputs of the official code, and print every difference."""
        files = [file for path in [*(golden or []), *(paths or [])] for file in _golden_files(path)]
        if not files:
            raise typer.BadParameter("give a golden file or a folder of them", param_hint="--golden")
        reports = _run(files, to_input)
        _print(reports)
        over = sum(len(report.failures) for report in reports)
        unusable = sum(not report.checks for report in reports)
        total = sum(len(report.checks) for report in reports)
        terminal.stdout().print(
            f"{total} checks in {len(files)} files: {over} over tolerance; {unusable} files unusable"
        )
        if over:
            raise typer.Exit(1)
        if unusable:
            raise typer.Exit(2)

    return verify_golden


def _run(files: list[Path], to_input: "ToInput | None") -> "list[Report]":
    with terminal.torch_needed():
        from model_store.verify.run import verify  # noqa: PLC0415 - takes a second
    with terminal.progress() as progress:
        task = progress.add_task(files[0].name, total=len(files))

        def advance(_report: "Report") -> None:
            progress.advance(task)
            following = int(progress.tasks[0].completed)
            progress.update(task, description=files[following].name if following < len(files) else "")

        return verify(files, advance, to_input=to_input)


def _print(reports: "list[Report]") -> None:
    table = Table("file", "check", "worst", "tolerance", "", box=None)
    table.columns[0].no_wrap = True
    for report in reports:
        for check in report.checks:
            result = "pass" if check.ok else "[bold red]FAIL[/]"
            row = (report.subject, check.name, f"{check.difference:.3g}", f"{check.tolerance:.3g}")
            table.add_row(*(escape(cell) for cell in row), result)
        if report.error:
            table.add_row(escape(report.subject), escape(report.error), "", "", "[bold red]UNUSABLE[/]")
    terminal.stdout().print(table)


def _golden_files(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(path.rglob("*.json"))
        if not files:
            raise typer.BadParameter(f"{path} holds no .json file", param_hint="--golden")
        return files
    if not path.is_file():
        raise typer.BadParameter(f"{path}: no such file or folder", param_hint="--golden")
    return [path]
