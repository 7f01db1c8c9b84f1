"""Served throughput against the in-process limit and against other servers: `python -m benchmarks.serving [--help]`.

Closed loop. The limit, our server and every peer run on the same archive, picture, cores and dtype; each at its best
division of the cores. All servers stay up, stopped (SIGSTOP) while it is not their turn; each round measures, at every
number of clients, the limit and the servers by turns. Ratios are taken within a round, each server as a share of the
limit just before and just after its turn, because machines drift within minutes; medians are reported. With one client
the limit is one plain process, a picture at a time; what a server adds to the time that takes is told as well.
Ctrl-C ends it with what was measured so far.
"""

import argparse
import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks import load, results
from benchmarks.figures import Spread, ratio, spread
from benchmarks.limit import BATCHES, InProcess, LimitFailed, Shape, Throughput, best, shapes
from benchmarks.options import add_common, archive_of, head_of, make_console, parse, participants_of
from benchmarks.peers.environments import PeerUnavailable
from benchmarks.plot import plot_serving
from benchmarks.processes import DidNotStart
from benchmarks.report import SYSTEMS
from benchmarks.systems import OURS, Running, Setup, agree, prepare, running
from benchmarks.target import picture
from handlers.hardware import usable_cores
from model_store.archive import read_card

TUNING_CLIENTS = 32
WAITS_MS = (1, 10)
WINDOW_BATCHES = 4
FIRST_ANSWERS = 2.0  # times what the limit would need for a picture of every client: the warm-up before a turn counts


@dataclass(frozen=True)
class _Limit:
    """The in-process limit of one model, ready to be measured again."""

    model: str
    processes: InProcess
    batch: int


@dataclass
class _Measured:
    """What has been measured so far; `result` makes the file's content of it at any time."""

    head: results.Head
    generator: str
    participants: list[results.Participant] = field(default_factory=list)
    tried: list[results.Tried] = field(default_factory=list)
    limit_turns: list[results.LimitTurn] = field(default_factory=list)
    turns: list[results.Turn] = field(default_factory=list)

    def result(self, *, complete: bool) -> results.ServingResult:
        cases = sorted({(turn.model, turn.clients) for turn in self.turns})
        peers = sorted({turn.system for turn in self.turns} - {OURS})
        to_limit: dict[str, Spread] = {}
        to_peer: dict[str, dict[str, Spread]] = {}
        peer_to_limit: dict[str, dict[str, Spread]] = {}
        for model, clients in cases:
            case = f"{model}/{clients}"
            ours = self._shares(OURS, model, clients)
            if ours:
                to_limit[case] = spread([*ours.values()])
            for peer in peers:
                theirs = self._shares(peer, model, clients)
                if theirs:
                    peer_to_limit.setdefault(case, {})[peer] = spread([*theirs.values()])
                if (found := _ratio(ours, theirs)) is not None:
                    to_peer.setdefault(case, {})[peer] = found
        return results.ServingResult(
            head=dataclasses.replace(self.head, complete=complete),
            generator=self.generator,
            participants=self.participants,
            tried=self.tried,
            limit_turns=self.limit_turns,
            turns=self.turns,
            ratio_to_limit=to_limit,
            ratio_to_peer=to_peer,
            peer_ratio_to_limit=peer_to_limit,
            added_ms=self._added_ms(),
        )

    def _added_ms(self) -> dict[str, dict[str, Spread]]:
        """What a server adds to a picture that comes alone."""
        added: dict[str, dict[str, list[float]]] = {}
        for turn in self.turns:
            if turn.clients == 1 and turn.limit_per_second and turn.per_second:
                by_system = added.setdefault(turn.model, {})
                by_system.setdefault(turn.system, []).append(1e3 / turn.per_second - 1e3 / turn.limit_per_second)
        return {model: {system: spread(ms) for system, ms in by_system.items()} for model, by_system in added.items()}

    def _shares(self, system: str, model: str, clients: int) -> dict[int, float]:
        """By round: throughput over the limit around it."""
        return {
            turn.round: turn.per_second / turn.limit_per_second
            for turn in self.turns
            if (turn.system, turn.model, turn.clients) == (system, model, clients) and turn.limit_per_second
        }


