"""Faults that are put into a running server from outside: signals, full file systems, clients that misbehave.

Each function takes the server, injects its fault, and returns a function that takes away what does not go by itself.
"""

import asyncio
import contextlib
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import psutil

from benchmarks.hold import toy
from benchmarks.hold.calls import Call, Kind, ask, channel
from benchmarks.hold.certificates import Authority
from benchmarks.hold.server import HoldServer
from service.pb.mobilevision.v1 import vision_pb2, vision_pb2_grpc
from service.serving import rollout_spec
from service.serving.rollout_spec import Entry

Undo = Callable[[], object]
# The HTTP/2 preface, an empty SETTINGS frame, and the beginning of a HEADERS frame that never ends.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04" + bytes(5)
_OPEN_HEADERS = b"\x00\x40\x00\x01\x00\x00\x00\x00\x01"
SLOW_CLIENTS = 64
MOST_CONNECTIONS = 10_000
_SPARE_DESCRIPTORS = 1_000  # of this process, for everything else


def nothing() -> None:
    """No fault is left to be taken away."""


def kill(server: HoldServer, role: str) -> Undo:
    """Kill the oldest process of a role."""
    server.processes(role)[0].kill()
    return nothing


def hang(server: HoldServer, role: str) -> psutil.Process:
    """Stop the oldest process of a role (SIGSTOP), as if it hung. The server has to replace it."""
    process = server.processes(role)[0]
    process.suspend()
    return process


def send_bad(server: HoldServer, colour: tuple[int, int, int], count: int) -> list[Call]:
    """Send pictures on which the model misbehaves, four at once. Returns what became of them."""

    async def send() -> list[Call]:
        connection = channel(server.grpc)
        question = toy.Question(toy.bad_picture(colour), b"there is no right answer")
        sent: list[Call] = []

        async def one() -> None:
            for _ in range(count // 4 or 1):
                sent.append(call := Call(time.monotonic()))
                await ask(connection, question, 2.0, call)

        await asyncio.gather(*(one() for _ in range(min(4, count))))
        await connection.close()
        return sent

    return asyncio.run(send())


def fill(folder: Path) -> Undo:
    """Fill a small file system to the last byte. The undo removes the file."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file:
        for size in (2**16, 2**12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))
    return path.unlink


def slow_clients(server: HoldServer, count: int = SLOW_CLIENTS) -> Undo:
    """Clients that begin a request and never end it."""
    found = connect(server, count)
    for one in found:
        with contextlib.suppress(OSError):
            one.sendall(_PREFACE + _OPEN_HEADERS)
    return lambda: close(found)


def close(connections: Iterable[socket.socket]) -> None:
    """Close connections."""
    for one in connections:
        one.close()


def connect(server: HoldServer, count: int) -> list[socket.socket]:
    """Open connections that send the HTTP/2 preface and then nothing. Fewer where the server or the kernel refuses."""
    host, _, port = server.grpc.rpartition(":")
    found: list[socket.socket] = []
    for _ in range(count):
        try:
            one = socket.create_connection((host, int(port)), timeout=10)
            one.sendall(_PREFACE)
        except OSError:
            break
        found.append(one)
    return found


def connection_limit() -> int:
    """How many connections this process may open: 10,000, or fewer by its limit of descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return max(0, min(MOST_CONNECTIONS, hard - _SPARE_DESCRIPTORS))


_VANISHING = """
import asyncio, sys
from benchmarks.hold import calls, toy

async def run():
    connections = [calls.channel(sys.argv[1]) for _ in range(16)]
    question = toy.Question(sys.stdin.buffer.read(), b"")
    tasks = [asyncio.create_task(calls.ask(connections[n % 16], question, 10.0, calls.Call(0.0))) for n in range(64)]
    await asyncio.sleep(0.02)
    print("sent", flush=True)
    await asyncio.gather(*tasks)
    await asyncio.sleep(60)

asyncio.run(run())
"""


def vanishing_clients(server: HoldServer, body: bytes, count: int = 3) -> Undo:
    """Client processes that are killed while their calls are in work: their connections break under 64 calls each."""
    command = [sys.executable, "-c", _VANISHING, server.grpc]
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            for _ in range(count)
        ]
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(_vanish, clients, [body] * count))
    return nothing


def _vanish(client: "subprocess.Popen[bytes]", body: bytes) -> None:
    assert client.stdin is not None
    assert client.stdout is not None
    client.stdin.write(body)
    client.stdin.close()
    client.stdout.readline()
    client.send_signal(signal.SIGKILL)


def corrupt_archive(server: HoldServer) -> Undo:
    """Overwrite the middle of the served archive in place, then kill a worker, which has to load the model again."""
    path = server.archives / f"{toy.NAME}.mar"
    kept = path.with_suffix(".kept")
    shutil.copy(path, kept)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(os.urandom(256))
    kill(server, "worker")
    return lambda: kept.replace(path)


def want(server: HoldServer, entry: Entry) -> None:
    """Write what is wanted of the toy into the roll-out file."""
    rollout_spec.edit(server.archives / rollout_spec.FILE_NAME, lambda entries: entries.update({toy.NAME: entry}))


def roll_out(server: HoldServer, limit_seconds: float = 60.0) -> str:
    """Try version 1.1 beside 1.0, promote it, and go back to 1.0. Returns the step that did not happen, or nothing."""
    steps = (
        (Entry(stable="1.0", candidate="1.1", weight=0.5, shadow=0.5), "1.0 1.1"),
        (Entry(stable="1.1", previous="1.0"), "1.1"),
        (Entry(stable="1.0"), "1.0"),
    )
    for entry, versions in steps:
        want(server, entry)
        give_up_at = time.monotonic() + limit_seconds
        while (found := versions_answering(server)) != versions:
            if time.monotonic() > give_up_at:
                return f"{found} answers, not {versions}"
            time.sleep(0.2)
    return ""


def wrong(calls: Sequence[Call]) -> int:
    """How many calls with bad pictures got an answer or an untyped error, instead of a typed error."""
    return sum(one.kind is not Kind.TYPED for one in calls)


def versions_answering(server: HoldServer, count: int = 40) -> str:
    """The versions that answer now, by some calls: sorted, with a space between them."""
    request = vision_pb2.ClassifyRequest.FromString(toy.questions(1)[0].body)
    found = set()
    with grpc.insecure_channel(server.grpc) as connection:
        stub = vision_pb2_grpc.VisionServiceStub(connection)
        for _ in range(count):
            with contextlib.suppress(grpc.RpcError):
                found.add(stub.Classify(request, timeout=5).model.version)
    return " ".join(sorted(found))


def credentials_of(authority: Authority) -> grpc.ChannelCredentials:
    """Credentials of a client that trusts an authority."""
    return grpc.ssl_channel_credentials(authority.certificate.read_bytes())
