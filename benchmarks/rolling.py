"""A rolling update under load: two instances behind one DNS name are replaced one after another. No call may be lost.

The order is that of the Deployment in deploy/k8s (`maxSurge: 1`, `maxUnavailable: 0`). An instance of the other version
starts at an address of its own. When it is ready, its address is added to the DNS name. After `minReadySeconds` the
address of the oldest instance is removed. The oldest instance gets SIGTERM after a short delay (`preStop`) and drains
while the next one starts. Meanwhile a `VisionClient` with default settings calls the DNS name at a constant rate (open
loop: each call is sent at its planned time).

The service, its drain, DNS through gRPC's own resolver, and the client's balancing and health watch are real. There is
no network, no kube-proxy, no failing node and no DNS cache. Each instance has its own address in 127.0.0.0/8, which
Linux assigns to loopback.
"""

import argparse
import dataclasses
import itertools
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

from rich.console import Console

from benchmarks import results
from benchmarks.figures import percentile
from benchmarks.machine import ROOT
from benchmarks.name_server import NameServer
from benchmarks.options import add_common, archive_of, head_of, make_console, parse
from benchmarks.peers.config import free_ports
from benchmarks.processes import DidNotStart
from benchmarks.target import picture
from handlers.contract.archive_file import MODULE_ENTRY
from mobilevision.client import CallFailed, VisionClient
from model_store.build import archive
from service.core.settings import child_environment

NAME = "mobilevision-headless.mobilevision"  # DNS name of the Service in deploy/k8s
INSTANCES = 2
VERSIONS = ("1.0", "1.1")
CALLERS = 64
RETIRING = 8  # most instances that drain at the same time
START_SECONDS = 120.0
STOP_SECONDS = 60.0
OK = "OK"


@dataclass(frozen=True)
class Call:
    """One call.

    `due_seconds`: planned time from the start of the load. `lag_seconds`: how much later it was sent. `seconds`:
    latency from the planned time. `code`: status code and reason. `version`: the version that answered.
    """

    due_seconds: float
    lag_seconds: float
    seconds: float
    code: str
    version: str


