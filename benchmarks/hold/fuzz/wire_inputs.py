"""What is sent to live sockets: request messages, HTTP/2 connections and HTTP/1.1 requests that nobody should send.

In: a generator of random numbers. Out: bytes. Never opens a socket.
"""

import random
import struct
from collections.abc import Callable

from benchmarks.hold.fuzz.hostile_pictures import valid
from benchmarks.hold.fuzz.mutation import mutated
from service.pb.mobilevision.v1 import vision_pb2

METHODS = ("Classify", "Detect", "Segment", "ListModels", "GetModel")
_PICTURES = list(valid().values())
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_LONGEST_BYTES = 2**18
_DATA, _HEADERS, _PRIORITY, _RESET, _SETTINGS, _PUSH, _PING, _GOAWAY, _WINDOW, _CONTINUATION = range(10)


def message(draw: random.Random) -> tuple[str, bytes]:
    """Return a method and the bytes of its request, most of them wrong."""
    picture = draw.choice(_PICTURES)
    name = draw.choice(("", "toy_classify", "toy_detect", "toy_segment", "\0", "é" * 100, "../x"))
    requests = {
        "Classify": vision_pb2.ClassifyRequest(model=name, image=picture, top_k=draw.choice((0, 1, 5, 2**31))),
        "Detect": vision_pb2.DetectRequest(model=name, image=picture, score_threshold=draw.choice((0, 0.5, 1e30))),
        "Segment": vision_pb2.SegmentRequest(model=name, image=picture, include_confidence=True),
        "ListModels": vision_pb2.ListModelsRequest(task=vision_pb2.TASK_CLASSIFY),
        "GetModel": vision_pb2.GetModelRequest(name=name),
    }
    method = draw.choice(METHODS)
    content = requests[method].SerializeToString()
    kind = draw.randrange(5)
    if kind == 0:  # a picture that was changed, in a right message
        return "Classify", vision_pb2.ClassifyRequest(image=mutated(picture, content, draw, 2**16)).SerializeToString()
    if kind == 1:  # many empty fields, known and unknown
        piece = draw.choice((b"\x0a\x00", b"\x12\x00", b"\x4a\x00", b"\x78\x00", b"\x7a\x00", b"\x7b\x7c", b"\x18\x00"))
        return method, piece * draw.choice((1, 1000, 100_000))
    if kind == 2:  # groups inside groups
        return method, b"\x7b" * draw.choice((10, 99, 101, 50_000))
    other = requests[draw.choice(METHODS)].SerializeToString()
    return method, mutated(content, other, draw, _LONGEST_BYTES)


def _frame(kind: int, flags: int, stream: int, body: bytes, length: int | None = None) -> bytes:
    size = (len(body) if length is None else length) % 2**24
    return size.to_bytes(3, "big") + bytes([kind % 256, flags % 256]) + struct.pack(">I", stream % 2**32) + body


def _text(value: bytes) -> bytes:
    """Return a string of HPACK, without Huffman coding."""
    if len(value) < 127:
        return bytes([len(value)]) + value
    rest, parts = len(value) - 127, [127]
    while rest >= 128:
        parts.append(rest % 128 + 128)
        rest //= 128
    return bytes([*parts, rest]) + value


def headers(fields: list[tuple[bytes, bytes]]) -> bytes:
    """Return a block of HPACK: literals that are not indexed."""
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in fields)


