"""TorchServe's entry: request frame in -> module -> answer frame out. The function `handle` is named by the manifest.

TorchServe calls `handle(None, context)` once while it loads the worker, and reports the worker READY when that call
returns; the module is loaded and warmed there. The gateway batches, so a request list always has exactly one entry:
`{"frame": bytes}`. A frame that cannot be read or does not fit the card raises, and TorchServe refuses that one call.
A lost GPU ends the process: TorchServe starts another, and the gateway sends the batch again.
"""

import logging
import os
from pathlib import Path
from typing import Any

from handlers import exchange, frame, runtime, shm

DEVICE_LOST_STATUS = 70  # the exit status, EX_SOFTWARE

_runner: runtime.Runner | None = None
_memory = shm.Memory(None)


def handle(data: list[dict[str, Any]] | None, context: Any) -> list[bytes] | None:  # `context` is TorchServe's, untyped
    """Load on the first call (data None), answer afterwards."""
    global _runner, _memory  # noqa: PLW0603 - TorchServe's function entry has no object to keep state in
    if data is None:
        options = runtime.RuntimeOptions.from_environment()
        _memory = shm.Memory(options.shm_dir)
        properties = context.system_properties
        gpu = properties.get("gpu_id")
        _runner = runtime.load(
            Path(properties["model_dir"]),
            gpu_id=None if gpu is None else int(gpu),
            options=options,
        )
        # TorchServe's worker logs several lines per request through the root logger, each a write to a pipe that the
        # JVM parses. Loading is over, so only warnings matter from here on.
        logging.getLogger().setLevel(logging.WARNING)
        return None
    if _runner is None:
        raise RuntimeError("this is a bug: a request came before the load call")
    try:
        about = {"dtype": _runner.dtype_name, "device": str(_runner.device)}
        return [exchange.answer(_frame_of(data), run=_runner.run, memory=_memory, about=about)]
    except (frame.FrameError, runtime.BatchError) as error:
        raise _refusal(str(error), 400) from error
    except runtime.ModuleRunError as error:
        raise _refusal(str(error), 500) from error
    except runtime.DeviceLost:
        logging.getLogger(__name__).exception("this worker ends, so that another takes its place")
        logging.shutdown()
        os._exit(DEVICE_LOST_STATUS)  # an exception would only fail this call, and every call after it


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
