from pathlib import Path
from typing import Any

import numpy as np
import pytest

from handlers.contract import worker_protocol
from handlers.contract.frame import FrameError, pack, unpack
from handlers.contract.shm_layout import Memory, SlotFile

FOLDER = "mobilevision-shm-test"
SHAPE = (2, 4, 3)


class Bench:
    """Four input slots with pictures of shades 10 to 13, one output slot, and a worker that answers the means."""

    def __init__(self, base: Path) -> None:
        folder = base / FOLDER
        folder.mkdir(mode=0o700)
        self.inputs = SlotFile.create(folder / "m.inputs", slots=4, slot_bytes=24)
        self.output = SlotFile.create(folder / "m.output-0", slots=1, slot_bytes=4096)
        self.output.reserve(0)
        for index in range(4):
            self.inputs.reserve(index)
            self.inputs.slot(index)[:] = 10 + index
        self.generations = [self.inputs.renew(index) for index in range(4)]
        self.memory = Memory(base)
        self.on_run = lambda: None

    def meta(self, **changes: Any) -> dict[str, Any]:
        meta = {"inputs": f"{FOLDER}/m.inputs", "height": 2, "width": 4} | changes
        return {name: value for name, value in meta.items() if value is not None}

    def slots(self, *indices: int) -> np.ndarray:
        return np.array([(i, self.generations[i] if i >= 0 else 0) for i in indices], np.int32)

    def answer(self, tensors: dict[str, Any], meta: dict[str, Any] | None = None) -> tuple[dict[str, Any], Any]:
        def run(rows):
            means = np.array([row.mean() for row in rows], np.float32)
            self.on_run()
            return {"means": means}

        request = pack(tensors, meta)
        return unpack(worker_protocol.answer(request, run=run, memory=self.memory, about={"device": "toy"}))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_pixels_in_the_call_are_answered_in_the_call(bench: Bench) -> None:
    tensors, meta = bench.answer({"pixels": np.full((2, *SHAPE), 7, np.uint8)})
    assert tensors["means"].tolist() == [7, 7]
    assert (meta["batch"], meta["device"]) == (2, "toy")
    assert meta["inference_seconds"] >= 0


def test_slots_and_inline_rows_keep_their_order(bench: Bench) -> None:
    inline = np.stack([np.full(SHAPE, shade, np.uint8) for shade in (90, 91)])
    tensors, _ = bench.answer({"slots": bench.slots(2, -1, 0, -1), "pixels": inline}, bench.meta())
    assert tensors["means"].tolist() == [12, 90, 10, 91]


def test_the_answer_lies_in_the_output_slot_where_there_is_one(bench: Bench) -> None:
    output = {"output": f"{FOLDER}/m.output-0", "generation": bench.output.renew(0)}
    tensors, meta = bench.answer({"slots": bench.slots(3, 1)}, bench.meta(**output))
    assert tensors == {}
    written, about = unpack(bench.output.slot(0).data[: meta["output_bytes"]])
    assert written["means"].tolist() == [13, 11]
    assert about["batch"] == 2


HOSTILE = {
    "a slot that is not there": ({"slots": [[4, 1]]}, {}),
    "another generation": ({"slots": [[0, 2]]}, {}),
    "a negative slot": ({"slots": [[-7, 1]]}, {}),
    "a flat list": ({"slots": [0, 1]}, {}),
    "three columns": ({"slots": [[0, 1, 0]]}, {}),
    "no inputs": ({"slots": [[0, 1]]}, {"inputs": None}),
    "a foreign path": ({"slots": [[0, 1]]}, {"inputs": "/etc/passwd"}),
    "a parent path": ({"slots": [[0, 1]]}, {"inputs": f"{FOLDER}/../{FOLDER}/m.inputs"}),
    "no height": ({"slots": [[0, 1]]}, {"height": None}),
    "a height that is a word": ({"slots": [[0, 1]]}, {"height": "two"}),
    "a negative size": ({"slots": [[0, 1]]}, {"height": -2, "width": -4}),
    "a size of another model": ({"slots": [[0, 1]]}, {"height": 4}),
    "an inline row too few": ({"slots": [[0, 1], [-1, 0]]}, {}),
    "an output that is not there": ({"slots": [[0, 1]]}, {"output": f"{FOLDER}/m.output-9", "generation": 1}),
    "an output of another batch": ({"slots": [[0, 1]]}, {"output": f"{FOLDER}/m.output-0", "generation": 77}),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_description_that_cannot_be_right_is_refused_and_nothing_written(bench: Bench, case: str) -> None:
    tensors, changes = HOSTILE[case]
    bench.output.renew(0)
    before = bench.output.slot(0).tobytes(), bench.inputs.slot(0).tobytes()
    answered, meta = bench.answer({k: np.array(v, np.int32) for k, v in tensors.items()}, bench.meta(**changes))
    assert answered == {}
    assert set(meta) == {"refused"}
    assert before == (bench.output.slot(0).tobytes(), bench.inputs.slot(0).tobytes())


def test_a_slot_reused_while_the_model_runs_is_noticed(bench: Bench) -> None:
    output = {"output": f"{FOLDER}/m.output-0", "generation": bench.output.renew(0)}
    bench.on_run = lambda: bench.inputs.renew(1)
    _, meta = bench.answer({"slots": bench.slots(0, 1)}, bench.meta(**output))
    assert "late" in meta["refused"]
    assert not bench.output.slot(0).any()


def test_an_output_slot_reused_while_the_model_runs_is_not_written(bench: Bench) -> None:
    output = {"output": f"{FOLDER}/m.output-0", "generation": bench.output.renew(0)}
    bench.on_run = lambda: bench.output.renew(0)
    _, meta = bench.answer({"slots": bench.slots(0, 1)}, bench.meta(**output))
    assert "late" in meta["refused"]
    assert not bench.output.slot(0).any()


def test_a_frame_without_pixels_is_no_request(bench: Bench) -> None:
    with pytest.raises(FrameError, match="holds the tensor 'pixels'"):
        bench.answer({"pixel": np.zeros((1, *SHAPE), np.uint8)})
    for shape in ((), (0, *SHAPE), (10**9, 0)):
        with pytest.raises(FrameError, match="no pixels"):
            bench.answer({"pixels": np.zeros(shape, np.uint8)})
