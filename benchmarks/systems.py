"""The servers under measurement: our server and the peers. All are started in the same way on the same archives.

In: a system's name, archives, a `Setup`. Out: a `Running` with the processes, the targets and the cost of the start.
A system counts as started when it has answered a picture. `agree` compares its answer with that of our server.
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
from benchmarks.machine import ROOT, package_version, revision
from benchmarks.pairs import ANY, AUTO, Pair
from benchmarks.peers import PEERS, Peer
from benchmarks.peers.config import PeerConfig, free_ports
from benchmarks.peers.environments import python_of, version_of
from benchmarks.processes import DidNotStart, Group
from benchmarks.target import Target
from handlers.contract.card import Card, Task
from model_store.build.archive import read_card
from service.core.settings import child_environment
from service.pb.mobilevision.v1 import vision_pb2

OURS = "mobilevision"
BEFORE = "before"  # the server of another checkout of this project
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
    """Settings of a server. `max_wait_ms`: how long a peer may wait to fill a batch; our server never waits.

    `pair` is asked of our server, and of the peers that run our runtime.
    """

    shape: Shape
    max_batch: int = 16
    max_wait_ms: int = 5
    timeout_seconds: float = 30.0
    gpu: bool = False  # for peers; our server uses a GPU if there is one
    pair: Pair = AUTO
    settings: tuple[tuple[str, str], ...] = ()  # of our server: (name without MOBILEVISION_, value)
    checkout: Path | None = None  # of BEFORE: the folder whose server and archives are used


@dataclass(frozen=True)
class Running:
    """A server that answers. `targets` has one target for each archive."""

    name: str
    version: str
    group: Group
    targets: tuple[Target, ...]
    metrics_url: str | None  # None for peers
    start_seconds: float  # from the start of the process to the first answer
    start_cpu_seconds: float

    unwrap: Callable[[bytes], bytes]  # body of a reply -> serialized message

    @contextlib.contextmanager
    def resumed(self) -> Iterator[None]:
        """Let a paused server run within the context, which begins with its first good answer. Raises `DidNotStart`.

        Internal calls of a server may time out while it is paused. It may then refuse calls for a moment.
        """
        self.group.resume()
        try:
            began_at = time.perf_counter()
            for target in self.targets:
                _wait_for_answer(self.group, target, began_at)
            yield
        finally:
            self.group.pause()

    def ask(self, card: Card) -> Reply:
        """Call the first target and parse its reply. `card` is the card of its model. Raises `OSError` on failure."""
        message = _REPLIES[card.task]()
        message.ParseFromString(self.unwrap(self.targets[0].call()))
        return message

    def metric(self, name: str) -> dict[tuple[tuple[str, str], ...], float]:
        """Samples of one metric of our server by their labels. Empty for peers and for an unknown name."""
        if self.metrics_url is None:
            return {}
        with urllib.request.urlopen(self.metrics_url, timeout=10) as reply:  # noqa: S310 - our own server
            families = text_string_to_metric_families(reply.read().decode())
        samples = (sample for family in families for sample in family.samples if sample.name == name)
        return {tuple(sorted(sample.labels.items())): sample.value for sample in samples}

    def failures(self) -> float:
        """Number of failed calls of our server. Calls that the load generator cancels at its end do not count."""
        handled = self.metric("grpc_server_handled_total")
        return sum(n for labels, n in handled.items() if dict(labels)["grpc_code"] not in {"OK", "CANCELLED"})


def archives_of_checkout(checkout: Path) -> Path:
    """The folder in which a checkout of this project keeps its archives."""
    return checkout / "model_store" / "archives"


def names() -> tuple[str, ...]:
    """Names of our server and of all peers, in this order."""
    return (OURS, *(peer.name for peer in PEERS))


@contextlib.contextmanager
def running(name: str, archives: Sequence[Path], setup: Setup, picture: bytes) -> Iterator[Running]:
    """Run a system within the context. Raises `PeerUnavailable`, and `DidNotStart` with the output of the server."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        if name in {OURS, BEFORE}:
            with _ours(name, archives, setup, picture, Path(folder)) as started:
                yield started
        else:
            peer = next(peer for peer in PEERS if peer.name == name)
            with _peer(peer, archives[0], setup, picture, Path(folder)) as started:
                yield started


def prepare(name: str) -> None:
    """Install the packages of a system before anything is measured. Raises `PeerUnavailable`."""
    for peer in PEERS:
        if peer.name == name:
            python_of(peer)


def answered_by(reply: Reply) -> Pair:
    """The network engine and the dtype that computed a reply, as it says itself. Empty words where it does not say."""
    _, _, network = reply.model.engine.rpartition("/")  # ours name their server first: torchserve/openvino
    return Pair(network if reply.model.dtype else "", reply.model.dtype)


