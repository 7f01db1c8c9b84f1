"""One call of the gateway: a request frame in, an answer frame out, whatever carried the pixels. No torch here.

* **inline**: tensor `pixels` u8 [N, H, W, 3]. The answer holds the outputs, N rows each.
* **shared memory**: tensor `slots` i32 [N, 2] (index, generation) of the input file meta `inputs`, pictures of meta
  `height` x `width`; index -1 stands for the next row of `pixels`. With meta `output` and `generation` a frame with the
  outputs lies in that file afterwards, meta `output_bytes` of the answer long; without, the answer holds them.
* **hello**: meta `hello` names a probe file; the answer's meta `token` is what is in it. Meta `call` names a socket
  that the worker calls back, for batches to come (see `handlers.channel`); the answer's `no_call` says why it cannot.

Whatever is wrong with the shared memory is answered with meta `refused`, the reason, and nothing else: the gateway then
sends the same batch inline. See `handlers.shm` for the slots.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from handlers.frame import Array, FrameError, pack, pack_into, unpack
from handlers.shm import Memory, Refused

PIXELS = "pixels"
SLOTS = "slots"
INLINE_ROW = -1  # index of a picture that found no slot

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
    """Answer one call. `run` gets the rows, uint8 (H, W, 3) each, as one array [N, H, W, 3] or as a list.

    `about` goes along with every batch's answer (its `part` is that of `handlers.execution`), `call` calls a gateway
    back, `turn` is held around every batch. Raises `FrameError`, and what `run` raises.
    """
    tensors, meta = unpack(request)
    try:
        if "hello" in meta:
            return _answer_hello(meta, memory, call)
        with turn or nullcontext():
            if SLOTS in tensors:
                return _answer_shared(tensors, meta, run, memory, about)
            return _answer_inline(tensors, run, about)
    except Refused as refusal:
        return pack({}, {"refused": str(refusal)})


def _answer_hello(meta: Mapping[str, Any], memory: Memory, call: Callable[[str], None] | None) -> bytes:
    said: dict[str, float | int | str] = {"token": memory.token(str(meta["hello"]))}
    if call is not None and "call" in meta:
        try:
            call(str(meta["call"]))
        except Refused as refusal:
            said["no_call"] = str(refusal)
    return pack({}, said)


def _answer_inline(tensors: Mapping[str, Array], run: Run, about: Meta) -> bytes:
    if set(tensors) != {PIXELS}:
        raise FrameError(f"a request frame holds the tensor {PIXELS!r}; this one holds {sorted(tensors)}")
    if not tensors[PIXELS].ndim:
        raise FrameError(f"{PIXELS!r} has no rows")
    results, timed = _timed(run, tensors[PIXELS], about)
    return pack(results, timed)


def _answer_shared(tensors: Mapping[str, Array], meta: Meta, run: Run, memory: Memory, about: Meta) -> bytes:
    slots = tensors[SLOTS]
    try:
        inputs, shape = str(meta["inputs"]), (int(meta["height"]), int(meta["width"]), 3)
        output, generation = str(meta.get("output", "")), int(meta.get("generation", 0))
    except (KeyError, ValueError, TypeError) as error:
        raise Refused(f"the batch's description is not whole: {error!r}") from error
    if slots.ndim != 2 or slots.shape[1] != 2 or slots.dtype != np.int32:
        raise Refused(f"slots are i32 [N, 2], not {slots.dtype} {list(slots.shape)}")
    carried = slots[:, 0] != INLINE_ROW
    rest = list(np.atleast_1d(tensors[PIXELS])) if PIXELS in tensors else []
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
