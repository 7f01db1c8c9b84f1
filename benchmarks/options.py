"""Command line options shared by the benchmarks, and the objects they select."""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.machine import CACHE, ROOT, describe
from benchmarks.results import Head
from benchmarks.systems import OURS, archives_of_checkout, names

DEFAULT_MODEL = "mobilevit_xxs_classify"
FILE_WIDTH = 160  # columns: the widest table


def add_common(parser: argparse.ArgumentParser, *, peers: bool = True) -> None:
    """Add the options for models, archives, peers and output."""
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
            help="other servers to compare with; without a name: only our server [all]",
        )
    parser.add_argument("--quick", action="store_true", help="shorter and less precise, to try it out")
    parser.add_argument("--json", action="store_true", help="print the result file to standard output as well")
    parser.add_argument("--out", type=Path, default=CACHE / "results", help="folder for the results")


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the options. From now on SIGTERM ends the benchmark as Ctrl-C does, so that its servers end with it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    return parser.parse_args()


def make_console() -> Console:
    """A console for progress and tables on stderr. Without a terminal it is as wide as the widest table."""
    return Console(stderr=True, width=None if sys.stderr.isatty() else FILE_WIDTH)


def archive_of(folder: Path, model: str) -> Path:
    """Path of a model's archive. Raises `SystemExit` with the command that builds it if there is none."""
    path = folder / f"{model}.mar"
    if not path.is_file():
        raise SystemExit(f"no archive {path}; build it: .venv/bin/mobilevision models build {model} --out {folder}")
    return path


def check_checkout(checkout: Path, models: Sequence[str]) -> None:
    """Check that another checkout has the server and an archive of every model.

    Raises `SystemExit` otherwise; its message names the command that builds the archives.
    """
    if not (checkout / "service" / "__main__.py").is_file():
        raise SystemExit(f"{checkout} is not a checkout of mobilevision: it has no service/__main__.py")
    folder = archives_of_checkout(checkout)
    missing = [model for model in models if not (folder / f"{model}.mar").is_file()]
    if missing:
        build = f"{sys.executable} -m service models build {' '.join(missing)} --out model_store/archives"
        raise SystemExit(
            f"no archive of {', '.join(missing)} in {folder}; build it with the code of that checkout: "
            f"cd {checkout} && PYTHONPATH=. {build}"
        )


def participants_of(peers: Sequence[str]) -> tuple[str, ...]:
    """Names of our server and of the peers, in this order."""
    return (OURS, *peers)


def head_of(benchmark: str, options: argparse.Namespace) -> Head:
    """The head of a result file. Make it before anything is measured."""
    # Result files are published, so they do not contain the path of this checkout or of the output folder.
    chosen = {key: str(value).replace(f"{ROOT}/", "") for key, value in vars(options).items() if key != "out"}
    return Head(benchmark, describe(), chosen, complete=False)
