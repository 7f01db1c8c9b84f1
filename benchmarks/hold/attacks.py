"""The attackers: each takes an attacked server and an event, and attacks until the event is set."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.hold.http2 import Answer, RawConnection, framed
from benchmarks.hold.pictures import png
from service.pb.mobilevision.v1 import vision_pb2

CLASSIFY = "/mobilevision.v1.VisionService/Classify"
SEGMENT = "/mobilevision.v1.VisionService/Segment"
LIST_MODELS = "/mobilevision.v1.VisionService/ListModels"
GET_MODEL = "/mobilevision.v1.VisionService/GetModel"
SOURCE = "127.0.0.2"  # the host of attackers; that of the honest caller is 127.0.0.1
BURST_SECONDS = 40.0  # in which every call of a burst must end
_STREAMS = 250  # per connection of a burst; the server takes 256
_DETAILS = "grpc-status-details-bin"
_DEADLINE_EXCEEDED = 4


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the attacked server listens, host:port each."""

    grpc: str
    http: str


@dataclass(frozen=True, slots=True)
class Attacked:
    """What an attacker did: its requests, and how many of them ended without an answer or a typed error.

    `untyped` is counted only by attackers that read their replies.
    """

    requests: int
    untyped: int = 0


Attack = Callable[[Addresses, threading.Event], Attacked]


def classify(image: bytes) -> bytes:
    """A `ClassifyRequest`, encoded."""
    return vision_pb2.ClassifyRequest(image=image).SerializeToString()


def segment(image: bytes, encoding: "vision_pb2.MaskEncoding.ValueType") -> bytes:
    """A `SegmentRequest` with a confidence map, encoded."""
    request = vision_pb2.SegmentRequest(image=image, mask_encoding=encoding, include_confidence=True)
    return request.SerializeToString()


def calls(method: str, *bodies: bytes, read: bool = True, reset: bool = False, wait_seconds: float = 1.0) -> Attack:
    """Attack with whole calls on four connections, as many as the server takes.

    `read`: replies are read, each for at most `wait_seconds`; else their windows stay shut. `reset`: each call is
    cancelled at once.
    """

    def attack(target: Addresses, stop: threading.Event) -> Attacked:
        sent = 0
        while not stop.is_set():
            with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
                window = None if read else 0
                raw = [
                    stack.enter_context(RawConnection(target.grpc, window_bytes=window, source=SOURCE))
                    for _ in range(4)
                ]
                for _ in range(50):
                    for connection in raw:
                        if stop.is_set():
                            return Attacked(sent)
                        stream = connection.start(method)
                        sent += 1
                        if reset:
                            connection.reset(stream)
                            continue
                        connection.send(stream, framed(bodies[sent % len(bodies)]), end=True, wait_seconds=1.0)
                        if read:
                            connection.wait(stream, wait_seconds)
                if not read:
                    stop.wait(1.0)
        return Attacked(sent)

    return attack


def half_sent(target: Addresses, stop: threading.Event) -> Attacked:
    """60 requests of 21 MiB whose last megabyte never comes."""
    body = bytes(20 * 2**20)
    with contextlib.ExitStack() as stack:
        sent = 0
        for _ in range(60):
            with contextlib.suppress(OSError):
                connection = stack.enter_context(RawConnection(target.grpc, source=SOURCE))
                connection.send(connection.start(CLASSIFY), framed(body, stated_bytes=21 * 2**20), wait_seconds=1.0)
                sent += 1
            if stop.is_set():
                break
        stop.wait()
    return Attacked(sent)


def connections(count: int = 0, *, http: bool = False) -> Attack:
    """Attack with `count` connections that stay open; 0: with connections that are closed at once, one after another.

    `http`: half a header on the HTTP port.
    """

    def attack(target: Addresses, stop: threading.Event) -> Attacked:
        made = 0
        host, _, port = (target.http if http else target.grpc).rpartition(":")
        with contextlib.ExitStack() as stack:
            while not stop.is_set():
                if count and made >= count:
                    stop.wait()
                    break
                with contextlib.suppress(OSError):
                    connection = socket.create_connection((host, int(port)), timeout=1.0, source_address=(SOURCE, 0))
                    made += 1
                    if http:
                        connection.sendall(b"GET /metrics HTTP/1.1\r\nX-Slow: ")
                    if count:
                        stack.enter_context(connection)
                    else:
                        connection.close()
        return Attacked(made)

    return attack


def burst(count: int, *, every_seconds: float) -> Attack:
    """Attack with `count` calls at once, again and again. Each call of a burst must end, with a reason if it failed."""

    def attack(target: Addresses, stop: threading.Event) -> Attacked:
        sent = untyped = 0
        body = framed(classify(png(64, 48)))
        while not stop.is_set():
            began = time.monotonic()
            with contextlib.ExitStack() as stack:
                raw = [
                    stack.enter_context(RawConnection(target.grpc, source=SOURCE)) for _ in range(-(-count // _STREAMS))
                ]
                streams = [(raw[n // _STREAMS], raw[n // _STREAMS].start(CLASSIFY)) for n in range(count)]
                for connection, stream in streams:
                    connection.send(stream, body, end=True)
                sent += count
                until = time.monotonic() + BURST_SECONDS
                ends = [one.wait(stream, max(0.0, until - time.monotonic())) for one, stream in streams]
                untyped += sum(not typed(end) for end in ends)
            stop.wait(max(0.0, began + every_seconds - time.monotonic()))
        return Attacked(sent, untyped)

    return attack


def typed(answer: Answer) -> bool:
    """Whether a call was answered, or ended with a reason or at its deadline."""
    return answer.status in (0, _DEADLINE_EXCEEDED) or (answer.status is not None and _DETAILS in answer.trailers)
