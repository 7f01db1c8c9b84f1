"""Does a rolling update lose a call? Two instances behind one DNS name, replaced one after another under load.

As the Deployment in deploy/k8s does it (`maxSurge: 1`, `maxUnavailable: 0`): an instance of the other version starts at
an address of its own; when it is ready the name stands for it too, and after `minReadySeconds` no longer for the
oldest, which is told to stop after a short notice (`preStop`) and drains while the next one starts. Meanwhile
`VisionClient`, with nothing but its defaults and the name, calls at a constant rate, open loop: each call is due at its
time whatever became of those before.

Real here: the whole service, its drain, DNS asked by gRPC's own resolver, the client's balancing and its watch on
health. Not here: a network, kube-proxy, nodes that die, caches of DNS on the way. Instances are told apart by addresses
in 127.0.0.0/8, which Linux has without asking.
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
from benchmarks.names import NameServer
from benchmarks.options import add_common, archive_of, head_of, make_console, parse
from benchmarks.peers.config import free_ports
from benchmarks.processes import DidNotStart
from benchmarks.target import picture
from model_store import archive
from service.client import CallFailed, VisionClient
from service.settings import child_environment

NAME = "mobilevision-headless.mobilevision"  # of the Service in deploy/k8s
INSTANCES = 2
VERSIONS = ("1.0", "1.1")
CALLERS = 64
RETIRING = 8  # instances that drain at the same time
START_SECONDS = 120.0
STOP_SECONDS = 60.0
OK = "OK"


@dataclass(frozen=True)
class Call:
    """One call: seconds from when it was due to its end, its code and reason, the version that answered."""

    due_seconds: float
    lag_seconds: float
    seconds: float
    code: str
    version: str


class Instance:
    """A `mobilevision serve` of one version at one address, as a pod."""

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
        """Raises `DidNotStart`."""
        deadline = time.monotonic() + START_SECONDS
        while not self._ready.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise DidNotStart(f"{self.address} did not start\n{self.log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)

    def terminate(self) -> None:
        """SIGTERM: it drains."""
        self._process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """Its exit status, once it has drained. One that does not end is killed."""
        try:
            return self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def refusals(self) -> Counter[str]:
        """Calls it did not answer, by reason, from its log: what clients were spared by asking another."""
        lines = (json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{"))
        return Counter(line["reason"] for line in lines if line.get("reason"))


class Load(threading.Thread):
    """Calls at a constant rate until told to end; then waits for the last answers."""

    def __init__(self, client: VisionClient, *, model: str, image: bytes, per_second: float) -> None:
        super().__init__()
        self._client, self._model, self._image = client, model, image
        self._every_seconds = 1 / per_second
        self._end = threading.Event()
        self.sent = 0
        self.calls: list[Call] = []

    def run(self) -> None:
        """Send each call when it is due."""
        began = time.monotonic()
        with ThreadPoolExecutor(CALLERS) as pool:
            for number in itertools.count():
                due = began + number * self._every_seconds
                if self._end.wait(max(0.0, due - time.monotonic())):
                    return
                self.sent += 1
                answer: Future[Call] = pool.submit(self._call, began, due)
                answer.add_done_callback(lambda done: self.calls.append(done.result()))

    def stop(self) -> None:
        """Send no more, and wait for those sent."""
        self._end.set()
        self.join()

    def _call(self, began: float, due: float) -> Call:
        lag_seconds = time.monotonic() - due
        version = ""
        try:
            version = self._client.classify(self._image, model=self._model).reply.model.version
            code = OK
        except CallFailed as failure:
            code = f"{failure.code.name} {failure.reason or failure.message}"
        return Call(due - began, lag_seconds, time.monotonic() - due, code, version)


def versions_of(path: Path, folder: Path) -> dict[str, Path]:
    """The archive twice, as two versions of its model, each in a folder of its own."""
    card = archive.read_card(path)
    with ZipFile(path) as packed:
        module = packed.read(archive.MODULE_FILE)
    folders = {}
    for version in VERSIONS:
        folders[version] = folder / version
        folders[version].mkdir()
        archive.write(folders[version], card.model_copy(update={"version": version}), module)
    return folders


@dataclass(frozen=True)
class Ended:
    """An instance that was replaced: its exit status, and calls it did not answer, by reason."""

    status: int
    refused: Counter[str]


def retire(old: Instance, notice_seconds: float) -> Ended:
    """Give notice, stop, wait until it has drained."""
    time.sleep(notice_seconds)
    old.terminate()
    return Ended(old.wait(), old.refusals())


def rehearse(folder: Path, options: argparse.Namespace, head: results.Head, console: Console) -> results.RollingResult:
    """The whole update under load. Raises `DidNotStart`."""
    folders = versions_of(archive_of(options.archives, options.models[0]), folder)
    (port,) = free_ports(1)
    numbers = itertools.count()
    serving: deque[Instance] = deque()
    with NameServer(NAME) as names, ThreadPoolExecutor(RETIRING) as pool:
        try:
            for _ in range(INSTANCES):
                serving.append(Instance(next(numbers), VERSIONS[0], folders[VERSIONS[0]], port, options))
            for one in serving:
                one.wait_until_ready()
            names.point([one.address for one in serving])
            with VisionClient(names.target(port)) as client:
                load = Load(client, model=options.models[0], image=picture(), per_second=options.rate)
                load.start()
                began = time.monotonic()
                retired: list[Future[Ended]] = []
                # All instances become the next version, then the version before that, and so on.
                for version in itertools.cycle((VERSIONS[1],) * INSTANCES + (VERSIONS[0],) * INSTANCES):
                    if time.monotonic() - began > options.minutes * 60:
                        break
                    serving.append(Instance(next(numbers), version, folders[version], port, options))
                    serving[-1].wait_until_ready()
                    names.point([one.address for one in serving])
                    time.sleep(options.min_ready_seconds)
                    old = serving.popleft()
                    names.point([one.address for one in serving])
                    retired.append(pool.submit(retire, old, options.notice_seconds))  # the next starts meanwhile
                    failed = sum(call.code != OK for call in load.calls)
                    at_seconds = time.monotonic() - began
                    console.print(f"  {at_seconds:.0f} s: {len(retired)} replaced, {load.sent} sent, {failed} failed")
                ended = [one.result() for one in retired]
                seconds = time.monotonic() - began
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
    """Whether no call was lost, both versions answered, and every instance drained and ended in order."""
    return (
        result.head.complete
        and result.failed == 0
        and result.sent > 0
        and set(result.answered_by_version) == set(VERSIONS)
        and set(result.exit_statuses) == {"0"}
    )


def main() -> None:
    """Rehearse, write rolling.json, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common(parser, peers=False)
    parser.set_defaults(models=["demo_classify"])
    parser.add_argument("--minutes", type=float, help="of load [5; quick: 0.6]")
    parser.add_argument("--rate", type=float, default=20.0, help="calls per second [20]")
    parser.add_argument("--min-ready-seconds", type=float, default=3.0, help="from ready to the oldest's end [3]")
    parser.add_argument("--notice-seconds", type=float, default=0.5, help="from leaving the name to SIGTERM [0.5]")
    parser.add_argument("--drain-delay-seconds", type=float, default=1.0, help="of the service [1]")
    parser.add_argument("--connection-age-seconds", type=float, default=60.0, help="of the service [60]")
    options = parse(parser)
    options.minutes = options.minutes or (0.6 if options.quick else 5.0)
    console = make_console()
    head = head_of("rolling", options)
    with tempfile.TemporaryDirectory(prefix="rolling-") as folder:
        result = rehearse(Path(folder), options, head, console)
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
