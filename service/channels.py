"""The workers of one model that called back: batches go to them without passing through TorchServe.

`handlers.channel` is the other end, and says what is written. A worker answers its batches in the order they were sent,
and each batch goes to the worker with the fewest. TorchServe still starts, watches and replaces the workers: one that
is lost here is found again through it (see `carrier`). For one event loop.
"""

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from typing import cast

from handlers.channel import ANSWERED, REPLY, REQUEST
from service.errors import BackendFault, BackendTimeout, BackendUnavailable


class Channels:
    """The open channels of one model. `wanted`: how many workers it has."""

    def __init__(self, model: str, *, wanted: int) -> None:
        self._model = model
        self.wanted = wanted
        self._open: list[_Channel] = []
        self._server: asyncio.Server | None = None

    def __len__(self) -> int:
        return len(self._open)

    @property
    def complete(self) -> bool:
        """Whether every worker has called. Some alone would leave the others idle."""
        return len(self._open) >= self.wanted

    async def listen(self, calls: socket.socket) -> None:
        """Take calls at a listening socket, which is ours from now on."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _Channel(self._open.append, self._open.remove), sock=calls)

    async def infer(self, frame: bytes, *, timeout_seconds: float) -> bytes:
        """As `Backend.infer`, and raises the same. Only while there are channels."""
        channel = min(self._open, key=lambda one: one.waiting)
        try:
            async with asyncio.timeout(timeout_seconds):
                status, content = await channel.ask(frame)
        except TimeoutError as error:
            channel.abort()  # what it answers from now on would be taken for the answers to other batches
            raise BackendTimeout(f"{self._model}: no answer within {timeout_seconds:.3f} s") from error
        except ConnectionError as error:
            raise BackendUnavailable(f"{self._model}: its worker ended", metadata={"model": self._model}) from error
        if status != ANSWERED:
            reason = content.decode(errors="replace")
            raise BackendFault(f"{self._model}: its worker failed: {reason}", metadata={"model": self._model})
        return content

    async def close(self) -> None:
        """Hang up; batches in work are lost."""
        if self._server is not None:
            self._server.close()
        for channel in list(self._open):
            channel.abort()
        await asyncio.sleep(0)  # connections are lost one turn later


class _Channel(asyncio.Protocol):
    """One worker's connection. `on_open` and `on_lost` are told of it."""

    def __init__(self, on_open: "Callable[[_Channel], None]", on_lost: "Callable[[_Channel], None]") -> None:
        self._on_open = on_open
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._asked: deque[asyncio.Future[tuple[int, bytes]]] = deque()
        self._received = bytearray()

    @property
    def waiting(self) -> int:
        """Batches sent and not answered."""
        return len(self._asked)

    def ask(self, frame: bytes) -> "asyncio.Future[tuple[int, bytes]]":
        """Send a batch. The future gets the status and what follows it, or `ConnectionError`."""
        answer = asyncio.get_running_loop().create_future()
        if self._transport is None:
            answer.set_exception(ConnectionResetError())
            return answer
        self._asked.append(answer)
        self._transport.writelines((REQUEST.pack(len(frame)), frame))
        return answer

    def abort(self) -> None:
        """Hang up at once."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast(asyncio.Transport, transport)
        self._on_open(self)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._received += data
        while len(self._received) >= REPLY.size:
            status, length = REPLY.unpack_from(self._received)
            end = REPLY.size + length
            if len(self._received) < end:
                return
            content = bytes(memoryview(self._received)[REPLY.size : end])
            del self._received[:end]
            if not self._asked:
                self.abort()  # nothing was asked: whoever this is, it does not follow
                return
            answer = self._asked.popleft()
            if not answer.done():
                answer.set_result((status, content))

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._transport = None
        self._on_lost(self)
        while self._asked:
            answer = self._asked.popleft()
            if not answer.done():
                answer.set_exception(ConnectionResetError())
