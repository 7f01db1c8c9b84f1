"""The targets of `benchmarks.hold.fuzz`, by name. Importing this module imports none of the parsers."""

import contextlib
import json
import os
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.hold.fuzz import checkpoint_files, hostile_pictures
from benchmarks.hold.fuzz.target import MIB, Target

DECODE_BYTES = 64 * MIB  # of `Limits.max_decode_bytes` in the target


def _decode() -> Callable[[bytes], None]:
    from handlers.contract.card import InputSize, Preprocess
    from service.preprocess.image import decode
    from service.preprocess.limits import Limits

    limits = Limits(
        max_bytes=4 * MIB, max_pixels=16_000_000, max_decode_bytes=DECODE_BYTES, max_decode_pixels=250_000_000
    )
    ways = (
        (InputSize(height=64, width=64), Preprocess(mode="squash")),
        (InputSize(height=64, width=48), Preprocess(mode="crop", shorter_side_px=72)),
        (InputSize(height=64, width=64), Preprocess(mode="squash", antialias=False)),
        (InputSize(height=48, width=64), Preprocess(mode="crop", shorter_side_px=32, antialias=False)),
    )

    def run(content: bytes) -> None:
        size, preprocess = ways[len(content) % len(ways)]
        reserved: list[int] = []
        decoded = decode(content, size=size, preprocess=preprocess, limits=limits, reserve=reserved.append)
        geometry = decoded.geometry
        if decoded.pixels.shape != (size.height, size.width, 3) or decoded.pixels.dtype != "uint8":
            raise AssertionError(f"pixels {decoded.pixels.shape} {decoded.pixels.dtype}")
        if not (geometry.x0 < geometry.x1 and geometry.y0 < geometry.y1 and len(reserved) == 1):
            raise AssertionError(f"{geometry}, reserved {reserved}")

    return run


def _decode_errors() -> tuple[type[Exception], ...]:
    from service.core.errors import InvalidImage

    return (InvalidImage,)


def _frame() -> Callable[[bytes], None]:
    from handlers.contract.frame import pack, unpack

    def run(content: bytes) -> None:
        tensors, meta = unpack(content)
        pack(tensors, meta)  # what can be read can be written

    return run


def _frame_errors() -> tuple[type[Exception], ...]:
    from handlers.contract.frame import FrameError

    return (FrameError,)


