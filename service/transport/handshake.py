"""The handshake with the workers of one model version: do the workers see this gateway's shared memory?

In: shared memory, a runner, and events (a worker was lost, failed, or refused a batch). Out: `shared`, whether batches
may travel in shared memory now. Runs in the background and never delays a batch: until a handshake succeeded, and after
a failure, batches travel inline.

One question is a request frame with meta `hello`, sent through the engine like a batch. The worker reads a random token
from the gateway's directory and must find the token's file locked by the gateway. The question also asks the worker to
connect to the gateway (see `worker_connections`). With several workers the engine chooses which worker answers, so the
question is repeated until every worker has connected.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

from handlers.contract.card import Card
from handlers.contract.frame import FrameError, pack, unpack
from handlers.contract.worker_protocol import HANDSHAKE
from service.core.errors import BackendFault, BackendTimeout, BackendUnavailable
from service.transport.runner import Runner
from service.transport.shm_region import ShmRegion
from service.transport.worker_connections import WorkerConnections

RETRY_SECONDS = 5.0  # doubled after every attempt that did not complete
RETRY_MOST_SECONDS = 300.0
QUESTION_TIMEOUT_SECONDS = 2.0

_log = logging.getLogger(__name__)


class Handshake:
    """Decides whether batches of one model version travel in shared memory. For one event loop.

    `on_answer` is called with the meta of each worker's answer: the worker also says what it computes with.
    """

    def __init__(
        self,
        *,
        card: Card,
        runner: Runner,
        region: ShmRegion,
        connections: WorkerConnections,
        clock: Callable[[], float],
        on_answer: Callable[[Mapping[str, Any]], object] = lambda meta: None,
    ) -> None:
        self._card = card
        self._runner = runner
        self._region = region
        self._connections = connections
        self._clock = clock
        self._on_answer = on_answer
        self._wake = asyncio.Event()
        self._attempt_at = clock()  # not before
        self._failed_at = clock()
        self._retry_seconds = RETRY_SECONDS
        self._unanswered = False  # no worker answered the last question
        self._why_inline: str | None = ""  # None while shared memory is in use
        self._why_no_call = ""

    @property
    def shared(self) -> bool:
        """Whether batches may travel in shared memory now."""
        return self._why_inline is None

    @property
    def complete(self) -> bool:
        """Whether nothing is left to ask: shared memory is in use and every worker has connected."""
        return self.shared and self._connections.complete

    async def run(self) -> None:
        """Attempt handshakes for ever: when one is due and the last one is not complete."""
        while True:
            self._wake.clear()
            wait_seconds = None if self.complete else self._attempt_at - self._clock()
            if wait_seconds is not None and wait_seconds <= 0:
                await self.attempt()
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_seconds):
                    await self._wake.wait()

    async def attempt(self) -> None:
        """Ask the workers once, in `QUESTION_TIMEOUT_SECONDS` per question at most."""
        self._attempt_at = self._clock() + self._retry_seconds
        self._retry_seconds = min(2 * self._retry_seconds, RETRY_MOST_SECONDS)
        for _ in range(2 * self._connections.wanted):  # TorchServe gives questions to idle workers in turn
            if not await self._ask() or self.complete:
                return

    def wake(self) -> None:
        """Look again whether a handshake is due: the number of workers or the clock changed."""
        self._wake.set()

    def connection_lost(self) -> None:
        """A worker's connection ended. The worker needs some seconds to start again."""
        self._retry_later()

    def worker_failed(self, why: str) -> None:
        """A worker lost, refused or did not answer a batch in shared memory. The next batches travel inline.

        With several workers, another worker than this one may have answered the last handshake.
        """
        self._go_inline(why)

    def inline_batch_answered(self) -> None:
        """A batch was answered inline. If no worker was there for the last question, one is there now."""
        if self._unanswered:
            self._unanswered = False
            self._retry_seconds = RETRY_SECONDS
            self._attempt_at = min(self._attempt_at, self._failed_at + RETRY_SECONDS)
            self.wake()

    async def _ask(self) -> bool:
        """Ask one worker. Returns whether it makes sense to ask another worker now."""
        region = self._region
        question = pack({}, {HANDSHAKE: region.probe_name, "call": region.calls_name})
        try:
            answer = await self._runner.infer(
                self._card.name, question, version=self._card.version, timeout_seconds=QUESTION_TIMEOUT_SECONDS
            )
            _, meta = unpack(answer)
        except (BackendUnavailable, BackendTimeout) as error:
            self._unanswered = True
            self._go_inline(str(error))
            return False
        except (BackendFault, FrameError) as error:
            self._go_inline(f"its worker was not built for shared memory, so rebuild the archive ({error})")
            return False
        self._unanswered = False
        self._on_answer(meta)
        if meta.get("token") != region.token:
            self._go_inline(str(meta.get("refused", "its worker reads another token")))
            return False
        if not self.shared:
            self._why_inline = None
            region.inputs.offered = True
            _log.info("model %s: batches travel in shared memory", self._card.name, extra={"model": self._card.name})
        await asyncio.sleep(0)  # lets the event loop accept a connection that was made meanwhile
        if self.complete:
            self._retry_seconds = RETRY_SECONDS
        self._log_no_call(str(meta.get("no_call", "")))
        return True

    def _go_inline(self, why: str) -> None:
        if why != self._why_inline:
            _log.info("model %s: batches travel inline: %s", self._card.name, why, extra={"model": self._card.name})
        self._why_inline = why
        self._region.inputs.offered = False
        self._retry_later()

    def _retry_later(self) -> None:
        self._failed_at = self._clock()
        self._attempt_at = max(self._attempt_at, self._failed_at + RETRY_SECONDS)
        self.wake()

    def _log_no_call(self, why: str) -> None:
        if why and why != self._why_no_call:
            text = "model %s: batches go through the engine, a worker cannot connect to the gateway: %s"
            _log.warning(text, self._card.name, why, extra={"model": self._card.name})
        self._why_no_call = why