def _ratio(ours: dict[int, float], theirs: dict[int, float]) -> Spread | None:
    rounds = sorted(ours.keys() & theirs.keys())
    return ratio([ours[number] for number in rounds], [theirs[number] for number in rounds])


def measure(
    server: Running,
    *,
    model: str,
    number: int,
    clients: int,
    seconds: float,
    warm_up_seconds: float = load.WARM_UP_SECONDS,
) -> results.Turn:
    """One turn of one server, which must be running freely."""
    failures_before = server.failures()
    cpu_before = server.group.cpu_seconds()
    closed = load.closed_loop(server.targets, clients=clients, seconds=seconds, warm_up_seconds=warm_up_seconds)
    cpu_seconds = server.group.cpu_seconds() - cpu_before
    memory = server.group.memory()
    failed_inside = round(server.failures() - failures_before)
    answered = max(closed.answered - failed_inside, 0)
    # CPU time includes the generator's warm-up, so it is shared among the pictures of that as well.
    with_warm_up = max(answered * (1 + warm_up_seconds / seconds), 1.0)
    return results.Turn(
        round=number,
        system=server.name,
        model=model,
        clients=clients,
        answered=answered,
        failed=closed.failed + failed_inside,
        per_second=answered / seconds,
        p50_ms=closed.p50_ms,
        p99_ms=closed.p99_ms,
        server_cpu_ms_per_picture=cpu_seconds / with_warm_up * 1e3,
        client_cpu_ms_per_picture=closed.client_cpu_seconds / with_warm_up * 1e3,
        pss_mib=sum(process.pss_mib for process in memory),
        rss_mib=sum(process.rss_mib for process in memory),
    )


def candidates(name: str, *, quick: bool, gpu: bool = False) -> tuple[Setup, ...]:
    """The set-ups of a system worth trying: the division of the cores, and for peers how long to wait for company."""
    most = min(usable_cores(), 2) if gpu else usable_cores()  # two processes keep one GPU busy
    divided = (Shape(most, 1),) if quick or most == 1 else (Shape(most, 1), Shape(1, usable_cores()))
    waits = (WAITS_MS[0],) if quick or name == OURS else WAITS_MS
    return tuple(Setup(shape=shape, max_wait_ms=wait, gpu=gpu) for shape in divided for wait in waits)


