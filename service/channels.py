"""The workers of one model that called back: batches go to them without passing through TorchServe.

`handlers.channel` is the other end, and says what is written. A worker is sent one batch at a time, and the next in the
moment it answers; batches wait here, in one line for all workers. TorchServe still starts, watches and replaces the
workers: one that is lost here is found again through it (see `carrier`). For one event loop.
"""

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from typing import cast

from handlers.channel import ANSWERED, REPLY, REQUEST
from service.errors import BackendFault, BackendTimeout, BackendUnavailable

_Answer = asyncio.Future[tuple[int, bytes]]  # the status and what follows it


class Channels:
    """The open channels of one model. `wanted`: how many workers it has."""

    def __init__(self, model: str, *, wanted: int) -> None:
        self._model = model
        self.wanted = wanted
        self._open: list[_Channel] = []
        self._waiting: deque[tuple[bytes, _Answer]] = deque()
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
        self._server = await loop.create_unix_server(lambda: _Channel(self._opened, self._next, self._lost), sock=calls)

    async def infer(self, frame: bytes, *, timeout_seconds: float) -> bytes:
        """As `Backend.infer`, and raises the same. Only while there are channels."""
        answer: _Answer = asyncio.get_running_loop().create_future()
        channel = next((one for one in self._open if one.answer is None), None)
        if channel is None:
            self._waiting.append((frame, answer))
        else:
            channel.ask(frame, answer)
        try:
            async with asyncio.timeout(timeout_seconds):
                status, content = await answer
        except TimeoutError as error:
            for channel in self._open:
                if channel.answer is answer:
                    channel.abort()  # what it answers from now on would be taken for the answer to another batch
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

    def _opened(self, channel: "_Channel") -> None:
        self._open.append(channel)
        self._next(channel)

    def _next(self, channel: "_Channel") -> None:
        while self._waiting:
            frame, answer = self._waiting.popleft()
            if not answer.done():  # nobody waits for it any more
                channel.ask(frame, answer)
                return

    def _lost(self, channel: "_Channel") -> None:
        self._open.remove(channel)
        while self._waiting and not self._open:
            _, answer = self._waiting.popleft()
            if not answer.done():
                answer.set_exception(ConnectionResetError())


class _Channel(asyncio.Protocol):
    """One worker's connection. `on_open`, `on_idle` and `on_lost` are told of it."""

    def __init__(
        self,
        on_open: "Callable[[_Channel], None]",
        on_idle: "Callable[[_Channel], None]",
        on_lost: "Callable[[_Channel], None]",
    ) -> None:
        self._on_open = on_open
        self._on_idle = on_idle
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self.answer: _Answer | None = None  # to the batch this worker has

    def ask(self, frame: bytes, answer: _Answer) -> None:
        """Send a batch. `answer` gets the status and what follows it, or `ConnectionError`."""
        self.answer = answer
        if self._transport is not None:
            self._transport.writelines((REQUEST.pack(len(frame)), frame))

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
        if self.answer is None:
            self.abort()  # nothing was asked: whoever this is, it does not follow
            return
        self._received += data
        if len(self._received) < REPLY.size:
            return
        status, length = REPLY.unpack_from(self._received)
        if len(self._received) < REPLY.size + length:
            return
        content = bytes(memoryview(self._received)[REPLY.size : REPLY.size + length])
        self._received.clear()
        answer, self.answer = self.answer, None
        self._on_idle(self)  # first, so that the worker does not wait for what is done with its answer
        if not answer.done():
            answer.set_result((status, content))

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._transport = None
        self._on_lost(self)
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(ConnectionResetError())
