"""The worker protocol: what a gateway sends to a worker, and what the worker answers. No torch here.

In: a request frame, and a function that runs the module. Out: an answer frame. Never opens a connection. There are
three requests:

* **inline batch**: tensor `pixels` u8 [N, H, W, 3]. The answer holds the outputs, each with N rows.
* **batch in shared memory**: tensor `slots` i32 [N, 2] holds (index, generation) of slots in the file that meta
  `inputs` names. Meta `height` and `width` are the size of the pictures. Index -1 stands for the next row of `pixels`.
  With meta `output` and `generation`, the worker writes a frame with the outputs into that output slot, and meta
  `output_bytes` of the answer is the frame's length. Without them the answer holds the outputs.
* **handshake**: meta `hello` names a file, and meta `token` of the answer is the file's content. Meta `call` names a
  socket to which the worker connects, for later batches (see `handlers.gateway_connections`). If the worker cannot
  connect, meta `no_call` of the answer is the reason. As in the answer of a batch, the worker describes itself.

If the worker cannot use the shared memory, the answer holds only meta `refused`, the reason. The gateway then sends the
same batch inline. `handlers.contract.shm_layout` describes the slots.
"""

import struct
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from handlers.contract.frame import Array, FrameError, pack, pack_into, unpack
from handlers.contract.shm_layout import Memory, Refused

PIXELS = "pixels"
SLOTS = "slots"
HANDSHAKE = "hello"
INLINE_ROW = -1  # index of a picture without a slot

# A worker's own connection to a gateway carries one message at a time in each direction, little-endian.
REQUEST = struct.Struct("<I")  # gateway -> worker: u32 bytes, followed by the request frame
REPLY = struct.Struct("<BI")  # worker -> gateway: u8 status, u32 bytes, followed by the content
ANSWERED, FAILED = 0, 1  # status. Content: the answer frame, or the reason in UTF-8

Meta = Mapping[str, float | int | str]
Run = Callable[[Array | Sequence[Array]], Mapping[str, Array]]


def answer(
    request: bytes | bytearray,
    *,
    run: Run,
    memory: Memory,
    about: Meta,
    call: Callable[[str], None] | None = None,
    turn: AbstractContextManager[object] | None = None,
) -> bytes:
    """Answer one request frame.

    Args:
        request: the request frame.
        run: runs the module on the pictures, uint8: one array [N, H, W, 3] or a list of N arrays [H, W, 3].
        memory: the worker's view of the gateways' shared memory.
        about: added to the meta of every answer. Its `part` is the number of pictures that run at once.
        call: connects to a gateway's socket. Raises `Refused`. None: this worker does not connect.
        turn: a context that is entered around every batch.

    Raises:
        FrameError: the request is not a frame, or not one of the three requests.
        Exception: whatever `run` raises.
    """
    tensors, meta = unpack(request)
    try:
        if HANDSHAKE in meta:
            return _answer_handshake(meta, memory, about, call)
        with turn or nullcontext():
            if SLOTS in tensors:
                return _answer_shared(tensors, meta, run, memory, about)
            return _answer_inline(tensors, run, about)
    except Refused as refusal:
        return pack({}, {"refused": str(refusal)})


def _answer_handshake(
    meta: Mapping[str, Any], memory: Memory, about: Meta, call: Callable[[str], None] | None
) -> bytes:
    reply: dict[str, float | int | str] = {**about, "token": memory.token(str(meta[HANDSHAKE]))}
    if call is not None and "call" in meta:
        try:
            call(str(meta["call"]))
        except Refused as refusal:
            reply["no_call"] = str(refusal)
    return pack({}, reply)


def _answer_inline(tensors: Mapping[str, Array], run: Run, about: Meta) -> bytes:
    if set(tensors) != {PIXELS}:
        raise FrameError(f"a request frame holds the tensor {PIXELS!r}; this one holds {sorted(tensors)}")
    if not tensors[PIXELS].ndim or not tensors[PIXELS].size:  # a header may state a billion rows of no pixels
        raise FrameError(f"{PIXELS!r} of shape {list(tensors[PIXELS].shape)} has no pixels")
    results, timed = _timed(run, tensors[PIXELS], about)
    return pack(results, timed)


def _answer_shared(tensors: Mapping[str, Array], meta: Meta, run: Run, memory: Memory, about: Meta) -> bytes:
    slots = tensors[SLOTS]
    try:
        inputs, shape = str(meta["inputs"]), (int(meta["height"]), int(meta["width"]), 3)
        output, generation = str(meta.get("output", "")), int(meta.get("generation", 0))
    except (KeyError, ValueError, OverflowError) as error:
        raise Refused(f"the batch's description is incomplete: {error!r}") from error
    if slots.ndim != 2 or slots.shape[1] != 2 or slots.dtype != np.int32:
        raise Refused(f"slots are i32 [N, 2], not {slots.dtype} {list(slots.shape)}")
    carried = slots[:, 0] != INLINE_ROW
    rest = np.atleast_1d(tensors[PIXELS]) if PIXELS in tensors else np.empty(0, np.uint8)
    # Compared before the rows are listed: a header may state a billion rows of no pixels.
    if len(rest) != np.count_nonzero(~carried):
        raise Refused(f"{np.count_nonzero(~carried)} rows should come inline, not {len(rest)}")
    shared, inline = iter(memory.rows(inputs, slots[carried], shape)), iter(rest)
    results, timed = _timed(run, [next(shared if there else inline) for there in carried], about)
    memory.check(inputs, slots[carried])
    if not output:
        return pack(results, timed)
    with memory.output(output, generation) as buffer:
        try:
            written = pack_into(buffer, results, timed)
        except FrameError as error:
            raise Refused(str(error)) from error
    return pack({}, {"output_bytes": written})


def _timed(run: Run, rows: Array | Sequence[Array], about: Meta) -> tuple[Mapping[str, Array], Meta]:
    started = time.perf_counter()
    results = run(rows)
    return results, {"inference_seconds": time.perf_counter() - started, "batch": len(rows), **about}