def _call_headers(method: str, draw: random.Random) -> bytes:
    fields = [
        (b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/mobilevision.v1.VisionService/" + method.encode()),
        (b":authority", b"localhost"), (b"content-type", b"application/grpc"), (b"te", b"trailers"),
    ]  # fmt: skip
    strange = (
        (b"grpc-timeout", draw.choice((b"1n", b"99999999H", b"-1S", b"x", b"0S", b""))),
        (b"grpc-encoding", draw.choice((b"gzip", b"nothing", b"deflate"))),
        (b"x-request-id", draw.choice((b"a\r\nb", b"\xff" * 50, b"x" * 10_000, b'{"level":"info"}'))),
        (b"traceparent", draw.choice((b"00-" + b"f" * 32, b"00-0-0-0", b"\0"))),
        (b"content-length", draw.choice((b"0", b"-1", b"99999999999999999999"))),
        (b"a-bin", draw.choice((b"!!!", b"AAAA", b"=" * 100))),
        (b":path", b"/"), (b"connection", b"close"), (b"", b""), (b"UPPER", b"x"),
    )  # fmt: skip
    for _ in range(draw.choice((0, 0, 1, 3))):
        fields.insert(draw.randrange(len(fields) + 1), draw.choice(strange))
    return headers(fields)


def connection(draw: random.Random) -> bytes:
    """Return everything that a client sends on one HTTP/2 connection: preface, settings, a call, and what is wrong."""
    method, content = message(draw)
    body = bytes([draw.choice((0, 0, 0, 1, 2))]) + struct.pack(">I", len(content)) + content
    size = draw.choice((1, 7, 1000, 16_384))
    pieces = [body[at : at + size] for at in range(0, min(len(body), 200 * size), size)]
    frames = [_frame(_SETTINGS, 0, 0, _settings(draw)), _frame(_HEADERS, 4, 1, _call_headers(method, draw))]
    frames += [_frame(_DATA, int(piece is pieces[-1]), 1, piece) for piece in pieces]
    for _ in range(draw.choice((0, 1, 2, 8))):
        frames.insert(draw.randrange(len(frames) + 1), draw.choice(_STRANGE)(draw))
    if draw.random() < 0.1:
        draw.shuffle(frames)
    sent = b"".join(frames)
    if draw.random() < 0.5:
        sent = mutated(sent, content, draw, _LONGEST_BYTES)
    return (_PREFACE if draw.random() < 0.95 else mutated(_PREFACE, content, draw, 64)) + sent


def _settings(draw: random.Random) -> bytes:
    number = (0, 1, 2**14, 2**24 - 1, 2**31 - 1, 2**32 - 1)
    return b"".join(
        struct.pack(">HI", draw.randrange(8), draw.choice(number)) for _ in range(draw.choice((0, 0, 1, 3)))
    )


_STRANGE: tuple[Callable[[random.Random], bytes], ...] = (
    lambda draw: _frame(draw.randrange(256), draw.randrange(256), draw.choice((0, 1, 2, 3, 2**31)), draw.randbytes(20)),
    lambda draw: _frame(_SETTINGS, 0, 0, _settings(draw)) * 200,
    lambda draw: _frame(_PING, 0, 0, bytes(8)) * 300,
    lambda draw: _frame(_PING, 0, 0, bytes(draw.choice((0, 7, 9)))),
    lambda draw: _frame(_RESET, 0, 1, struct.pack(">I", draw.randrange(16))),
    # A stream that is opened and reset at once, many times ("rapid reset").
    lambda draw: b"".join(
        _frame(_HEADERS, 4, stream, _call_headers("Classify", draw)) + _frame(_RESET, 0, stream, bytes(4))
        for stream in range(1, 200, 2)
    ),
    lambda draw: _frame(_HEADERS, 0, 3, _call_headers("Classify", draw)) + _frame(_CONTINUATION, 0, 3, b"") * 300,
    lambda draw: _frame(_HEADERS, 4, 3, headers([(b"x" * 100, b"y" * 60_000)])[:16_384]),
    lambda draw: _frame(_HEADERS, 4, 3, b"\xbe" * 5000),  # the same indexed field again and again
    lambda draw: _frame(_HEADERS, 4, 3, b"\x3f\xff\xff\xff\xff\xff\x7f"),  # a huge number
    lambda draw: _frame(_WINDOW, 0, draw.choice((0, 1)), struct.pack(">I", draw.choice((0, 1, 2**31 - 1)))) * 3,
    lambda draw: _frame(_DATA, 0, draw.choice((0, 1, 99)), b"") * 1000,
    lambda draw: _frame(_DATA, 8, 1, b"\xff"),  # more padding than content
    lambda draw: _frame(_DATA, 0, 1, b"x", length=2**24 - 1),
    lambda draw: _frame(_PRIORITY, 0, 1, struct.pack(">IB", 1, 255)) * 100,
    lambda draw: _frame(_PUSH, 4, 1, struct.pack(">I", 2)),
    lambda draw: _frame(_GOAWAY, 0, 0, struct.pack(">II", 0, 11) + b'x\n{"level": "info", "message": "forged"}\n'),
)

_REQUEST = b"GET /metrics HTTP/1.1\r\nHost: a\r\nAccept: text/plain\r\n\r\n"


def http_request(draw: random.Random) -> bytes:
    """Return what a client sends to the HTTP port."""
    requests = (
        _REQUEST,
        b"GET /livez HTTP/1.0\r\n\r\n",
        b"GET /readyz?a=" + b"%00" * 100 + b" HTTP/1.1\r\n\r\n",
        b"POST /metrics HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n" + b"a" * 1000,
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffff\r\n",
        b"GET " + b"/" * 70_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 5000 + b"\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nAccept: " + b"application/openmetrics-text;q=" * 300 + b"\r\n\r\n",
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(200),  # TLS
        b"\r\n" * 1000,
        b"GET\r\n\r\n",
        b"\xff" * 1000,
        b"GET /\xe2\x82\xac\x1b[31m HTTP/1.1\r\nX: \x00\r\n\r\n",
        b"GET http://[::1 HTTP/1.1\r\n\r\n",
        _PREFACE,
    )
    content = draw.choice(requests)
    return content if draw.random() < 0.3 else mutated(content, draw.choice(requests), draw, 2**17)