class LocalServer:
    """One `mobilevision serve` with one version at one address; it stands for a pod."""

    def __init__(self, number: int, version: str, archives: Path, port: int, options: argparse.Namespace) -> None:
        self.version = version
        self.address = f"127.0.0.{10 + number % 200}"
        self.log = archives.parent / f"{number}.log"
        self._ready = archives.parent / f"{number}.json"
        settings = {
            "GRPC_HOST": self.address,
            "HTTP_HOST": self.address,
            "WORKERS_PER_MODEL": "1",
            "WORKER_THREADS": "1",
            "DRAIN_DELAY_SECONDS": str(options.drain_delay_seconds),
            "MAX_CONNECTION_AGE_SECONDS": str(options.connection_age_seconds),
        }
        command = [sys.executable, "-m", "service", "serve", options.models[0], "--archives", str(archives)]
        command += ["--grpc-port", str(port), "--http-port", str(port + 1), "--ready-file", str(self._ready)]
        environment = child_environment(**{f"MOBILEVISION_{key}": value for key, value in settings.items()})
        with self.log.open("wb") as stream:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=stream, stderr=stream, start_new_session=True
            )

    def wait_until_ready(self) -> None:
        """Wait until the server is ready. Raises `DidNotStart`."""
        deadline_at = time.monotonic() + START_SECONDS
        while not self._ready.exists():
            if self._process.poll() is not None or time.monotonic() > deadline_at:
                raise DidNotStart(f"{self.address} did not start\n{self.log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)

    def terminate(self) -> None:
        """Send SIGTERM, on which the server drains."""
        self._process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """Wait until the server has ended, and kill it after `STOP_SECONDS`. Returns its exit status."""
        try:
            return self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def refusals(self) -> Counter[str]:
        """Calls that the server refused, by reason, from its log. The client repeated them on another instance."""
        lines = (json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{"))
        return Counter(line["reason"] for line in lines if line.get("reason"))


class Load(threading.Thread):
    """Calls at a constant rate until `stop`, then waits for the last answers."""

    def __init__(self, client: VisionClient, *, model: str, image: bytes, per_second: float) -> None:
        super().__init__()
        self._client, self._model, self._image = client, model, image
        self._every_seconds = 1 / per_second
        self._end = threading.Event()
        self.sent = 0
        self.calls: list[Call] = []

    def run(self) -> None:
        """Send each call at its planned time."""
        began_at = time.monotonic()
        with ThreadPoolExecutor(CALLERS) as pool:
            for number in itertools.count():
                due_at = began_at + number * self._every_seconds
                if self._end.wait(max(0.0, due_at - time.monotonic())):
                    return
                self.sent += 1
                answer: Future[Call] = pool.submit(self._call, began_at, due_at)
                answer.add_done_callback(lambda done: self.calls.append(done.result()))

    def stop(self) -> None:
        """Stop sending and wait for the answers."""
        self._end.set()
        self.join()

    def _call(self, began_at: float, due_at: float) -> Call:
        lag_seconds = time.monotonic() - due_at
        version = ""
        try:
            version = self._client.classify(self._image, model=self._model).reply.model.version
            code = OK
        except CallFailed as failure:
            code = f"{failure.code.name} {failure.reason or failure.message}"
        return Call(due_at - began_at, lag_seconds, time.monotonic() - due_at, code, version)


def versions_of(path: Path, folder: Path) -> dict[str, Path]:
    """Write the archive as two versions of its model. Returns the folder of each version."""
    card = archive.read_card(path)
    with ZipFile(path) as packed:
        module = packed.read(MODULE_ENTRY)
    folders = {}
    for version in VERSIONS:
        folders[version] = folder / version
        folders[version].mkdir()
        archive.write(folders[version], card.model_copy(update={"version": version}), module)
    return folders


@dataclass(frozen=True)
class Ended:
    """An instance that was replaced: its exit status and the calls it refused, by reason."""

    status: int
    refused: Counter[str]


def retire(old: LocalServer, notice_seconds: float) -> Ended:
    """Wait for `notice_seconds`, send SIGTERM, and wait until the server has ended."""
    time.sleep(notice_seconds)
    old.terminate()
    return Ended(old.wait(), old.refusals())


def run_update(
    folder: Path, options: argparse.Namespace, head: results.Head, console: Console
) -> results.RollingResult:
    """Run the update under load. Raises `DidNotStart`."""
    folders = versions_of(archive_of(options.archives, options.models[0]), folder)
    (port,) = free_ports(1)
    numbers = itertools.count()
    serving: deque[LocalServer] = deque()
    with NameServer(NAME) as names, ThreadPoolExecutor(RETIRING) as pool:
        try:
            for _ in range(INSTANCES):
                serving.append(LocalServer(next(numbers), VERSIONS[0], folders[VERSIONS[0]], port, options))
            for one in serving:
                one.wait_until_ready()
            names.point([one.address for one in serving])
            with VisionClient(names.target(port)) as client:
                load = Load(client, model=options.models[0], image=picture(), per_second=options.rate)
                load.start()
                began_at = time.monotonic()
                retired: list[Future[Ended]] = []
                # All instances change to the second version, then back to the first, and so on. An instance drains
                # while the next one starts.
                for version in itertools.cycle((VERSIONS[1],) * INSTANCES + (VERSIONS[0],) * INSTANCES):
                    if time.monotonic() - began_at > options.minutes * 60:
                        break
                    serving.append(LocalServer(next(numbers), version, folders[version], port, options))
                    serving[-1].wait_until_ready()
                    names.point([one.address for one in serving])
                    time.sleep(options.min_ready_seconds)
                    old = serving.popleft()
                    names.point([one.address for one in serving])
                    retired.append(pool.submit(retire, old, options.notice_seconds))
                    failed = sum(call.code != OK for call in load.calls)
                    at_seconds = time.monotonic() - began_at
                    console.print(f"  {at_seconds:.0f} s: {len(retired)} replaced, {load.sent} sent, {failed} failed")
                ended = [one.result() for one in retired]
                seconds = time.monotonic() - began_at
                load.stop()
        finally:
            for one in serving:
                one.terminate()
            for one in serving:
                one.wait()
    return _result(load, head, options, seconds, ended, names.asked)


def _result(
    load: Load,
    head: results.Head,
    options: argparse.Namespace,
    seconds: float,
    ended: list[Ended],
    asked: int,
) -> results.RollingResult:
    answered = [call.seconds for call in load.calls if call.code == OK]
    codes = Counter(call.code for call in load.calls)
    return results.RollingResult(
        head=dataclasses.replace(head, complete=True),
        model=options.models[0],
        minutes=seconds / 60,
        per_second=options.rate,
        replacements=len(ended),
        exit_statuses=dict(Counter(str(one.status) for one in ended)),
        sent=load.sent,
        answered=len(answered),
        failed=load.sent - len(answered),
        codes=dict(codes),
        answered_by_version=dict(Counter(call.version for call in load.calls if call.code == OK)),
        refused_by_draining=dict(sum((one.refused for one in ended), Counter[str]())),
        name_lookups=asked,
        p50_ms=percentile(answered, 0.50) * 1e3,
        p99_ms=percentile(answered, 0.99) * 1e3,
        longest_ms=max(answered, default=0.0) * 1e3,
        generator_lag_p99_ms=percentile([call.lag_seconds for call in load.calls], 0.99) * 1e3,
    )


def passed(result: results.RollingResult) -> bool:
    """Whether no call was lost, both versions answered, and every instance ended with status 0."""
    return (
        result.head.complete
        and result.failed == 0
        and result.sent > 0
        and set(result.answered_by_version) == set(VERSIONS)
        and set(result.exit_statuses) == {"0"}
    )


def main() -> None:
    """Run the update, write rolling.json and print a summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common(parser, peers=False)
    parser.set_defaults(models=["demo_classify"])
    parser.add_argument("--minutes", type=float, help="of load [5; quick: 0.6]")
    parser.add_argument("--rate", type=float, default=20.0, help="calls per second [20]")
    parser.add_argument(
        "--min-ready-seconds", type=float, default=3.0, help="from ready to removing the oldest from DNS [3]"
    )
    parser.add_argument("--notice-seconds", type=float, default=0.5, help="from removal from DNS to SIGTERM [0.5]")
    parser.add_argument("--drain-delay-seconds", type=float, default=1.0, help="setting of the service [1]")
    parser.add_argument("--connection-age-seconds", type=float, default=60.0, help="setting of the service [60]")
    options = parse(parser)
    options.minutes = options.minutes or (0.6 if options.quick else 5.0)
    console = make_console()
    head = head_of("rolling", options)
    with tempfile.TemporaryDirectory(prefix="rolling-") as folder:
        result = run_update(Path(folder), options, head, console)
    results.write(options.out / "rolling.json", result)
    console.print(
        f"{result.replacements} replaced in {result.minutes:.1f} min, {result.sent} sent, {result.failed} failed "
        f"{result.codes}; p50 {result.p50_ms:.0f} ms, p99 {result.p99_ms:.0f} ms"
    )
    if options.json:
        print((options.out / "rolling.json").read_text(), end="")
    sys.exit(0 if passed(result) else 1)


if __name__ == "__main__":
    main()
