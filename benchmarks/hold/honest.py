"""An honest caller in a process of its own, so that an attacker takes no time of it but what it takes of the server.

`python -m benchmarks.hold.honest ADDRESS PID`. In: a number of seconds per line of standard input. Out: a line of JSON
for each, a `Counted`. It calls at an even rate, over one connection that it keeps.
"""

import contextlib
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import grpc
import psutil

from benchmarks.hold.calls import reason_of
from benchmarks.hold.pictures import png
from service.pb.mobilevision.v1 import vision_pb2, vision_pb2_grpc

CALLS_PER_SECOND = 20
DEADLINE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Counted:
    """Calls sent, calls answered in time, the most frequent cause of the others, and the server's peak memory."""

    sent: int
    answered: int
    why: str
    peak_bytes: int


class Honest:
    """The caller as its parent sees it."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def call(self, seconds: float) -> Counted:
        """Call for some seconds. Raises `ValueError` if the process has failed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()
        return Counted(**json.loads(self._process.stdout.readline()))


@contextlib.contextmanager
def honest_caller(address: str, pid: int) -> Iterator[Honest]:
    """Run the process within the context. `pid` is the server's, whose memory it reads."""
    command = [sys.executable, "-m", "benchmarks.hold.honest", address, str(pid)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Honest(process)
        finally:
            process.kill()


def _count(stub: vision_pb2_grpc.VisionServiceStub, server: psutil.Process, seconds: float) -> Counted:
    request = vision_pb2.ClassifyRequest(image=png(64, 48))
    sent = answered = peak_bytes = 0
    causes: Counter[str] = Counter()
    pending, began = [], time.monotonic()
    while (now := time.monotonic()) < began + seconds:
        pending.append(stub.Classify.future(request, timeout=DEADLINE_SECONDS))
        sent += 1
        with contextlib.suppress(psutil.Error):
            peak_bytes = max(peak_bytes, server.memory_info().rss)
        time.sleep(max(0.0, began + sent / CALLS_PER_SECOND - now))
    for call in pending:
        try:
            call.result()
            answered += 1
        except grpc.RpcError:
            causes[reason_of(call.trailing_metadata() or ()) or call.code().name] += 1
    why = ", ".join(f"{count} {cause}" for cause, count in causes.most_common(2))
    return Counted(sent, answered, why, peak_bytes)


def main() -> None:
    """Call as long as the parent asks for it."""
    address, pid = sys.argv[1], int(sys.argv[2])
    server = psutil.Process(pid)
    with grpc.insecure_channel(address) as channel:
        stub = vision_pb2_grpc.VisionServiceStub(channel)
        for line in sys.stdin:
            print(json.dumps(asdict(_count(stub, server, float(line)))), flush=True)


if __name__ == "__main__":
    main()
