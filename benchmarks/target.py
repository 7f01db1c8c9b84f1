"""The target of requests: an address and one picture for one model, over gRPC (ours) or HTTP/1.1 (other servers)."""

import http.client
import io
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import grpc
from PIL import Image

from benchmarks.machine import ROOT

PICTURE = ROOT / "docs" / "pictures" / "coffee.jpg"
PICTURE_SIDE_PX = 256
JPEG_QUALITY = 88
_GRPC_FRAME = struct.Struct(">BI")  # not compressed, length


@dataclass(frozen=True)
class Target:
    """One call that can be repeated. `body` is the message (gRPC, without its frame) or the request body (HTTP)."""

    protocol: Literal["grpc", "http"]
    host: str
    port: int
    path: str
    body: bytes
    content_type: str = "image/jpeg"
    reply_bytes: int = 0  # body length of a good reply; 0: not known yet

    @property
    def url(self) -> str:
        """The address as a URL."""
        return f"http://{self.host}:{self.port}{self.path}"

    def wire_body(self) -> bytes:
        """The body as it is sent: gRPC puts a frame before the message."""
        return _GRPC_FRAME.pack(0, len(self.body)) + self.body if self.protocol == "grpc" else self.body

    def call(self, timeout_seconds: float = 30.0) -> bytes:
        """Make one call. Returns the bytes of the reply. Raises `OSError` or its subclass `CallFailed`."""
        return self._call_grpc(timeout_seconds) if self.protocol == "grpc" else self._call_http(timeout_seconds)

    def _call_grpc(self, timeout_seconds: float) -> bytes:
        with grpc.insecure_channel(f"{self.host}:{self.port}") as channel:
            method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(self.path)
            try:
                return method(self.body, timeout=timeout_seconds)
            except grpc.RpcError as error:
                raise CallFailed(f"{error.code().name}: {error.details()}") from error

    def _call_http(self, timeout_seconds: float) -> bytes:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout_seconds)
        try:
            connection.request("POST", self.path, self.body, {"content-type": self.content_type})
            reply = connection.getresponse()
            content = reply.read()
        except http.client.HTTPException as error:
            raise CallFailed(repr(error)) from error
        finally:
            connection.close()
        if reply.status != 200:
            raise CallFailed(f"HTTP {reply.status}: {content[:300]!r}")
        return content


class CallFailed(OSError):
    """The server answered with an error."""


def picture(side_px: int = PICTURE_SIDE_PX, photograph: Path = PICTURE) -> bytes:
    """A JPEG of `side_px` x `side_px` made from a photograph. Its bytes depend only on the version of Pillow."""
    with Image.open(photograph) as image:
        stream = io.BytesIO()
        image.convert("RGB").resize((side_px, side_px)).save(stream, "JPEG", quality=JPEG_QUALITY)
    return stream.getvalue()
