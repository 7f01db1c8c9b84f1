"""CPU time of the gateway per picture, alone or against the gateway of another checkout.

In: nothing, or a second checkout. Out: milliseconds of CPU per answered call of the gateway process, JPEG of 256 px,
32 calls in flight, and the ratio to the other checkout. The gateway is a real one with its access log and metrics. The
workers compute nothing in processes of their own, and the load comes from another process, so neither is counted.

Both gateways have turns in every round, in alternating order. CPU time counts, not the time on the clock, so a machine
that is busy with other work makes the figures vary but not meaningless. Compare ratios, not milliseconds of two runs.
"""

import argparse
import contextlib
import dataclasses
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from benchmarks import load, results
from benchmarks.figures import Spread, ratio, spread
from benchmarks.lone_gateway import CARDS
from benchmarks.machine import CACHE, ROOT
from benchmarks.options import head_of, make_console, parse
from benchmarks.results import Head
from benchmarks.systems import BEFORE, OURS
from benchmarks.target import Target, picture
from service.core.settings import child_environment
from service.pb.mobilevision.v1 import vision_pb2

CLIENTS = 32
SIDE_PX = 256
PICTURE_MILLISECONDS = 8.0  # that a worker takes for a picture: the fast networks on one core
WARM_UP_SECONDS = 1.0
_TAIL_SECONDS = 0.5  # of load after the second count, so that both counts fall within the load
_METHOD = "/mobilevision.v1.VisionService/Classify"


@dataclass(frozen=True)
class Counts:
    """What a gateway process has used, answered and sent so far."""

    cpu_seconds: float
    answered: int
    batches: int


@dataclass(frozen=True)
class CpuTurn:
    """One turn of one gateway."""

    round: int
    system: str
    answered: int
    pictures_per_batch: float
    cpu_ms_per_picture: float


@dataclass(frozen=True)
class GatewayCpuResult:
    """`gateway_cpu.json`. `ratio`: this tree / the other tree, round by round; None without another tree."""

    head: Head
    generator: str
    turns: list[CpuTurn]
    cpu_ms_per_picture: dict[str, Spread]
    ratio: Spread | None


def turn_between(number: int, system: str, before: Counts, after: Counts) -> CpuTurn:
    """The turn of a system between two counts. Raises `LoadFailed` if no call was answered."""
    answered, batches = after.answered - before.answered, after.batches - before.batches
    if answered <= 0 or batches <= 0:
        raise load.LoadFailed(f"{system} answered no call in this turn")
    cpu_ms = (after.cpu_seconds - before.cpu_seconds) * 1e3
    return CpuTurn(number, system, answered, answered / batches, cpu_ms / answered)


def order(systems: Sequence[str], number: int) -> list[str]:
    """The order of the systems in a round: forwards in even rounds, backwards in odd ones."""
    return list(systems if number % 2 == 0 else reversed(systems))


def summary(turns: Sequence[CpuTurn]) -> tuple[dict[str, Spread], Spread | None]:
    """The spread of each system over its turns, and of the ratio of this tree to the other one within each round."""
    by_system: dict[str, list[float]] = {}
    for turn in sorted(turns, key=lambda one: one.round):
        by_system.setdefault(turn.system, []).append(turn.cpu_ms_per_picture)
    spreads = {system: spread(values) for system, values in by_system.items()}
    return spreads, ratio(by_system.get(OURS, []), by_system.get(BEFORE, []))


