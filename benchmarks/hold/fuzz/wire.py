"""Hostile bytes over live sockets to a whole gateway in a process of its own, and what the gateway does with them.

In rounds: some hundred inputs, then an honest call and the probes, which must be answered. The inputs are drawn with a
seed. Every log line must be one JSON object without a traceback, and the memory must stay within a budget.
"""

import contextlib
import json
import random
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from benchmarks.hold.fuzz import wire_inputs
from benchmarks.hold.fuzz.hostile_pictures import saved, small
from benchmarks.hold.fuzz.target import MIB
from service.pb.mobilevision.v1 import vision_pb2, vision_pb2_grpc

KINDS = ("message", "http2", "http1")
MEMORY_BYTES = 256 * MIB  # how much the gateway may grow
HONEST_SECONDS = 30.0  # the deadline of an honest call after a round
_IN_A_ROUND = 60  # inputs of each kind
_CALL_SECONDS = 60.0
_READ_SECONDS = 0.02  # how long an answer is waited for, then the client hangs up
_PICTURE = saved(small(), "PNG")
_CODES = {  # what a caller may see, as the proto says
    grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.RESOURCE_EXHAUSTED,
}  # fmt: skip


@dataclass(slots=True)
class WireOutcome:
    """What came of it. `inputs` and `slowest_seconds` by kind. `faults` says what must not happen and did."""

    inputs: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    slowest_seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))
    rounds: int = 0
    slowest_honest_seconds: float = 0.0
    grown_bytes: int = 0
    log_lines: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def held(self) -> bool:
        """Whether there was no fault, and the memory stayed within the budget."""
        return self.rounds > 0 and not self.faults and self.grown_bytes <= MEMORY_BYTES


class Gateway:
    """A gateway in a process of its own. Use it in a `with` statement."""

    def __init__(self, log: Path) -> None:
        self._log = log

    def __enter__(self) -> "Gateway":
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.hold.fuzz.wire_server"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline().split()
        if len(line) != 2:
            raise RuntimeError(f"the gateway did not start; see {self._log}")
        self.grpc, self.http = line
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired, OSError):
            self.process.communicate(timeout=30)
        self.process.kill()
        self.process.wait()

    def memory_bytes(self, field_name: str) -> int:
        """Return VmRSS or VmHWM of the process. 0 once it has ended."""
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
                if line.startswith(field_name):
                    return int(line.split()[1]) * 1024
        return 0


def fuzz(seconds: float, seed: int = 0, folder: Path = Path("build/fuzz"), most_rounds: int = 2**31) -> WireOutcome:
    """Send hostile bytes for about `seconds`, at most `most_rounds` rounds. The gateway's log is in `folder`/wire."""
    place = folder / "wire"
    place.mkdir(parents=True, exist_ok=True)
    outcome = WireOutcome()
    draw = random.Random(seed)  # noqa: S311 - not a secret
    with Gateway(place / "log") as gateway, grpc.insecure_channel(gateway.grpc) as channel:
        senders: dict[str, Callable[[], str | None]] = {
            "message": lambda: _send_message(channel, draw),
            "http2": lambda: _send(gateway.grpc, wire_inputs.connection(draw)),
            "http1": lambda: _send(gateway.http, wire_inputs.http_request(draw)),
        }
        _check_honest(channel, gateway, outcome)
        before = gateway.memory_bytes("VmRSS")
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at and outcome.rounds < most_rounds and not outcome.faults:
            for kind, sender in senders.items():
                for _ in range(_IN_A_ROUND):
                    started = time.monotonic()
                    fault = sender()
                    outcome.inputs[kind] += 1
                    took = time.monotonic() - started
                    outcome.slowest_seconds[kind] = max(outcome.slowest_seconds[kind], took)
                    if fault:
                        outcome.faults.append(fault)
            _check_honest(channel, gateway, outcome)
            outcome.rounds += 1
        outcome.grown_bytes = max(gateway.memory_bytes("VmHWM") - before, 0)
        if gateway.process.poll() is not None:
            outcome.faults.append(f"the gateway ended with code {gateway.process.returncode}")
    _check_log(place / "log", outcome)
    return outcome


def _send_message(channel: grpc.Channel, draw: random.Random) -> str | None:
    method, content = wire_inputs.message(draw)
    call: Any = channel.unary_unary(f"/mobilevision.v1.VisionService/{method}")
    try:
        call(content, timeout=_CALL_SECONDS)
    except grpc.RpcError as error:
        code = error.code()
        if code not in _CODES:
            return f"{method} with {content[:100]!r} ({len(content)} bytes): {code} {error.details()!r}"
    return None


def _send(address: str, content: bytes) -> None:
    """Send bytes on a connection of its own, read what comes back, hang up. Refused connections are faults elsewhere."""
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError), socket.create_connection((host.strip("[]"), int(port)), 5) as connection:
        connection.sendall(content)
        while select.select([connection], [], [], _READ_SECONDS)[0] and connection.recv(2**16):
            pass


def _check_honest(channel: grpc.Channel, gateway: Gateway, outcome: WireOutcome) -> None:
    started = time.monotonic()
    try:
        stub = vision_pb2_grpc.VisionServiceStub(channel)
        reply = stub.Classify(vision_pb2.ClassifyRequest(image=_PICTURE), timeout=HONEST_SECONDS, wait_for_ready=True)
        if len(reply.labels) != 3:
            outcome.faults.append(f"an honest call was answered with {len(reply.labels)} labels")
    except grpc.RpcError as error:
        outcome.faults.append(f"an honest call failed: {error.code()}")
    outcome.slowest_honest_seconds = max(outcome.slowest_honest_seconds, time.monotonic() - started)
    for path in ("/livez", "/readyz", "/metrics"):
        answer = b""
        host, _, port = gateway.http.rpartition(":")
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), HONEST_SECONDS) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            answer = connection.recv(100)
        if b" 200 " not in answer[:20]:
            outcome.faults.append(f"{path} answered {answer[:40]!r}")


def _check_log(path: Path, outcome: WireOutcome) -> None:
    for line in path.read_bytes().splitlines():
        outcome.log_lines += 1
        try:
            entry = json.loads(line)
        except ValueError:
            outcome.faults.append(f"a log line is no JSON: {line[:200]!r}")
            continue
        if not isinstance(entry, dict) or "traceback" in entry or entry.get("message") == "forged":
            outcome.faults.append(f"a log line must not be: {line[:600]!r}")
