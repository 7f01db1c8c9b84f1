"""The servers under measurement: ours and the peers, started alike on one archive, with the first right answer awaited.

In: a system's name, archives, a `Setup`. Out: a `Running` with the processes, the target and what starting cost. Every
system is asked the same picture first and its answer compared with ours, so that nobody is fast by being wrong.
"""

import contextlib
import dataclasses
import json
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.limit import Shape, unpack
from benchmarks.machine import ROOT, package_version
from benchmarks.peers import PEERS, Peer
from benchmarks.peers.config import PeerConfig, free_ports
from benchmarks.peers.environments import python_of, version_of
from benchmarks.processes import DidNotStart, Group
from benchmarks.target import Target
from model_store.archive import read_card
from model_store.card import Card, Task
from service.pb.mobilevision.v1 import vision_pb2
from service.settings import child_environment

OURS = "mobilevision"
START_SECONDS = 600.0
POLL_SECONDS = 0.02
_SERVICE = "/mobilevision.v1.VisionService"

Reply = vision_pb2.ClassifyResponse | vision_pb2.DetectResponse | vision_pb2.SegmentResponse
_REPLIES: dict[Task, type[Reply]] = {
    Task.CLASSIFY: vision_pb2.ClassifyResponse,
    Task.DETECT: vision_pb2.DetectResponse,
    Task.SEGMENT: vision_pb2.SegmentResponse,
}


@dataclass(frozen=True)
class Setup:
    """What a server may be told. `max_wait_ms` is how long a peer may hold a picture back for company; we never do."""

    shape: Shape
    max_batch: int = 16
    max_wait_ms: int = 5
    timeout_seconds: float = 30.0
    gpu: bool = False  # of peers; ours uses one that is there
    settings: tuple[tuple[str, str], ...] = ()  # of ours: MOBILEVISION_* by name


@dataclass(frozen=True)
class Running:
    """A server that answers. `targets`: one per archive it serves."""

    name: str
    version: str
    group: Group
    targets: tuple[Target, ...]
    metrics_url: str | None  # ours only
    start_seconds: float  # from the start of the process to the first right answer
    start_cpu_seconds: float

    unwrap: Callable[[bytes], bytes]  # a reply body to its message

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """Let a paused server run, from its first good answer on; pause it again at the end. Raises `DidNotStart`.

        A server that was stopped may find that calls of its own have timed out meanwhile, and say so for a moment.
        """
        self.group.resume()
        try:
            began = time.perf_counter()
            for target in self.targets:
                _answered(self.group, target, began)
            yield
        finally:
            self.group.pause()

    def ask(self, card: Card) -> Reply:
        """One call for the first archive, whose card this is. Raises `OSError` without a good answer."""
        message = _REPLIES[card.task]()
        message.ParseFromString(self.unwrap(self.targets[0].call()))
        return message

    def metric(self, name: str) -> dict[tuple[tuple[str, str], ...], float]:
        """Samples of one of our metrics by their labels; empty for peers, and where there is none of that name."""
        if self.metrics_url is None:
            return {}
        with urllib.request.urlopen(self.metrics_url, timeout=10) as reply:  # noqa: S310 - our own server
            families = text_string_to_metric_families(reply.read().decode())
        samples = (sample for family in families for sample in family.samples if sample.name == name)
        return {tuple(sorted(sample.labels.items())): sample.value for sample in samples}

    def failures(self) -> float:
        """Calls that ours ended other than OK. A call that the load generator drops at its end is no failure."""
        handled = self.metric("grpc_server_handled_total")
        return sum(n for labels, n in handled.items() if dict(labels)["grpc_code"] not in {"OK", "CANCELLED"})


def names() -> tuple[str, ...]:
    """Ours, then every peer."""
    return (OURS, *(peer.name for peer in PEERS))


