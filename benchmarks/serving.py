"""Served throughput against the in-process limit and against other servers: `python -m benchmarks.serving [--help]`.

Closed loop. The limit, our server and every peer use the same archive, picture and cores, each with its best division
of the cores. The limit is the best of every network engine x dtype that a worker loads here, without dtypes that `auto`
refuses to the model. The servers run the pair that `--engine` and `--dtype` name; by default each worker chooses. What
really ran stands in the file, by system.
All servers stay alive and are paused (SIGSTOP) except during their turns. In each round, and for each number of
clients, every server has one turn, and the limit is measured before and after each turn. A server's result is its share
of the limit around its turn, because machines drift within minutes. TorchScript in float32, in plain processes too, is
measured beside the first and the last turn of the limit in each round; results are told relative to it as well. Ratios
of two servers are taken within a round; medians over the rounds are reported. With one client the limit is one plain
process with one picture at a time, and the latency that a server adds to it is reported too.

`--quick` takes about three minutes for one model with `--peers --clients 32 --rounds 2 --seconds 3`.
`--ours-from DIR` measures the server of another checkout of this project as well, under the name `before`.
Ctrl-C ends the benchmark; the results so far are kept. `python -m benchmarks.pages serving` publishes them.
"""

import argparse
import contextlib
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from benchmarks import limit_search, load, results
from benchmarks.limit import BATCHES, LimitFailed, Shape
from benchmarks.limit_search import Limits
from benchmarks.options import add_common, archive_of, check_checkout, head_of, make_console, parse
from benchmarks.pairs import AUTO, Pair, add_pair, asked_pair
from benchmarks.peers.environments import PeerUnavailable
from benchmarks.plot import plot_serving
from benchmarks.processes import DidNotStart
from benchmarks.report import accuracy
from benchmarks.serving_record import ServingRecord
from benchmarks.serving_report import show
from benchmarks.serving_results import Tried, Turn
from benchmarks.systems import BEFORE, OURS, Reply, Running, Setup, agree, answered_by, prepare, running
from benchmarks.target import picture
from handlers.hardware import usable_cores
from model_store.build.archive import read_card

TUNING_CLIENTS = 32
WAITS_MS = (1, 10)
WINDOW_BATCHES = 4
FIRST_ANSWERS = 2.0  # warm-up of a turn: this many times the time that the limit needs for one picture of each client