def agree(ours: Reply, other: Reply) -> bool:
    """Whether two replies agree: same best label, same best box to one pixel, or same class of the largest area."""
    if ours.picture != other.picture:
        return False
    if isinstance(ours, vision_pb2.ClassifyResponse):
        return [one.id for one in ours.labels[:1]] == [one.id for one in other.labels[:1]]  # type: ignore[union-attr]
    if isinstance(ours, vision_pb2.DetectResponse):
        best, other_best = ours.detections[:1], other.detections[:1]  # type: ignore[union-attr]
        return [_rounded(one) for one in best] == [_rounded(one) for one in other_best]
    return [one.id for one in ours.classes[:1]] == [one.id for one in other.classes[:1]]  # type: ignore[union-attr]


def _rounded(found: vision_pb2.Detection) -> tuple[int, ...]:
    box = found.box
    return (found.label.id, *(round(side) for side in (box.x_min, box.y_min, box.x_max, box.y_max)))


@contextlib.contextmanager
def _ours(name: str, archives: Sequence[Path], setup: Setup, picture: bytes, folder: Path) -> Iterator[Running]:
    ready = folder / "ready.json"
    cards = [read_card(archive) for archive in archives]
    settings = {
        "WORKERS_PER_MODEL": str(setup.shape.processes),
        "WORKER_THREADS": str(setup.shape.threads),
        "MAX_BATCH": str(setup.max_batch),
        "LOG_LEVEL": "warning",
        # A server of another checkout may not know a setting that leaves everything to it.
        **{name: value for name, value in (("ENGINE", setup.pair.engine), ("DTYPE", setup.pair.dtype)) if value != ANY},
        **dict(setup.settings),
    }
    variables = {f"MOBILEVISION_{key}": value for key, value in settings.items()}
    checkout, served_from, version = ROOT, archives[0].resolve().parent, package_version("mobilevision")
    if setup.checkout is not None:
        checkout, version = setup.checkout.resolve(), revision(setup.checkout)
        served_from = archives_of_checkout(checkout)
        # The packages of the checkout take precedence over an installed copy of this project.
        variables["PYTHONPATH"] = str(checkout)
    command = [sys.executable, "-m", "service", "serve", *(card.name for card in cards)]
    command += ["--archives", str(served_from), "--grpc-port", "0", "--http-port", "0"]
    command += ["--ready-file", str(ready)]
    environment = child_environment(**variables)
    began_at = time.perf_counter()
    with Group(command, environment=environment, log=folder / "server.log", cwd=checkout) as group:
        while not ready.exists():
            _check_and_sleep(group, began_at)
        addresses = json.loads(ready.read_text())
        host, _, port = addresses["grpc"].rpartition(":")
        targets = tuple(_grpc_target(card, host, int(port), picture) for card in cards)
        targets = tuple(_wait_for_answer(group, target, began_at) for target in targets)
        yield Running(
            name=name,
            version=version,
            group=group,
            targets=targets,
            metrics_url=f"http://{addresses['http']}/metrics",
            start_seconds=time.perf_counter() - began_at,
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
        engine=setup.pair.engine,
        dtype=setup.pair.dtype,
    )
    environment = child_environment(**config.to_environment(), **dict(peer.environment), PYTHONPATH=str(ROOT))
    target = Target("http", "127.0.0.1", config.port, peer.path, peer.body(picture), peer.content_type)
    command, version = [str(python), "-m", peer.module], version_of(peer, python)
    began_at = time.perf_counter()
    with Group(command, environment=environment, log=folder / "server.log", cwd=folder) as group:
        target = _wait_for_answer(group, target, began_at)
        yield Running(
            name=peer.name,
            version=version,
            group=group,
            targets=(target,),
            metrics_url=None,
            start_seconds=time.perf_counter() - began_at,
            start_cpu_seconds=group.cpu_seconds(),
            unwrap=peer.reply,
        )


def _wait_for_answer(group: Group, target: Target, began_at: float) -> Target:
    """Repeat the call until there is an answer. Returns the target with `reply_bytes`. Raises `DidNotStart`."""
    while True:
        try:
            return dataclasses.replace(target, reply_bytes=len(target.call()))
        except OSError as error:
            _check_and_sleep(group, began_at, error)


def _check_and_sleep(group: Group, began_at: float, refusal: OSError | None = None) -> None:
    group.check_alive()
    if time.perf_counter() - began_at > START_SECONDS:
        last_error = f" (last error: {refusal})" if refusal else ""
        raise DidNotStart(f"no answer within {START_SECONDS:.0f} s{last_error}\n{group.log_tail()}")
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
