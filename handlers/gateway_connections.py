"""A worker's own connections to the gateways on its host: batches travel without passing through TorchServe.

In: request frames. Out: answer frames. TorchServe starts, watches and replaces the workers. A direct connection saves
what TorchServe costs per call (a JVM, two more sockets). A gateway asks for it in the handshake, which travels through
TorchServe. `handlers.contract.worker_protocol` describes the messages. Each connection has a thread. Never decides what
happens to a frame, or which batch runs next.
"""

import logging
import socket
import threading
from collections.abc import Callable

from handlers.contract.worker_protocol import ANSWERED, FAILED, REPLY, REQUEST

logger = logging.getLogger(__name__)


class GatewayConnections:
    """The connections of one worker, by the names of the gateways' sockets.

    `answer` maps a request frame to an answer frame. It is called from the threads of all connections.
    """

    def __init__(self, answer: Callable[[bytearray], bytes]) -> None:
        self._answer = answer
        self._lock = threading.Lock()
        self._open: set[str] = set()

    def open(self, name: str, connect: Callable[[str], socket.socket]) -> None:
        """Connect to a gateway and serve it, unless it is connected already. Raises what `connect` raises."""
        with self._lock:
            if name in self._open:
                return
            connection = connect(name)
            self._open.add(name)
        threading.Thread(target=self._serve, args=(name, connection), name="gateway connection", daemon=True).start()

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
            logger.warning("the connection to a gateway broke: %s", error)
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
    """Receive `count` bytes. Returns None if the connection is closed before."""
    buffer = bytearray(count)
    view = memoryview(buffer)
    while view:
        received = connection.recv_into(view)
        if not received:
            return None
        view = view[received:]
    return buffer