def measure(
    server: Running,
    *,
    model: str,
    number: int,
    clients: int,
    seconds: float,
    warm_up_seconds: float = load.WARM_UP_SECONDS,
) -> Turn:
    """Measure one turn of one server, which must not be paused."""
    failures_before = server.failures()
    cpu_before = server.group.cpu_seconds()
    closed = load.closed_loop(server.targets, clients=clients, seconds=seconds, warm_up_seconds=warm_up_seconds)
    cpu_seconds = server.group.cpu_seconds() - cpu_before
    memory = server.group.memory()
    failed_inside = round(server.failures() - failures_before)
    answered = max(closed.answered - failed_inside, 0)
    # The CPU time includes the warm-up, so it is divided by the pictures of the warm-up as well.
    with_warm_up = max(answered * (1 + warm_up_seconds / seconds), 1.0)
    return Turn(
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


def setting(text: str) -> str:
    """Check that the text is `NAME=VALUE` and return it. Raises `argparse.ArgumentTypeError`."""
    if not re.fullmatch(r"[A-Za-z_]+=.*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return text


def candidates(
    name: str,
    *,
    quick: bool,
    gpu: bool = False,
    pair: Pair = AUTO,
    settings: Sequence[str] = (),
    checkout: Path | None = None,
) -> tuple[Setup, ...]:
    """The set-ups of a system worth trying: the division of the cores, and for peers the longest wait for a batch.

    All run `pair`. `settings` are those of our server, each `NAME=VALUE`. `checkout` is where the system `BEFORE` comes
    from.
    """
    most = min(usable_cores(), 2) if gpu else usable_cores()  # two processes are enough to keep one GPU busy
    divided = (Shape(most, 1),) if quick or most == 1 else (Shape(most, 1), Shape(1, usable_cores()))
    waits = (WAITS_MS[0],) if quick or name in {OURS, BEFORE} else WAITS_MS
    chosen = tuple((name.upper(), value) for name, _, value in (one.partition("=") for one in settings))
    checkout = checkout if name == BEFORE else None
    return tuple(
        Setup(shape, max_wait_ms=wait, gpu=gpu, pair=pair, settings=chosen, checkout=checkout)
        for shape in divided
        for wait in waits
    )


class Session:
    """Measures all models and keeps the results so far in `measured`."""

    def __init__(self, options: argparse.Namespace, console: Console) -> None:
        self._options, self._console = options, console
        self.measured = ServingRecord(head_of("serving", options), load.generator())

    def run(self, archive: Path) -> None:
        """Run all rounds of one model. Raises `LimitFailed`."""
        options, image, model = self._options, picture(), archive.stem
        self._console.print(f"{model}: looking for the in-process limit")
        found = self._find_limit(archive, image)
        with contextlib.ExitStack() as stack:
            limits = stack.enter_context(Limits(archive, image, found, gpu=options.gpu))
            servers: list[Running] = []
            before = (BEFORE,) if options.ours_from else ()
            for name in (OURS, *before, *options.peers):
                server = self._start(name, archive, image, stack)
                if server is not None:
                    server.group.pause()
                    servers.append(server)
            servers = self._compare_answers(servers, archive)
            # Long enough for several of the largest batches in every process. A slow model might finish none otherwise.
            seconds = max(options.seconds, WINDOW_BATCHES * BATCHES[-1] * usable_cores() / found.limit.per_second)
            for number in range(1, options.rounds + 1):
                # The order changes, so that no server always follows the same other server.
                shift = (number - 1) % max(len(servers), 1)
                servers = [*servers[shift:], *servers[:shift]]
                for clients in options.clients:
                    servers = self._turns(servers, limits, number, clients, seconds)

    def _find_limit(self, archive: Path, image: bytes) -> limit_search.Found:
        options, model = self._options, archive.stem
        found = limit_search.search(
            archive,
            image,
            asked_pair(options),
            seconds=options.seconds / 2,
            quick=options.quick,
            gpu=options.gpu,
        )
        self.measured.limits += found.pairs
        self.measured.tried += [
            Tried("limit", model, str(one.shape), one.batch, 0, one.per_second, one.pair.engine, one.pair.dtype)
            for one in found.tried
        ]
        for one in found.pairs:
            self._console.print(
                f"  {one.engine} {one.dtype}: {one.per_second:.0f}/s at {one.shape}, batch {one.batch}; "
                f"{accuracy(one.difference, one.agreement)}{'' if one.admitted else '; not for a server'}"
            )
        return found

    def _start(self, name: str, archive: Path, image: bytes, stack: contextlib.ExitStack) -> Running | None:
        """Start a system with its best set-up and warm it up. None, with the error recorded, if that fails."""
        model = archive.stem
        self._console.print(f"{model}: setting up {name}")
        try:
            prepare(name)
            setup = self._tune(name, archive, image)
            server = stack.enter_context(running(name, [archive], setup, image))
            load.closed_loop(server.targets, clients=TUNING_CLIENTS, seconds=self._options.warm_up)
        except (PeerUnavailable, DidNotStart, load.LoadFailed, OSError) as error:
            self._console.print(f"[red]{name} is not measured:[/] {escape(str(error))}")
            self.measured.participants.append(results.Participant(name=name, model=model, error=str(error)))
            return None
        self.measured.participants.append(
            results.Participant(
                name=name,
                model=model,
                version=server.version,
                shape=str(setup.shape),
                max_batch=setup.max_batch,
                max_wait_ms=0 if name in {OURS, BEFORE} else setup.max_wait_ms,
                start_seconds=server.start_seconds,
            )
        )
        return server

    def _tune(self, name: str, archive: Path, image: bytes) -> Setup:
        """The fastest set-up of a system at many clients. A single candidate is not measured."""
        options = self._options
        choices = candidates(
            name,
            quick=options.quick,
            gpu=options.gpu,
            pair=asked_pair(options),
            settings=options.setting or (),
            checkout=options.ours_from,
        )
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
            wait_ms = 0 if name in {OURS, BEFORE} else setup.max_wait_ms
            self.measured.tried.append(
                Tried(name, archive.stem, str(setup.shape), setup.max_batch, wait_ms, turn.per_second)
            )
            self._console.print(f"  {name} {setup.shape}, wait {wait_ms} ms: {turn.per_second:.0f}/s")
        return max(found, key=lambda one: one[0])[1]

    def _turns(
        self, servers: Sequence[Running], limits: Limits, number: int, clients: int, seconds: float
    ) -> list[Running]:
        """Measure every server once, and the limit before and after each. Returns the servers that still run."""
        remaining = []
        self._reference_turn(limits, number, clients, seconds)
        before = self._limit_turn(limits, number, clients, seconds)
        for server in servers:
            turn = self._turn(server, limits.model, number, clients, seconds, before)
            after = self._limit_turn(limits, number, clients, seconds)
            if turn is not None:
                remaining.append(server)
                around = (before + after) / 2
                self.measured.turns.append(dataclasses.replace(turn, limit_per_second=around))
                self._console.print(
                    f"  round {number}, {clients} clients: {server.name} {turn.per_second:.0f}/s, limit {around:.0f}/s"
                )
            before = after
        self._reference_turn(limits, number, clients, seconds)
        return remaining

    def _limit_turn(self, limits: Limits, number: int, clients: int, seconds: float) -> float:
        """Measure and record the limit. Returns its pictures per second."""
        turn = limits.limit(number, clients, seconds)
        self.measured.limit_turns.append(turn)
        return turn.per_second

    def _reference_turn(self, limits: Limits, number: int, clients: int, seconds: float) -> None:
        """Measure and record TorchScript in float32, unless it is the limit."""
        turn = limits.reference(number, clients, seconds)
        if turn is not None:
            self.measured.limit_turns.append(turn)

    def _turn(
        self, server: Running, model: str, number: int, clients: int, seconds: float, limit_per_second: float
    ) -> Turn | None:
        """Measure one server. None, with the error recorded, if the server failed."""
        warm_up_seconds = max(load.WARM_UP_SECONDS, FIRST_ANSWERS * clients / limit_per_second)
        try:
            with server.resumed():
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
        """Send the same picture to every server, record what answered, and compare with our answer.

        Returns the servers that answer.
        """
        card, model = read_card(archive), archive.stem
        replies: dict[str, Reply] = {}
        for server in servers:
            try:
                with server.resumed():
                    replies[server.name] = server.ask(card)
            except (DidNotStart, OSError) as error:
                self._drop(server.name, model, error)
        for name, reply in replies.items():
            pair = answered_by(reply)
            self._note(name, model, engine=pair.engine, dtype=pair.dtype)
            self._console.print(f"  {name} runs {pair.engine} {pair.dtype}")
            if OURS not in replies:
                continue
            same = agree(replies[OURS], reply)
            self._note(name, model, agrees_with_ours=same)
            if same:
                continue
            if pair == answered_by(replies[OURS]):
                self._console.print(
                    f"[red]{name} answers differently from our server[/]: its figures cannot be compared"
                )
            else:
                self._console.print(f"{name} answers differently from our server, in another engine or dtype")
        return [server for server in servers if server.name in replies]

    def _drop(self, name: str, model: str, error: Exception) -> None:
        self._console.print(f"[red]{name} failed and is not measured any more:[/] {escape(str(error))}")
        self._note(name, model, error=f"failed during the benchmark: {error}")

    def _note(self, name: str, model: str, **changes: Any) -> None:
        self.measured.participants = [
            dataclasses.replace(one, **changes) if (one.name, one.model) == (name, model) else one
            for one in self.measured.participants
        ]


def main() -> None:
    """Measure, write serving.json and serving.png, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common(parser)
    add_pair(parser)
    parser.add_argument(
        "--clients", type=int, nargs="+", help="numbers of connections, each with one request at a time [1 8 32 128]"
    )
    parser.add_argument("--seconds", type=float, help="shortest length of each measurement [4; quick: 2]")
    parser.add_argument("--rounds", type=int, help="repeats of all measurements [3; quick: 1]")
    parser.add_argument("--warm-up", type=float, help="seconds of warm-up load on each server [8; quick: 2]")
    parser.add_argument(
        "--gpu", action="store_true", help="the limit and the peers use the first GPU, as our server does"
    )
    parser.add_argument(
        "--setting",
        type=setting,
        nargs="+",
        metavar="NAME=VALUE",
        help="settings of our server, as in docs/settings.md",
    )
    parser.add_argument(
        "--ours-from", type=Path, metavar="DIR", help="another checkout, whose server is measured as `before`"
    )
    options = parse(parser)
    options.clients = options.clients or ([1, 32] if options.quick else [1, 8, 32, 128])
    options.seconds = options.seconds or (2.0 if options.quick else 4.0)
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.warm_up = options.warm_up or (2.0 if options.quick else 8.0)
    if options.ours_from:
        check_checkout(options.ours_from, options.models)
    console = make_console()
    session = Session(options, console)
    complete = False
    try:
        for model in options.models:
            session.run(archive_of(options.archives, model))
        complete = True
    except (KeyboardInterrupt, LimitFailed) as stopped:
        console.print(f"[yellow]stopped early:[/] {stopped or 'Ctrl-C'}; the results so far are kept")
    result = session.measured.result(complete=complete)
    results.write(options.out / "serving.json", result)
    plot_serving(result, options.out / "serving.png", console)
    show(result, console)
    if options.json:
        print((options.out / "serving.json").read_text(), end="")


if __name__ == "__main__":
    main()
