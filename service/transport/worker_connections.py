"""The worker connections of one model version: batches go to the workers without passing through the engine.

In: request frames. Out: answer frames, or a backend error. `handlers.gateway_connections` is the worker's side. A
worker gets one batch at a time, and the next batch as soon as it answers; waiting batches form one queue for all
workers. The engine starts, watches and replaces the workers: the handshake finds a lost worker again. For one event
loop.

A worker that does not answer for a multiple of the time that its batches take is hung. It is killed, so that the engine
replaces it, and its batch is lost like that of a worker that died.
"""

import asyncio
import logging
import math
import os
import signal
import socket
import struct
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple, cast

from handlers.contract.worker_protocol import ANSWERED, REPLY, REQUEST
from service.core.errors import BackendFault, BackendTimeout, BackendUnavailable
from service.transport.patience import Patience

_CREDENTIALS = struct.Struct("3i")  # process, user, group: what Linux tells of the peer of a Unix socket

_log = logging.getLogger(__name__)

_Reply = asyncio.Future[tuple[int, bytes]]  # status, content: see `handlers.contract.worker_protocol`


class _Batch(NamedTuple):
    frame: bytes
    pictures: int
    reply: _Reply


class WorkerConnections:
    """The open connections of one model version. `wanted`: how many workers. `on_lost` is called after each loss."""

    def __init__(self, model: str, *, wanted: int, patience: Patience | None = None) -> None:
        self._model = model
        self._patience = patience or Patience()
        self.wanted = wanted
        self.on_lost: Callable[[], None] = lambda: None
        self._open: list[_Connection] = []
        self._waiting: deque[_Batch] = deque()
        self._server: asyncio.Server | None = None

    def __len__(self) -> int:
        return len(self._open)

    @property
    def complete(self) -> bool:
        """Whether every worker has connected. If only some are used, the others stay idle."""
        return len(self._open) >= self.wanted

    async def listen(self, calls: socket.socket) -> None:
        """Accept workers at a listening socket. Takes over `calls`."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(
            lambda: _Connection(self._opened, self._patience.answered, self._next, self._lost), sock=calls
        )

    async def infer(self, frame: bytes, *, timeout_seconds: float, pictures: int = 1) -> bytes:
        """Run one request frame with so many pictures. Return the answer frame. Needs at least one open connection.

        Raises:
            BackendUnavailable: the worker ended, or it was hung.
            BackendTimeout: no answer within `timeout_seconds`.
            BackendFault: the model failed on this frame.
        """
        reply: _Reply = asyncio.get_running_loop().create_future()
        connection = next((each for each in self._open if each.reply is None), None)
        batch = _Batch(frame, pictures, reply)
        if connection is None:
            self._waiting.append(batch)
        else:
            self._send(connection, batch)
        try:
            async with asyncio.timeout(timeout_seconds):
                status, content = await reply
        except TimeoutError as error:
            for connection in self._open:
                # A late answer is dropped, and the worker gets no batch before it. A hung worker is ended in time.
                if connection.reply is reply and connection.watch is None:
                    connection.abort()
            raise BackendTimeout(f"{self._model}: no answer within {timeout_seconds:.3f} s") from error
        except ConnectionError as error:
            raise BackendUnavailable(f"{self._model}: its worker ended", metadata={"model": self._model}) from error
        if status != ANSWERED:
            reason = content.decode(errors="replace")
            raise BackendFault(f"{self._model}: its worker failed", metadata={"model": self._model}, detail=reason)
        return content

    async def close(self) -> None:
        """Stop listening and close every connection. Batches on their way are lost."""
        if self._server is not None:
            self._server.close()
        for connection in list(self._open):
            connection.abort()
        await asyncio.sleep(0)  # asyncio reports lost connections one turn of the loop later

    def _opened(self, connection: "_Connection") -> None:
        self._open.append(connection)
        self._next(connection)

    def _next(self, connection: "_Connection") -> None:
        while self._waiting:
            batch = self._waiting.popleft()
            if not batch.reply.done():  # done: its caller timed out or was cancelled
                self._send(connection, batch)
                return

    def _send(self, connection: "_Connection", batch: _Batch) -> None:
        connection.send(batch)
        patience_seconds = self._patience.seconds(batch.pictures)
        if patience_seconds < math.inf:
            loop = asyncio.get_running_loop()
            connection.watch = loop.call_later(patience_seconds, self._end_hung, connection, patience_seconds)

    def _end_hung(self, connection: "_Connection", patience_seconds: float) -> None:
        killed = connection.kill_worker()
        outcome = "it is killed" if killed else "its process cannot be killed from here, so the engine has to end it"
        text = "model %s: a worker did not answer for %.1f s; %s"
        _log.warning(text, self._model, patience_seconds, outcome, extra={"model": self._model})
        self._patience.hung()
        connection.abort()

    def _lost(self, connection: "_Connection") -> None:
        self._open.remove(connection)
        while self._waiting and not self._open:
            reply = self._waiting.popleft().reply
            if not reply.done():
                reply.set_exception(ConnectionResetError())
        self.on_lost()


class _Connection(asyncio.Protocol):
    """One worker's connection. Calls `on_open`, `on_idle` and `on_lost` with itself.

    `on_answer(pictures, seconds)` is called for each answered batch.
    """

    def __init__(
        self,
        on_open: "Callable[[_Connection], None]",
        on_answer: Callable[[int, float], None],
        on_idle: "Callable[[_Connection], None]",
        on_lost: "Callable[[_Connection], None]",
    ) -> None:
        self._on_open = on_open
        self._on_answer = on_answer
        self._on_idle = on_idle
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._accepted = False
        self._received = bytearray()
        self.reply: _Reply | None = None  # to the batch that this worker runs now
        self.watch: asyncio.TimerHandle | None = None  # ends the worker if it does not answer
        self._pictures = 1
        self._sent_at = 0.0
        self._process: int | None = None  # a pidfd: unlike a number, it never names another process

    def send(self, batch: _Batch) -> None:
        """Send a batch. Its `reply` gets the status and the content, or a `ConnectionError`."""
        self.reply = batch.reply
        self._pictures = batch.pictures
        self._sent_at = asyncio.get_running_loop().time()
        if self._transport is not None:
            self._transport.writelines((REQUEST.pack(len(batch.frame)), batch.frame))

    def kill_worker(self) -> bool:
        """Kill the worker's process. Returns False where the process is not visible to the gateway."""
        if self._process is None:
            return False
        with suppress(ProcessLookupError):  # it has ended
            signal.pidfd_send_signal(self._process, signal.SIGKILL)
        return True

    def abort(self) -> None:
        """Close the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast(asyncio.Transport, transport)
        process, user = _peer(transport.get_extra_info("socket"))
        if user not in (None, os.getuid()):
            _log.warning("a process of user %d connected as a worker and is refused", user)
            self.abort()
            return
        self._process = _opened(process)
        self._on_open(self)
        self._accepted = True

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self.reply is None:
            self.abort()  # no batch was sent, so this peer does not follow the protocol
            return
        self._received += data
        if len(self._received) < REPLY.size:
            return
        status, length = REPLY.unpack_from(self._received)
        if len(self._received) < REPLY.size + length:
            return
        content = bytes(memoryview(self._received)[REPLY.size : REPLY.size + length])
        self._received.clear()
        reply, self.reply = self.reply, None
        self._stop_watch()
        self._on_answer(self._pictures, asyncio.get_running_loop().time() - self._sent_at)
        self._on_idle(self)  # first, so that the worker gets its next batch before this answer is processed
        if not reply.done():
            reply.set_result((status, content))

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._transport = None
        self._stop_watch()
        if self._process is not None:
            os.close(self._process)
            self._process = None
        if not self._accepted:
            return
        self._on_lost(self)
        if self.reply is not None and not self.reply.done():
            self.reply.set_exception(ConnectionResetError())

    def _stop_watch(self) -> None:
        if self.watch is not None:
            self.watch.cancel()
            self.watch = None


def _peer(connection: socket.socket) -> tuple[int, int | None]:
    """Process and user that made a connection. The process is 0 and the user None where the system does not tell."""
    try:
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    except (OSError, AttributeError):
        return 0, None
    process, user, _ = _CREDENTIALS.unpack(credentials)
    return process, user


def _opened(process: int) -> int | None:
    """A pidfd of a process. None where the system or the container does not show it, and for this process."""
    if process <= 0 or process == os.getpid():
        return None
    try:
        return os.pidfd_open(process)
    except (OSError, AttributeError):
        return None
