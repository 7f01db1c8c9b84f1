"""One honest caller beside one attacker at a time: how many of its calls are answered, and the gateway's memory.

In: a budget. Out: a section with a row per attacker. The gateway, the honest caller and the attacker are a process
each. The gateway is real, its engine is a fake one, and the kernel enforces the memory limit of its container.
"""

import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.hold import attacks
from benchmarks.hold.attacks import Addresses, Attack, Attacked
from benchmarks.hold.honest import CALLS_PER_SECOND, DEADLINE_SECONDS, Honest, honest_caller
from benchmarks.hold.memory_limit import memory_limit
from benchmarks.hold.pictures import png
from benchmarks.hold.section import Budget, Row, Section
from service.pb.mobilevision.v1 import vision_pb2

LIMIT_MEBIBYTES = 1024  # deploy/k8s/base/deployment.yaml: the gateway container
SHARED_MEBIBYTES = 256  # of these are shared memory, which the toy gateway does not use
LEAST_RATIO = 0.8
SHORT_SECONDS, FULL_SECONDS = 3.0, 20.0  # per attacker
END_SECONDS = 45.0  # for the attacker to end, with the calls that it has sent
_TEXT = """\
A gateway process with a fake engine, one honest caller with {rate} pictures a second on a connection of its own, and
one attacker at a time for {seconds:.0f} s; each is a process. An answer counts within {deadline:.0f} s. A row holds if
the gateway lives, {ratio:.0%} of the honest calls are answered, and no call of a burst ends without an answer or an
error with a reason. The gateway may have the memory of its container less shared memory, which is enforced
({enforced_by}). A burst of 10,000 calls is work for seconds. gRPC hands calls over in the order of arrival, so honest
calls wait for it, and their ratio does not count there. Floods of resets and of CONTINUATION frames are answered by
gRPC itself below this server. They need a proxy, and do not count."""


@dataclass(frozen=True, slots=True)
class _Attacker:
    """`required`: the gateway must hold alone, without a proxy before it. `shares`: honest calls must be answered."""

    name: str
    attack: Attack
    required: bool = True
    shares: bool = True


def _attackers() -> list[_Attacker]:
    name = vision_pb2.GetModelRequest(name="m" * 4 * 10**6).SerializeToString()
    sides = ((16_384, 2), (2, 16_384), (16_384, 1000), (1000, 16_384))
    encodings = (vision_pb2.MASK_ENCODING_PNG, vision_pb2.MASK_ENCODING_COCO_RLE)
    masks = [attacks.segment(png(*side), encoding) for side in sides for encoding in encodings]
    large_reply = attacks.segment(png(4000, 4000), vision_pb2.MASK_ENCODING_PNG)
    return [
        _Attacker(
            "decode bombs: PNG of 5000 x 5000", attacks.calls(attacks.CLASSIFY, attacks.classify(png(5000, 5000)))
        ),
        _Attacker("masks of 16384 x 2 to 1000 x 16384, PNG and RLE", attacks.calls(attacks.SEGMENT, *masks)),
        _Attacker("60 half-sent requests of 21 MiB", attacks.half_sent),
        _Attacker("small replies that nobody reads", attacks.calls(attacks.LIST_MODELS, b"", read=False)),
        _Attacker("masks of 16 megapixels that nobody reads", attacks.calls(attacks.SEGMENT, large_reply, read=False)),
        _Attacker("1000 idle connections", attacks.connections(1000)),
        _Attacker("connection storm", attacks.connections()),
        _Attacker("names of 4 MB", attacks.calls(attacks.GET_MODEL, name)),
        _Attacker("malformed protobuf", attacks.calls(attacks.CLASSIFY, b"\xff" * 100)),
        _Attacker("bursts of 1200 calls, one a second", attacks.burst(1200, every_seconds=1.0)),
        _Attacker("a burst of 10,000 calls", attacks.burst(10_000, every_seconds=60.0), shares=False),
        _Attacker("200 slow headers on the HTTP port", attacks.connections(200, http=True)),
        _Attacker(
            "reset storm (rapid reset); needs a proxy",
            attacks.calls(attacks.CLASSIFY, b"", reset=True),
            required=False,
        ),
    ]


@dataclass(frozen=True, slots=True)
class _Gateway:
    addresses: Addresses
    process: "subprocess.Popen[str]"


@contextlib.contextmanager
def _gateway(limit: str) -> Iterator[_Gateway]:
    command = [sys.executable, "-m", "benchmarks.hold.attacked_gateway", limit]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            grpc_address, http_address = (process.stdout.readline() if process.stdout else "").split()
            yield _Gateway(Addresses(grpc_address, http_address), process)
        finally:
            process.kill()


def _row(attacker: _Attacker, limit: str, seconds: float) -> Row:
    with _gateway(limit) as gateway, honest_caller(gateway.addresses.grpc, gateway.process.pid) as honest:
        return _measured(attacker, gateway, honest, seconds)


def _measured(attacker: _Attacker, gateway: _Gateway, honest: Honest, seconds: float) -> Row:
    alone = honest.call(seconds / 4)
    stop, done = threading.Event(), [Attacked(0)]

    def work() -> None:
        done[0] = attacker.attack(gateway.addresses, stop)

    attacking = threading.Thread(target=work, daemon=True)
    attacking.start()
    beside = honest.call(seconds)
    stop.set()
    attacking.join(END_SECONDS)
    alive = gateway.process.poll() is None
    ratio = beside.answered / beside.sent
    limit_mebibytes = LIMIT_MEBIBYTES - SHARED_MEBIBYTES
    cells = (
        attacker.name,
        f"{done[0].requests:,}",
        f"{done[0].untyped:,}",
        f"{alone.answered} of {alone.sent}",
        f"{beside.answered} of {beside.sent}{f' ({beside.why})' if beside.why else ''}",
        f"{ratio:.2f}",
        f"{beside.peak_bytes // 2**20} of {limit_mebibytes} MiB",
        "yes" if alive else "no",
    )
    held = alive and (ratio >= LEAST_RATIO or not attacker.shares) and not done[0].untyped and done[0].requests > 0
    return Row(cells, held=not attacker.required or held)


def run(budget: Budget) -> Section:
    """Run every attacker beside the honest caller."""
    attackers = _attackers()
    seconds = FULL_SECONDS if budget.full else min(SHORT_SECONDS, budget.seconds / len(attackers) / 2)
    rows = []
    with memory_limit((LIMIT_MEBIBYTES - SHARED_MEBIBYTES) * 2**20) as (enforced_by, limit):
        for attacker in attackers:
            budget.progress(f"attacker: {attacker.name}")
            rows.append(_row(attacker, limit, seconds))
            budget.progress(f"attacker: {' | '.join(rows[-1].cells)}")
    return Section(
        name="attackers",
        title="Attackers beside an honest caller",
        text=_TEXT.format(
            rate=CALLS_PER_SECOND,
            seconds=seconds,
            deadline=DEADLINE_SECONDS,
            ratio=LEAST_RATIO,
            enforced_by=enforced_by,
        ),
        columns=(
            "attacker",
            "its requests",
            "without a typed end",
            "answers without",
            "answers with",
            "ratio",
            "peak memory",
            "alive",
        ),
        rows=tuple(rows),
    )
