"""The entry point for TorchServe: request frame -> module -> answer frame. The archive's manifest names `handle`.

TorchServe calls `handle(None, context)` once while it loads the worker, and reports the worker READY when the call
returns. That call loads and warms the module. The gateway batches, so a request list always has exactly one entry,
`{"frame": bytes}`. A frame that cannot be read or does not fit the card raises, and TorchServe fails that one call.

Two failures end the process. TorchServe then starts another worker, and the gateway sends the batch again:

* The GPU was lost.
* A batch that came over a gateway connection takes longer than the operator allows. TorchServe does not know that
  batch, so it cannot end the worker.
"""

import faulthandler
import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from handlers import runtime
from handlers.contract import frame, worker_protocol
from handlers.contract.shm_layout import Memory
from handlers.gateway_connections import GatewayConnections

DEVICE_LOST_STATUS = 70  # the exit status, EX_SOFTWARE


class Worker:
    """The loaded module. Batches come from TorchServe's calls and over connections to gateways on this host."""

    def __init__(self, runner: runtime.Runner, options: runtime.RuntimeOptions) -> None:
        self._runner = runner
        self._memory = Memory(options.shm_dir)
        self._longest_seconds = options.batch_timeout_seconds
        self._about: worker_protocol.Meta = {
            "engine": runner.engine,
            "engines_refused": ",".join(runner.refused),
            "dtype": runner.dtype_name,
            "device": str(runner.device),
            "part": runner.micro_batch,
        }
        self._turn = threading.Lock()  # one batch at a time
        self._connections = GatewayConnections(self._from_connection)
        # Writes the stack of each thread, then the signal ends the process.
        faulthandler.register(signal.SIGALRM, file=2, chain=True)

    def answer(self, request: bytes | bytearray, *, turn: Any = None) -> bytes:
        """Answer one frame. Raises `FrameError`, `BatchError`, `ModuleRunError`; a lost device ends the process."""
        try:
            return worker_protocol.answer(
                request,
                run=self._runner.run,
                memory=self._memory,
                about=self._about,
                call=lambda name: self._connections.open(name, self._memory.connect),
                turn=turn or self._turn,
            )
        except runtime.DeviceLost:
            logging.getLogger(__name__).exception("this worker ends, so that another takes its place")
            logging.shutdown()
            os._exit(DEVICE_LOST_STATUS)  # an exception would fail this call and every later call

    def _from_connection(self, request: bytearray) -> bytes:
        return self.answer(request, turn=self._watched_turn())

    @contextmanager
    def _watched_turn(self) -> Iterator[None]:
        with self._turn:
            if self._longest_seconds is None:
                yield
                return
            # A timer of the kernel, because a batch may hang while it holds the interpreter's lock.
            signal.setitimer(signal.ITIMER_REAL, self._longest_seconds)
            try:
                yield
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)


_worker: Worker | None = None


def handle(data: list[dict[str, Any]] | None, context: Any) -> list[bytes] | None:  # `context` is TorchServe's, untyped
    """Load the module in the first call (`data` None), answer requests in later calls."""
    global _worker  # noqa: PLW0603 - TorchServe's function entry has no object to keep state in
    if data is None:
        options = runtime.RuntimeOptions.from_environment()
        properties = context.system_properties
        gpu = properties.get("gpu_id")
        runner = runtime.load(
            Path(properties["model_dir"]),
            gpu_id=None if gpu is None else int(gpu),
            options=options,
        )
        _worker = Worker(runner, options)
        # TorchServe's worker logs several lines per request through the root logger, and the JVM parses each line. The
        # module is loaded, so only warnings matter from now on.
        logging.getLogger().setLevel(logging.WARNING)
        return None
    if _worker is None:
        raise RuntimeError("this is a bug: a request came before the load call")
    try:
        return [_worker.answer(_frame_of(data))]
    except (frame.FrameError, runtime.BatchError) as error:
        raise _refusal(str(error), 400) from error
    except runtime.ModuleRunError as error:
        raise _refusal(str(error), 500) from error


def _frame_of(data: list[dict[str, Any]]) -> bytes | bytearray:
    if len(data) != 1:
        raise frame.FrameError(
            f"the gateway batches, so TorchServe's batchSize must be 1; this call has {len(data)} requests"
        )
    carried = data[0].get("frame")
    if not isinstance(carried, bytes | bytearray):
        raise frame.FrameError(f"a request carries bytes under 'frame'; this one has {sorted(data[0])}")
    return carried


def _refusal(message: str, http_status: int) -> Exception:
    """The exception whose message TorchServe passes on; any other becomes a bare "Prediction failed"."""
    try:
        from ts.utils.util import PredictionException  # noqa: PLC0415 - absent where the archive is checked bare
    except ImportError:
        return RuntimeError(message)
    refusal: Exception = PredictionException(message, http_status)
    return refusal
