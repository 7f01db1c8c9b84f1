"""The faults of the table: how each is put into a server under load, and how fast callers must be served again."""

import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.hold import injections, toy
from benchmarks.hold.calls import Call, Load
from benchmarks.hold.certificates import Authority
from benchmarks.hold.injections import Undo, nothing
from benchmarks.hold.server import HoldServer

BOUND_SECONDS = 10.0
HUNG_JVM_SECONDS = 45.0  # TorchServe is replaced when it has not answered for 30 s; see below
LASTS_SECONDS = 3.0  # how long a fault stays that does not go by itself
BURST_CALLERS = 48  # more than two batches for each worker, so that shared memory has to grow
BURST_SECONDS = 3.0
BAD_PICTURES = 20


@dataclass(frozen=True)
class Injected:
    """A fault that is in place.

    `undo` takes it away. `replaces`: a hung process, which the server has to end. `calls` were sent by the fault.
    `problem` is what went wrong beside the calls. `note` is added to the name of the row.
    """

    undo: Undo = nothing
    replaces: psutil.Process | None = None
    calls: Sequence[Call] = ()
    problem: str = ""
    note: str = ""


@dataclass(frozen=True)
class Fault:
    """A fault.

    `lasts_seconds`: it is taken away after this time, and recovery counts from there. 0: the server has to get over it
    alone, and recovery counts from the fault. `bound_seconds`: until then it must have recovered. From the first call
    that was not right to the last one it may take `BOUND_SECONDS`, whatever the fault. `cuts`: the process at the other
    end of the connection dies, so calls in work on its connections end with the connection.
    """

    name: str
    inject: Callable[[HoldServer], Injected]
    lasts_seconds: float = 0.0
    bound_seconds: float = BOUND_SECONDS
    cuts: bool = False


def _kill(role: str) -> Callable[[HoldServer], Injected]:
    return lambda server: Injected(injections.kill(server, role))


def _hang(role: str) -> Callable[[HoldServer], Injected]:
    return lambda server: Injected(replaces=injections.hang(server, role))


def _bad(colour: tuple[int, int, int], count: int = BAD_PICTURES) -> Callable[[HoldServer], Injected]:
    def inject(server: HoldServer) -> Injected:
        calls = injections.send_bad(server, colour, count)
        wrong = injections.wrong(calls)
        return Injected(calls=calls, problem=f"{wrong} without a typed error" if wrong else "")

    return inject


def _full(folder: Callable[[HoldServer], Path]) -> Callable[[HoldServer], Injected]:
    def inject(server: HoldServer) -> Injected:
        undo = injections.fill(folder(server))
        with Load(server.grpc, toy.questions(64, seed=2), per_second=0, callers=BURST_CALLERS) as burst:
            time.sleep(BURST_SECONDS)
        return Injected(undo, calls=burst.calls)

    return inject


def _many_connections(server: HoldServer) -> Injected:
    wanted = injections.connection_limit()
    opened = injections.connect(server, wanted)
    note = f": {len(opened):,} opened" + ("" if wanted == injections.MOST_CONNECTIONS else f" of {wanted:,}")
    return Injected(lambda: injections.close(opened), note=note)


def _vanishing(server: HoldServer) -> Injected:
    return Injected(injections.vanishing_clients(server, toy.questions(1)[0].body))


def _corrupt_archive(server: HoldServer) -> Injected:
    return Injected(injections.corrupt_archive(server))


def _roll_out(server: HoldServer) -> Injected:
    return Injected(problem=injections.roll_out(server))


def renew_certificate(authority: Authority, certificate: Path, key: Path) -> Fault:
    """Replace the certificate of a server. The fault fails unless new connections see the new one."""

    def inject(server: HoldServer) -> Injected:
        host, _, port = server.grpc.rpartition(":")
        before = ssl.get_server_certificate((host, int(port)))
        new_certificate, new_key = authority.sign(2)
        for path, content in ((key, new_key), (certificate, new_certificate)):
            beside = path.with_suffix(".new")
            beside.write_bytes(content)
            beside.replace(path)
        seen = ssl.get_server_certificate((host, int(port)))
        with Load(
            server.grpc,
            toy.questions(8),
            per_second=20,
            credentials=injections.credentials_of(authority),
        ) as fresh:
            time.sleep(1.0)
        return Injected(calls=fresh.calls, problem="the old certificate is still in use" if seen == before else "")

    return Fault("certificate renewed", inject)


def of_one_gateway(*, small_file_systems: bool) -> tuple[Fault, ...]:
    """The faults that a server with one gateway process and two workers meets."""
    full = (
        Fault("shared memory full", _full(lambda server: server.shm), LASTS_SECONDS),
        Fault("disk full (run directory)", _full(lambda server: server.run), LASTS_SECONDS),
    )
    return (
        Fault("worker killed", _kill("worker")),
        Fault("worker hung (SIGSTOP)", _hang("worker")),
        Fault("model raises", _bad(toy.RAISES)),
        Fault("model answers garbage (a wrong shape)", _bad(toy.WRONG_SHAPE)),
        Fault("model answers late (two pictures of about 15 s)", _bad(toy.LATE, 2)),
        Fault("model raises a CUDA error", _bad(toy.CUDA_ERROR)),
        Fault("JVM killed", _kill("jvm")),
        # The workers answer while the JVM hangs. Callers notice when it is ended, and its workers with it.
        Fault("JVM hung (SIGSTOP)", _hang("jvm"), bound_seconds=HUNG_JVM_SECONDS),
        *(full if small_file_systems else ()),
        Fault(
            f"{injections.SLOW_CLIENTS} slow clients (requests that never end)",
            lambda server: Injected(injections.slow_clients(server)),
            LASTS_SECONDS,
        ),
        Fault("3 clients vanish with 64 calls in work each", _vanishing),
        Fault("connections that do nothing", _many_connections, LASTS_SECONDS),
        Fault("archive corrupted, then a worker killed", _corrupt_archive),
        Fault("version rolled out, promoted, taken back", _roll_out),
    )


def of_two_gateways() -> tuple[Fault, ...]:
    """The faults that a server with two gateway processes and one worker meets."""
    return (
        Fault("one of two gateway processes killed", _kill("replica"), cuts=True),
        Fault("one of two gateway processes hung (SIGSTOP)", _hang("replica"), cuts=True),
        Fault("the only worker killed", _kill("worker")),
        Fault("the only worker hung (SIGSTOP)", _hang("worker")),
    )
