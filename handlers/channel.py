"""A worker's own connections to the gateways of its host: batches in, answers out, without TorchServe in between.

TorchServe starts, watches and replaces workers; what it costs per call (a JVM, two more sockets) is saved by a worker
that was asked, through TorchServe, to call back. A connection carries one message at a time each way, little-endian:

    gateway -> worker   u32 bytes | request frame
    worker -> gateway   u8 status | u32 bytes | answer frame, or the reason in UTF-8

Each connection has a thread. Never decides what is done with a frame, nor whose turn it is.
"""

import logging
import socket
import struct
import threading
from collections.abc import Callable

REQUEST = struct.Struct("<I")
REPLY = struct.Struct("<BI")
ANSWERED, FAILED = 0, 1

logger = logging.getLogger(__name__)


class Channels:
    """The connections of one worker, by the names of the gateways' sockets. `answer` may be called by many threads."""

    def __init__(self, answer: Callable[[bytearray], bytes]) -> None:
        self._answer = answer
        self._lock = threading.Lock()
        self._open: set[str] = set()

    def open(self, name: str, connect: Callable[[str], socket.socket]) -> None:
        """Call a gateway back and serve it from now on, unless that is done already. Raises what `connect` raises."""
        with self._lock:
            if name in self._open:
                return
            connection = connect(name)
            self._open.add(name)
        threading.Thread(target=self._serve, args=(name, connection), name="channel", daemon=True).start()

    def _serve(self, name: str, connection: socket.socket) -> None:
        try:
            with connection:
                while (head := _received(connection, REQUEST.size)) is not None:
                    request = _received(connection, *REQUEST.unpack(head))
                    if request is None:
                        return
                    status, answer = self._answered(request)
                    connection.sendall(REPLY.pack(status, len(answer)) + answer)
        except OSError as error:  # the gateway died
            logger.warning("a gateway's channel broke: %s", error)
        finally:
            with self._lock:
                self._open.discard(name)

    def _answered(self, request: bytearray) -> tuple[int, bytes]:
        try:
            return ANSWERED, self._answer(request)
        except Exception as error:
            logger.exception("a batch failed")
            return FAILED, (str(error) or type(error).__name__).encode()


def _received(connection: socket.socket, count: int) -> bytearray | None:
    """So many bytes; None where the connection was closed before."""
    buffer = bytearray(count)
    view = memoryview(buffer)
    while view:
        received = connection.recv_into(view)
        if not received:
            return None
        view = view[received:]
    return buffer