class Session:
    """All turns of all models, and what came of them so far."""

    def __init__(self, options: argparse.Namespace, console: Console) -> None:
        self._options, self._console = options, console
        self.measured = _Measured(head_of("serving", options), load.generator())

    def run(self, archive: Path) -> None:
        """All rounds of one model. Raises `LimitFailed`."""
        options, image, model = self._options, picture(), archive.stem
        self._console.print(f"{model}: looking for the in-process limit")
        limit = self._find_limit(archive, image)
        self._console.print(f"  {limit.per_second:.0f}/s at {limit.shape}, batch {limit.batch}")
        with contextlib.ExitStack() as stack:
            processes = stack.enter_context(InProcess(archive, limit.shape, image, gpu=options.gpu))
            again = _Limit(model, processes, limit.batch)
            servers: list[Running] = []
            for name in participants_of(options.peers):
                server = self._start(name, archive, image, stack)
                if server is not None:
                    server.group.pause()
                    servers.append(server)
            servers = self._compare_answers(servers, archive)
            # Long enough for several of the largest batches in every process, or nothing might end within it.
            seconds = max(options.seconds, WINDOW_BATCHES * BATCHES[-1] * usable_cores() / limit.per_second)
            for number in range(1, options.rounds + 1):
                # Who goes first changes, so that nobody always finds the machine as the same other one left it.
                shift = (number - 1) % max(len(servers), 1)
                servers = [*servers[shift:], *servers[:shift]]
                for clients in options.clients:
                    servers = self._turns(servers, again, number, clients, seconds)

    def _find_limit(self, archive: Path, image: bytes) -> Throughput:
        """The best of the in-process limit over processes x threads x batch."""
        quick, gpu = self._options.quick, self._options.gpu
        tried: list[Throughput] = []
        for shape in shapes(usable_cores(), gpu=gpu)[: 1 if quick else None]:
            with InProcess(archive, shape, image, gpu=gpu) as processes:
                for batch in BATCHES[-2:] if quick else BATCHES:
                    tried.append(processes.measure(batch, self._options.seconds / 2))
        self.measured.tried += [
            results.Tried("limit", archive.stem, str(one.shape), one.batch, 0, one.per_second) for one in tried
        ]
        return best(tried)

    def _start(self, name: str, archive: Path, image: bytes, stack: contextlib.ExitStack) -> Running | None:
        """A system at its best set-up, warm; None, with the reason written down, where it cannot take part."""
        model = archive.stem
        self._console.print(f"{model}: setting up {name}")
        try:
            prepare(name)
            setup = self._tune(name, archive, image)
            server = stack.enter_context(running(name, [archive], setup, image))
            load.closed_loop(server.targets, clients=TUNING_CLIENTS, seconds=self._options.warm_up)
        except (PeerUnavailable, DidNotStart, load.LoadFailed, OSError) as error:
            self._console.print(f"[red]{name} takes no part:[/] {escape(str(error))}")
            self.measured.participants.append(results.Participant(name=name, model=model, error=str(error)))
            return None
        self.measured.participants.append(
            results.Participant(
                name=name,
                model=model,
                version=server.version,
                shape=str(setup.shape),
                max_batch=setup.max_batch,
                max_wait_ms=0 if name == OURS else setup.max_wait_ms,
                start_seconds=server.start_seconds,
            )
        )
        return server

    def _tune(self, name: str, archive: Path, image: bytes) -> Setup:
        """The fastest set-up of a system at many clients. With one candidate nothing is measured."""
        choices = candidates(name, quick=self._options.quick, gpu=self._options.gpu)
        if len(choices) == 1:
            return choices[0]
        found: list[tuple[float, Setup]] = []
        for setup in choices:
            with running(name, [archive], setup, image) as server:
                load.closed_loop(server.targets, clients=TUNING_CLIENTS, seconds=self._options.seconds / 2)
                turn = measure(
                    server, model=archive.stem, number=0, clients=TUNING_CLIENTS, seconds=self._options.seconds
                )
            found.append((turn.per_second, setup))
            wait_ms = 0 if name == OURS else setup.max_wait_ms
            self.measured.tried.append(
                results.Tried(name, archive.stem, str(setup.shape), setup.max_batch, wait_ms, turn.per_second)
            )
            self._console.print(f"  {name} {setup.shape}, wait {wait_ms} ms: {turn.per_second:.0f}/s")
        return max(found, key=lambda one: one[0])[1]

    def _turns(
        self, servers: Sequence[Running], limit: _Limit, number: int, clients: int, seconds: float
    ) -> list[Running]:
        """Every server once, the limit before and after each; those that did not fall over."""
        upright = []
        before = self._limit_turn(limit, number, clients, seconds)
        for server in servers:
            turn = self._turn(server, limit.model, number, clients, seconds, before)
            after = self._limit_turn(limit, number, clients, seconds)
            if turn is not None:
                upright.append(server)
                around = (before + after) / 2
                self.measured.turns.append(dataclasses.replace(turn, limit_per_second=around))
                self._console.print(
                    f"  round {number}, {clients} clients: {server.name} {turn.per_second:.0f}/s, limit {around:.0f}/s"
                )
            before = after
        return upright

    def _limit_turn(self, limit: _Limit, number: int, clients: int, seconds: float) -> float:
        """Pictures per second of the limit."""
        alone = clients == 1
        most = limit.processes.measure(1 if alone else limit.batch, seconds, alone=alone)
        self.measured.limit_turns.append(
            results.LimitTurn(
                number, clients, limit.model, str(most.shape), most.batch, most.per_second, most.cpu_ms_per_picture
            )
        )
        return most.per_second

    def _turn(
        self, server: Running, model: str, number: int, clients: int, seconds: float, limit_per_second: float
    ) -> results.Turn | None:
        """One server's turn; None, with the reason kept, where it fell over."""
        warm_up_seconds = max(load.WARM_UP_SECONDS, FIRST_ANSWERS * clients / limit_per_second)
        try:
            with server.awake():
                turn = measure(
                    server,
                    model=model,
                    number=number,
                    clients=clients,
                    seconds=seconds,
                    warm_up_seconds=warm_up_seconds,
                )
            server.group.check_alive()
        except (DidNotStart, load.LoadFailed, OSError) as error:
            self._drop(server.name, model, error)
            return None
        return turn

    def _compare_answers(self, servers: Sequence[Running], archive: Path) -> list[Running]:
        """Ask every server the same picture, ours being the reference; the servers that answer."""
        card, model = read_card(archive), archive.stem
        replies = {}
        for server in servers:
            try:
                with server.awake():
                    replies[server.name] = server.ask(card)
            except (DidNotStart, OSError) as error:
                self._drop(server.name, model, error)
        for name, reply in replies.items() if OURS in replies else ():
            same = agree(replies[OURS], reply)
            self._note(name, model, agrees_with_ours=same)
            if not same:
                self._console.print(f"[red]{name} answers differently from ours[/]: its figures prove nothing")
        return [server for server in servers if server.name in replies]

    def _drop(self, name: str, model: str, error: Exception) -> None:
        self._console.print(f"[red]{name} drops out:[/] {escape(str(error))}")
        self._note(name, model, error=f"dropped out: {error}")

    def _note(self, name: str, model: str, **changes: Any) -> None:
        self.measured.participants = [
            dataclasses.replace(one, **changes) if (one.name, one.model) == (name, model) else one
            for one in self.measured.participants
        ]


