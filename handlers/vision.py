"""TorchServe's entry: request frame in -> module -> answer frame out. The function `handle` is named by the manifest.

TorchServe calls `handle(None, context)` once while it loads the worker, and reports the worker READY when that call
returns; the module is loaded and warmed there. The gateway batches, so a request list always has exactly one entry:
`{"frame": bytes}`. A frame that cannot be read or does not fit the card raises, and TorchServe refuses that one call.
A lost GPU ends the process: TorchServe starts another, and the gateway sends the batch again. So does a batch that came
by a channel and takes longer than the operator allows: of that one TorchServe knows nothing, and would not end it.
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

from handlers import exchange, frame, runtime
from handlers.channel import Channels
from handlers.shm import Memory

DEVICE_LOST_STATUS = 70  # the exit status, EX_SOFTWARE


class Worker:
    """The loaded module and the ways to it: TorchServe's calls, and the channels of gateways on this host."""

    def __init__(self, runner: runtime.Runner, options: runtime.RuntimeOptions) -> None:
        self._runner = runner
        self._memory = Memory(options.shm_dir)
        self._longest_seconds = options.batch_timeout_seconds
        self._about: exchange.Meta = {"dtype": runner.dtype_name, "device": str(runner.device), "part": runner.part}
        self._free = threading.Lock()  # one batch at a time, whichever way it came
        self._channels = Channels(self._from_channel)
        # Says where each thread is, then lets the signal end the process.
        faulthandler.register(signal.SIGALRM, file=2, chain=True)

    def answer(self, request: bytes | bytearray, *, turn: Any = None) -> bytes:
        """Answer one frame. Raises `FrameError`, `BatchError`, `ModuleRunError`; a lost device ends the process."""
        try:
            return exchange.answer(
                request,
                run=self._runner.run,
                memory=self._memory,
                about=self._about,
                call=lambda name: self._channels.open(name, self._memory.connect),
                turn=turn or self._free,
            )
        except runtime.DeviceLost:
            logging.getLogger(__name__).exception("this worker ends, so that another takes its place")
            logging.shutdown()
            os._exit(DEVICE_LOST_STATUS)  # an exception would only fail this call, and every call after it

    def _from_channel(self, request: bytearray) -> bytes:
        return self.answer(request, turn=self._watched_turn())

    @contextmanager
    def _watched_turn(self) -> Iterator[None]:
        with self._free:
            if self._longest_seconds is None:
                yield
                return
            # Outside Python: a batch may hang with the interpreter's lock.
            signal.setitimer(signal.ITIMER_REAL, self._longest_seconds)
            try:
                yield
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)


_worker: Worker | None = None


def handle(data: list[dict[str, Any]] | None, context: Any) -> list[bytes] | None:  # `context` is TorchServe's, untyped
    """Load on the first call (data None), answer afterwards."""
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
        # TorchServe's worker logs several lines per request through the root logger, each a write to a pipe that the
        # JVM parses. Loading is over, so only warnings matter from here on.
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
        raise frame.FrameError(f"the gateway batches, so TorchServe's batchSize is 1; this call has {len(data)}")
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
