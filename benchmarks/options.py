"""Options that the benchmarks share, and what they name."""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.machine import CACHE, ROOT, describe
from benchmarks.results import Head
from benchmarks.systems import OURS, names

DEFAULT_MODEL = "mobilevit_xxs_classify"
FILE_WIDTH = 125  # columns: the widest table


def add_common(parser: argparse.ArgumentParser, *, peers: bool = True) -> None:
    """Models, archives, peers, output."""
    parser.add_argument(
        "--models", "--model", nargs="+", default=[DEFAULT_MODEL], help=f"archives by name [{DEFAULT_MODEL}]"
    )
    parser.add_argument("--archives", type=Path, default=ROOT / "model_store" / "archives", help="folder with them")
    if peers:
        parser.add_argument(
            "--peers",
            nargs="*",
            choices=names()[1:],
            default=list(names()[1:]),
            help="servers to compare with; none after the option: ours alone [all]",
        )
    parser.add_argument("--quick", action="store_true", help="shorter, coarser, for trying out")
    parser.add_argument("--json", action="store_true", help="print the result file to standard output as well")
    parser.add_argument("--out", type=Path, default=CACHE / "results", help="folder for the results")


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options. From here on SIGTERM ends the benchmark as Ctrl-C does, so that no server outlives it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    return parser.parse_args()


def make_console() -> Console:
    """Progress and tables, on stderr; as wide as the tables where that is no terminal."""
    return Console(stderr=True, width=None if sys.stderr.isatty() else FILE_WIDTH)


def archive_of(folder: Path, model: str) -> Path:
    """The archive of a model. Ends the program, naming the command that builds it, where there is none."""
    path = folder / f"{model}.mar"
    if not path.is_file():
        raise SystemExit(f"no archive {path}; build it: .venv/bin/mobilevision models build {model} --out {folder}")
    return path


def participants_of(peers: Sequence[str]) -> tuple[str, ...]:
    """Ours first, then the peers."""
    return (OURS, *peers)


def head_of(benchmark: str, options: argparse.Namespace) -> Head:
    """What its result file begins with; taken before anything is measured."""
    # Results are passed on: where this copy of the project lies, and where they were written, is nobody's business.
    chosen = {key: str(value).replace(f"{ROOT}/", "") for key, value in vars(options).items() if key != "out"}
    return Head(benchmark, describe(), chosen, complete=False)