def frame_of(header: object, data: bytes = b"") -> bytes:
    """Return a frame with any header."""
    text = json.dumps(header).encode()
    return (struct.pack("<4sI", b"MVF1", len(text)) + text).ljust((8 + len(text) + 63) // 64 * 64, b" ") + data


def frame_seeds() -> Iterator[bytes]:
    """Frames of each request, and headers that lie."""

    def tensor(
        name: object = "pixels", dtype: object = "uint8", shape: object = (1, 2, 2, 3), offset: object = 0
    ) -> Any:
        return {"name": name, "dtype": dtype, "shape": shape, "offset": offset}

    shared = {"inputs": "mobilevision-shm-a/in", "height": 2, "width": 2}
    slots = tensor("slots", "int32", [1, 2])
    yield frame_of({"tensors": [tensor()], "meta": {}}, bytes(12))
    yield frame_of({"tensors": [slots], "meta": shared}, struct.pack("<ii", 0, 1))
    written = {"output": "mobilevision-shm-a/out", "generation": 1}
    yield frame_of({"tensors": [slots], "meta": shared | written}, struct.pack("<ii", 0, 1))
    yield frame_of({"tensors": [], "meta": {"hello": "mobilevision-shm-a/hello"}})
    yield frame_of({"tensors": [tensor("x", "float32", [2, 3])], "meta": {"a": 1, "b": 0.5, "c": "d"}}, bytes(24))
    inline = struct.pack("<ii", -1, 0)
    yield frame_of({"tensors": [slots, tensor(offset=64)], "meta": shared}, inline.ljust(64, b"\0") + bytes(12))
    # Headers that lie.
    meta: Any
    header: Any
    name: Any
    for meta in ([], 5, None, "hello", ["hello"], "inputs height width", {"hello": ["x"]}, {"a": {"b": []}}):
        yield frame_of({"tensors": [slots], "meta": meta}, inline)
    for meta in ({"height": 1e999}, {"height": "1" * 5000}, {"generation": 10**30}, {"output": 5}, {"height": None}):
        yield frame_of({"tensors": [slots], "meta": shared | written | meta}, inline)
    for shape in (
        [],
        [-1],
        [-1, 3],
        [0],
        [10**9, 0],
        [2**70, 0],
        [1] * 70,
        [1.5],
        ["a"],
        [[1]],
        5,
        None,
        [True],
        [12, -1],
    ):
        yield frame_of({"tensors": [tensor(shape=shape)], "meta": {}}, bytes(12))
        yield frame_of({"tensors": [slots, tensor(shape=shape, offset=64)], "meta": shared}, inline.ljust(64, b"\0"))
    for offset in (-1, -64, 1, 2**70, 1e999, "0", None, 12):
        yield frame_of({"tensors": [tensor(offset=offset)], "meta": {}}, bytes(12))
    for name in (5, None, [], {}, "", "a" * 5000, True):
        yield frame_of({"tensors": [tensor(name=name), tensor()], "meta": {}}, bytes(12))
    for header in ([], 5, None, {}, {"tensors": 5}, {"tensors": {}}, {"tensors": ["a"]}, {"tensors": [], "meta": None}):
        yield frame_of(header)
    deep = b"[" * 50_000
    yield struct.pack("<4sI", b"MVF1", len(deep)) + deep
    for length in (0, 1, 2**31, 2**32 - 1):
        yield struct.pack("<4sI", b"MVF1", length) + b"{}"


def _worker() -> Callable[[bytes], None]:
    import numpy as np

    from handlers.contract.frame import unpack
    from handlers.contract.shm_layout import Memory, Refused, SlotFile
    from handlers.contract.worker_protocol import answer

    base = Path(tempfile.mkdtemp(prefix="mobilevision-fuzz-"))
    folder = base / "mobilevision-shm-a"
    folder.mkdir(mode=0o700)
    for name, slot_bytes in (("in", 12), ("out", 4096)):
        file = SlotFile.create(folder / name, slots=2, slot_bytes=slot_bytes)
        file.reserve(0)
        file.renew(0)
    (folder / "hello").write_text("token")
    memory = Memory(base)

    def call(name: str) -> None:
        raise Refused("no gateway listens here")

    def predict(rows: Any) -> dict[str, Any]:
        if len(rows) > 64:  # as the runtime splits batches, a real module would run out of memory or refuse
            raise ModelRefused
        return {"scores": np.zeros((len(rows), 3), np.float32)}

    def run(content: bytes) -> None:
        with contextlib.suppress(ModelRefused):
            unpack(answer(content, run=predict, memory=memory, about={"part": 16}, call=call))

    return run


class ModelRefused(Exception):
    """The toy module of the worker target refuses the batch."""


def _layout() -> Callable[[bytes], None]:
    from handlers.contract.shm_layout import SlotFile

    def run(content: bytes) -> None:
        descriptor = os.memfd_create("slots")
        # The first 8 bytes are the length of the file: hostile lengths must not need that many bytes.
        size = int.from_bytes(content[:8].ljust(8, b"\0"), "little") % (2**40) or len(content)
        os.ftruncate(descriptor, size)
        os.pwrite(descriptor, content[8:][:size], 0)
        file = SlotFile.of_descriptor(descriptor, writable=False)
        try:
            for index in (0, file.slots - 1):
                if len(file.slot(index)) != file.slot_bytes:
                    raise AssertionError("a slot of another size")
            int(file.generations[0])
        finally:
            file.close()

    return run


def _layout_errors() -> tuple[type[Exception], ...]:
    from handlers.contract.shm_layout import Refused

    return (Refused, OSError)  # OSError: the file is too long for the address space or the kernel


def layout_seeds() -> Iterator[bytes]:
    """Slot files of several sizes, some of which state more than they have."""
    for slots, slot_bytes, size in (
        (1, 1, 8192), (2, 12, 12288), (2, 5000, 20480), (2**32 - 1, 2**63, 8192), (0, 0, 4096), (1, 2**40, 2**40),
        (2**32 - 1, 1, 8192), (1, 2**64 - 1, 4096),
    ):  # fmt: skip
        yield struct.pack("<Q4sIQi", size, b"MVS1", slots, slot_bytes, 1)


def _card() -> Callable[[bytes], None]:
    from pydantic import ValidationError

    from handlers.contract.card import Card

    folder = Path(tempfile.mkdtemp(prefix="mobilevision-fuzz-"))
    path = folder / "a.card.json"

    def run(content: bytes) -> None:
        path.write_bytes(content)
        card = Card.read(path)
        path.write_text(card.to_json())
        try:
            again = Card.read(path)
        except ValidationError as error:
            raise AssertionError("a card that was read cannot be written and read again") from error
        if again != card:
            raise AssertionError("the card changed when it was written")

    return run


def _card_errors() -> tuple[type[Exception], ...]:
    from pydantic import ValidationError

    return (OSError, ValidationError)


_CARD = {
    "name": "toy", "task": "classify", "family": "toy", "variant": "t", "head": "none", "paper": "none",
    "input": {"height": 32, "width": 32}, "preprocess": {"mode": "crop", "shorter_side_px": 40},
    "normalize": {"channel_order": "BGR", "mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]}, "labels": ["a", "b"],
    "outputs": [{"name": "scores", "dtype": "float32", "shape": [2]}], "parameters": 1, "macs": 1,
    "weights": {"state": "random", "source": "0", "sha256": "0" * 64, "published": {"top1": 69.0}},
    "parity": {"scripted_max_abs_diff": 0, "reloaded_max_abs_diff": 0, "batch_row_max_abs_diff": 0},
    "bfloat16": {"metric": "top1", "pictures": 4, "agreement": 1, "score_max_abs_diff": 0}, "module_sha256": "0" * 64,
}  # fmt: skip


def card_seeds() -> Iterator[bytes]:
    """A card, and cards with one wrong value each."""
    yield json.dumps(_CARD).encode()
    value: Any
    for key in _CARD:
        for value in (None, [], {}, "x" * 10_000, 10**30, -1, float("nan"), float("inf"), "\ud800"):
            yield json.dumps(_CARD | {key: value}).encode()
    for normalize in ({"mean": [float("nan")] * 3}, {"std": [float("inf")] * 3}, {"mean": [1e308 * 10, 0, 0]}):
        yield json.dumps(_CARD | {"normalize": normalize}).encode()
    yield b"[" * 50_000
    yield json.dumps(_CARD).encode("utf-16")


def _rollout() -> Callable[[bytes], None]:
    from service.serving.rollout_spec import parse

    def run(content: bytes) -> None:
        parse(content, Path("rollout.json"))

    return run


def _rollout_errors() -> tuple[type[Exception], ...]:
    from service.serving.rollout_spec import RolloutError

    return (RolloutError,)


def rollout_seeds() -> Iterator[bytes]:
    """Roll-out files, right and wrong."""
    entry = {"stable": "1.0", "candidate": "1.1", "weight": 0.1, "shadow": 0.05, "previous": "0.9"}
    yield json.dumps({"a": entry}).encode()
    value: Any
    for key in entry:
        for value in (None, [], -1, float("nan"), "1.0" * 1000, True, "1.0\n", "\u0661.0"):
            yield json.dumps({"a": entry | {key: value}}).encode()
    yield b"{" + b'"a":{' * 50_000


def _masks() -> Callable[[bytes], None]:
    import numpy as np

    from service.core.types import Geometry
    from service.frontends import masks

    def run(content: bytes) -> None:
        head = content[:24].ljust(24, b"\0")
        width, height, rows, columns, *edges = struct.unpack("<HHBB4hxx8x", head)
        width, height, rows, columns = width % 2000 + 1, height % 2000 + 1, rows % 33 + 1, columns % 33 + 1
        x0, y0 = edges[0] / 16, edges[1] / 16
        # As decoding makes them: the input covers some of the picture, and may reach past it.
        geometry = Geometry(
            width_px=width, height_px=height, x0=x0, y0=y0,
            x1=x0 + abs(edges[2]) / 8 + 0.01, y1=y0 + abs(edges[3]) / 8 + 0.01,
        )  # fmt: skip
        filled = (content[24:] or b"\0") * (rows * columns)
        classes = np.frombuffer(filled[: rows * columns], np.uint8).reshape(rows, columns)
        placement = masks.Placement.of(geometry, classes.shape)
        area = placement.area_px(classes)
        masks.mask_png(classes, placement)
        masks.confidence_png(classes, geometry)
        present = np.flatnonzero(area).tolist()
        encoded = masks.rle_by_class(classes, placement, present)
        if sorted(encoded) != sorted(present) or not (0 <= area.sum() <= width * height):
            raise AssertionError(f"{geometry}: classes {present}, area {area.sum()}")

    return run


def mask_seeds() -> Iterator[bytes]:
    """Geometries inside, around and beside the picture."""
    for width, height, rows, columns, *edges in (
        (64, 48, 7, 7, 0, 0, 512, 384), (1, 1, 0, 0, 0, 0, 8, 8), (1999, 0, 31, 31, -800, 0, 32000, 8),
        (10, 10, 3, 3, 8000, 8000, 1, 1), (10, 10, 3, 3, -8000, -8000, 1, 1), (1999, 1999, 31, 0, 3, 5, 1, 32767),
    ):  # fmt: skip
        yield struct.pack("<HHBB4hxx8x", width, height, rows, columns, *edges) + bytes(range(64))


def _checkpoint() -> Callable[[bytes], None]:
    import torch

    from model_store.weights.container import read
    from model_store.weights.layouts.base import Layout
    from model_store.weights.load import load

    return checkpoint_files.runner(
        torch, lambda path: read(path).state, load, Layout(name="fuzz", summary="as it is", rules=())
    )


def _checkpoint_errors() -> tuple[type[Exception], ...]:
    from model_store.weights.errors import CheckpointError

    return (CheckpointError,)


def _none() -> tuple[type[Exception], ...]:
    return ()


TARGETS = {
    target.name: target
    for target in (
        Target(
            "decode", _decode, hostile_pictures.seeds, _decode_errors, DECODE_BYTES + 64 * MIB, ("PIL", "service.preprocess"),
        ),
        Target("frame", _frame, frame_seeds, _frame_errors, 64 * MIB, ("handlers.contract",)),
        Target("worker_protocol", _worker, frame_seeds, _frame_errors, 64 * MIB, ("handlers.contract",)),
        Target("shm_layout", _layout, layout_seeds, _layout_errors, 64 * MIB, ("handlers.contract",)),
        Target("card", _card, card_seeds, _card_errors, 64 * MIB, ("handlers.contract",)),
        Target("rollout", _rollout, rollout_seeds, _rollout_errors, 64 * MIB, ("service.serving",)),
        Target("masks", _masks, mask_seeds, _none, 96 * MIB, ("service.frontends",)),
        Target("checkpoint", _checkpoint, checkpoint_files.seeds, _checkpoint_errors, 256 * MIB, ("model_store.weights",)),
    )
}  # fmt: skip