class LoneGateway:
    """A started gateway as its parent sees it."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.pid = process.pid
        self.address = str(self._line()["grpc"])

    def counts(self) -> Counts:
        """What it has used and answered so far. Raises `LoadFailed` if it has ended."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        line = self._line()
        return Counts(line["cpu_seconds"], int(line["answered"]), int(line["batches"]))

    def _line(self) -> Mapping[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise load.LoadFailed("the gateway has ended; its log is on the terminal with --show-log")
        found: Mapping[str, float] = json.loads(line)
        return found


@contextlib.contextmanager
def lone_gateway(checkout: Path, *, picture_ms: float, show_log: bool = False) -> Iterator[LoneGateway]:
    """Run the gateway of a checkout within the context. Raises `LoadFailed` if it does not start."""
    program = str(Path(__file__).with_name("lone_gateway.py"))
    with tempfile.TemporaryDirectory(prefix="gateway-cpu-") as folder:
        # -P: the folder of the program is no place for imports.
        command = [sys.executable, "-P", program, folder, str(picture_ms / 1e3)]
        with subprocess.Popen(
            command,
            cwd=checkout,
            env=child_environment(PYTHONPATH=str(checkout)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if show_log else subprocess.DEVNULL,
            text=True,
        ) as process:
            try:
                yield LoneGateway(process)
            finally:
                process.stdin.close()  # type: ignore[union-attr]  # it ends by itself
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()


def counts_under_load(gateway: LoneGateway, target: Target, *, clients: int, seconds: float) -> tuple[Counts, Counts]:
    """Two counts, `seconds` apart, in the middle of a load. Raises `LoadFailed`."""
    failures: list[Exception] = []

    def generate() -> None:
        try:
            load.closed_loop(
                [target], clients=clients, seconds=seconds + _TAIL_SECONDS, warm_up_seconds=WARM_UP_SECONDS
            )
        except Exception as error:  # noqa: BLE001 - raised again below
            failures.append(error)

    thread = threading.Thread(target=generate)
    thread.start()
    time.sleep(WARM_UP_SECONDS)
    before = gateway.counts()
    time.sleep(seconds)
    after = gateway.counts()
    thread.join()
    if failures:
        raise failures[0]
    return before, after


def target_of(gateway: LoneGateway, model: str, side_px: int) -> Target:
    """A call of a gateway with a JPEG of `side_px` x `side_px`."""
    host, _, port = gateway.address.rpartition(":")
    body = vision_pb2.ClassifyRequest(model=model, image=picture(side_px)).SerializeToString()
    return Target("grpc", host, int(port), _METHOD, body)


def main() -> None:
    """Measure, write gateway_cpu.json and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours-from", type=Path, help="another checkout of this project, to compare with")
    parser.add_argument("--model", choices=list(CARDS), default="mobilevit", help="whose preprocessing [mobilevit]")
    parser.add_argument("--rounds", type=int, default=6, help="turns of each gateway [6]")
    parser.add_argument("--seconds", type=float, default=5.0, help="that are counted in each turn [5]")
    parser.add_argument("--clients", type=int, default=CLIENTS, help=f"connections with one call each [{CLIENTS}]")
    parser.add_argument("--side-px", type=int, default=SIDE_PX, help=f"side of the JPEG [{SIDE_PX}]")
    parser.add_argument(
        "--picture-ms", type=float, default=PICTURE_MILLISECONDS, help="that a worker takes for a picture [8]"
    )
    parser.add_argument("--show-log", action="store_true", help="show the logs of the gateways")
    parser.add_argument("--out", type=Path, default=CACHE / "results", help="folder for the result")
    options = parse(parser)
    console = make_console()
    head = head_of("gateway_cpu", options)
    checkouts = {OURS: ROOT} | ({BEFORE: options.ours_from.resolve()} if options.ours_from else {})
    turns: list[CpuTurn] = []
    with contextlib.ExitStack() as stack:
        gateways = {
            name: stack.enter_context(lone_gateway(checkout, picture_ms=options.picture_ms, show_log=options.show_log))
            for name, checkout in checkouts.items()
        }
        targets = {name: target_of(gateway, options.model, options.side_px) for name, gateway in gateways.items()}
        for target in targets.values():
            target.call()
        for number in range(options.rounds):
            for name in order(list(gateways), number):
                before, after = counts_under_load(
                    gateways[name], targets[name], clients=options.clients, seconds=options.seconds
                )
                turn = turn_between(number, name, before, after)
                turns.append(turn)
                console.print(
                    f"  round {number} {name}: {turn.answered} calls, {turn.pictures_per_batch:.1f} per batch, "
                    f"{turn.cpu_ms_per_picture:.3f} ms of CPU each"
                )
    spreads, compared = summary(turns)
    result = GatewayCpuResult(dataclasses.replace(head, complete=True), load.generator(), turns, spreads, compared)
    results.write(options.out / "gateway_cpu.json", result)
    title = f"{options.model}, {options.side_px} px, {options.clients} clients"
    table = Table("gateway", "ms of CPU per picture", "lowest", "highest", title=title)
    for name, values in spreads.items():
        table.add_row(name, f"{values.median:.3f}", f"{values.low:.3f}", f"{values.high:.3f}")
    console.print(table)
    if compared is not None:
        console.print(f"this tree / the other: {compared.median:.3f} ({compared.low:.3f} to {compared.high:.3f})")


if __name__ == "__main__":
    main()
