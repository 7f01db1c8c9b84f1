"""Pairs of a network engine and a dtype, as the benchmarks choose, compare and report them. Never imports torch.

`benchmarks.engines` finds which pairs a module really loads, and how far each is from the reference.
"""

import argparse
from dataclasses import dataclass

from handlers.options import DTYPES, ENGINES, OPENVINO, TORCHSCRIPT

ANY = "auto"
_TRIED_DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Pair:
    """A network engine and a dtype. `auto` in either place leaves that choice to the worker (`handlers.engine`)."""

    engine: str = ANY
    dtype: str = ANY

    def __str__(self) -> str:
        return f"{self.engine}/{self.dtype}"

    def admits(self, other: "Pair") -> bool:
        """Whether a worker that was asked for this pair may run the other one."""
        return self.engine in {ANY, other.engine} and self.dtype in {ANY, other.dtype}


@dataclass(frozen=True)
class Accuracy:
    """How close a pair is to the reference, for one module.

    Attributes:
        difference: of the raw outputs on the probe pictures, in standard deviations of the reference
            (`handlers.probe`). None: not told, because the module has no parts, so its raw outputs cannot be seen.
        agreement: the share of answers that stay the same in bfloat16, as the card says. None: another dtype, or the
            card does not say.
        admitted: whether a worker with `dtype=auto` may run this pair.

    """

    difference: float | None = None
    agreement: float | None = None
    admitted: bool = True


AUTO = Pair()
UNKNOWN = Pair("", "")  # nothing was said about it
REFERENCE = Pair(TORCHSCRIPT, "float32")


def to_try(asked: Pair, *, gpu: bool = False) -> tuple[Pair, ...]:
    """The pairs over which the in-process limit is searched; on CPUs the reference is one of them and comes first.

    With a GPU only the asked pair: a worker there has no choice of engines, and every other dtype would capture all
    graphs again.
    """
    if gpu:
        return (asked,)
    engines = ENGINES if asked.engine == ANY else (asked.engine,)
    dtypes = _TRIED_DTYPES if asked.dtype == ANY else (asked.dtype,)
    return tuple(dict.fromkeys((REFERENCE, *(Pair(engine, dtype) for engine in engines for dtype in dtypes))))


def add_pair(parser: argparse.ArgumentParser) -> None:
    """Add the options `--engine` and `--dtype`, which `asked_pair` reads."""
    parser.add_argument(
        "--engine",
        choices=(ANY, *ENGINES),
        default=ANY,
        help="network engine of our server, of every peer that runs our runtime, and of the in-process limit "
        f"[auto: servers choose; the limit is the best of {TORCHSCRIPT} and {OPENVINO}]",
    )
    parser.add_argument(
        "--dtype",
        choices=(ANY, *DTYPES),
        default=ANY,
        help=f"dtype of the same [auto: servers choose; the limit is the best of {' and '.join(_TRIED_DTYPES)}]",
    )


def asked_pair(options: argparse.Namespace) -> Pair:
    """The pair that the command line asks for."""
    return Pair(options.engine, options.dtype)