def show(result: results.ServingResult, console: Console) -> None:
    """A table of the medians."""
    table = Table(title="ours, by case: medians of ratios within each round")
    peers = sorted({peer for by_peer in result.ratio_to_peer.values() for peer in by_peer})
    table.add_column("case", no_wrap=True)
    for column in ("of limit", *(f"by {SYSTEMS[peer]}" for peer in peers)):
        table.add_column(column, justify="right")
    for case, of_limit in result.ratio_to_limit.items():
        to_peer = result.ratio_to_peer.get(case, {})
        cells = [f"{to_peer[peer].median:.2f}" if peer in to_peer else "-" for peer in peers]
        table.add_row(case, f"{of_limit.median:.2f}", *cells)
    console.print(table)
    for model, by_system in result.added_ms.items():
        added = ", ".join(f"{SYSTEMS[system]} {ms.median:.1f}" for system, ms in by_system.items())
        console.print(f"{model}, added to a picture that comes alone, ms: {added}")
    for one in result.participants:
        if one.error:
            console.print(f"[red]{one.name} ({one.model}) took no part:[/] {one.error.splitlines()[0]}")


def main() -> None:
    """Measure, write serving.json and serving.png, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common(parser)
    parser.add_argument("--clients", type=int, nargs="+", help="connections, one request at a time each [1 8 32 128]")
    parser.add_argument("--seconds", type=float, help="of each measurement, at least [4; quick: 2]")
    parser.add_argument("--rounds", type=int, help="turns of everything [3; quick: 1]")
    parser.add_argument("--warm-up", type=float, help="seconds of load on each server before it counts [8; quick: 2]")
    parser.add_argument("--gpu", action="store_true", help="the limit and the peers use the first GPU, as ours does")
    options = parse(parser)
    options.clients = options.clients or ([1, 32] if options.quick else [1, 8, 32, 128])
    options.seconds = options.seconds or (2.0 if options.quick else 4.0)
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.warm_up = options.warm_up or (2.0 if options.quick else 8.0)
    console = make_console()
    session = Session(options, console)
    complete = False
    try:
        for model in options.models:
            session.run(archive_of(options.archives, model))
        complete = True
    except (KeyboardInterrupt, LimitFailed) as stopped:
        console.print(f"[yellow]stopped early:[/] {stopped or 'Ctrl-C'}; what was measured so far is kept")
    result = session.measured.result(complete=complete)
    results.write(options.out / "serving.json", result)
    plot_serving(result, options.out / "serving.png", console)
    show(result, console)
    if options.json:
        print((options.out / "serving.json").read_text(), end="")


if __name__ == "__main__":
    main()