@contextlib.contextmanager
def running(name: str, archives: Sequence[Path], setup: Setup, picture: bytes) -> Iterator[Running]:
    """Start a system and end it. Raises `PeerUnavailable`, `DidNotStart` with what it printed."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        if name == OURS:
            with _ours(archives, setup, picture, Path(folder)) as started:
                yield started
        else:
            peer = next(peer for peer in PEERS if peer.name == name)
            with _peer(peer, archives[0], setup, picture, Path(folder)) as started:
                yield started


def prepare(name: str) -> None:
    """Install what a system needs, so that measuring does not begin with it. Raises `PeerUnavailable`."""
    for peer in PEERS:
        if peer.name == name:
            python_of(peer)


def agree(ours: Reply, theirs: Reply) -> bool:
    """Whether two replies say the same of a picture: best label, best box to a pixel, class of the largest area."""
    if ours.picture != theirs.picture:
        return False
    if isinstance(ours, vision_pb2.ClassifyResponse):
        return [one.id for one in ours.labels[:1]] == [one.id for one in theirs.labels[:1]]  # type: ignore[union-attr]
    if isinstance(ours, vision_pb2.DetectResponse):
        mine, other = ours.detections[:1], theirs.detections[:1]  # type: ignore[union-attr]
        return [_rounded(one) for one in mine] == [_rounded(one) for one in other]
    return [one.id for one in ours.classes[:1]] == [one.id for one in theirs.classes[:1]]  # type: ignore[union-attr]


def _rounded(found: vision_pb2.Detection) -> tuple[int, ...]:
    box = found.box
    return (found.label.id, *(round(side) for side in (box.x_min, box.y_min, box.x_max, box.y_max)))


@contextlib.contextmanager
def _ours(archives: Sequence[Path], setup: Setup, picture: bytes, folder: Path) -> Iterator[Running]:
    ready = folder / "ready.json"
    cards = [read_card(archive) for archive in archives]
    command = [sys.executable, "-m", "service", "serve", *(card.name for card in cards)]
    command += ["--archives", str(archives[0].resolve().parent), "--grpc-port", "0", "--http-port", "0"]
    command += ["--ready-file", str(ready)]
    settings = {
        "WORKERS_PER_MODEL": str(setup.shape.processes),
        "WORKER_THREADS": str(setup.shape.threads),
        "MAX_BATCH": str(setup.max_batch),
        "LOG_LEVEL": "warning",
        **dict(setup.settings),
    }
    environment = child_environment(**{f"MOBILEVISION_{key}": value for key, value in settings.items()})
    began = time.perf_counter()
    with Group(command, environment=environment, log=folder / "server.log", cwd=ROOT) as group:
        while not ready.exists():
            _wait(group, began)
        addresses = json.loads(ready.read_text())
        host, _, port = addresses["grpc"].rpartition(":")
        targets = tuple(_grpc_target(card, host, int(port), picture) for card in cards)
        targets = tuple(_answered(group, target, began) for target in targets)
        yield Running(
            name=OURS,
            version=package_version("mobilevision"),
            group=group,
            targets=targets,
            metrics_url=f"http://{addresses['http']}/metrics",
            start_seconds=time.perf_counter() - began,
            start_cpu_seconds=group.cpu_seconds(),
            unwrap=bytes,
        )


@contextlib.contextmanager
def _peer(peer: Peer, archive: Path, setup: Setup, picture: bytes, folder: Path) -> Iterator[Running]:
    python = python_of(peer)
    unpacked = folder / "model"
    unpack(archive, unpacked)
    config = PeerConfig(
        folder=str(unpacked),
        workers=setup.shape.processes,
        threads=setup.shape.threads,
        max_batch=setup.max_batch,
        max_wait_ms=setup.max_wait_ms,
        port=free_ports(1)[0],
        timeout_seconds=setup.timeout_seconds,
        gpu=setup.gpu,
    )
    environment = child_environment(**config.to_environment(), **dict(peer.environment), PYTHONPATH=str(ROOT))
    target = Target("http", "127.0.0.1", config.port, peer.path, peer.body(picture), peer.content_type)
    command, version = [str(python), "-m", peer.module], version_of(peer, python)
    began = time.perf_counter()
    with Group(command, environment=environment, log=folder / "server.log", cwd=folder) as group:
        target = _answered(group, target, began)
        yield Running(
            name=peer.name,
            version=version,
            group=group,
            targets=(target,),
            metrics_url=None,
            start_seconds=time.perf_counter() - began,
            start_cpu_seconds=group.cpu_seconds(),
            unwrap=peer.reply,
        )


def _answered(group: Group, target: Target, began: float) -> Target:
    """Ask until there is an answer; the target, which now knows its length. Raises `DidNotStart`."""
    while True:
        try:
            return dataclasses.replace(target, reply_bytes=len(target.call()))
        except OSError as error:
            _wait(group, began, error)


def _wait(group: Group, began: float, refusal: OSError | None = None) -> None:
    group.check_alive()
    if time.perf_counter() - began > START_SECONDS:
        said = f" (last answer: {refusal})" if refusal else ""
        raise DidNotStart(f"no answer within {START_SECONDS:.0f} s{said}\n{group.log_tail()}")
    time.sleep(POLL_SECONDS)


def _grpc_target(card: Card, host: str, port: int, picture: bytes) -> Target:
    request: vision_pb2.ClassifyRequest | vision_pb2.DetectRequest | vision_pb2.SegmentRequest
    match card.task:
        case Task.CLASSIFY:
            request = vision_pb2.ClassifyRequest(model=card.name, image=picture)
        case Task.DETECT:
            request = vision_pb2.DetectRequest(model=card.name, image=picture)
        case Task.SEGMENT:
            request = vision_pb2.SegmentRequest(model=card.name, image=picture)
    method = {Task.CLASSIFY: "Classify", Task.DETECT: "Detect", Task.SEGMENT: "Segment"}[card.task]
    return Target("grpc", host, port, f"{_SERVICE}/{method}", request.SerializeToString())
