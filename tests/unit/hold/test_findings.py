"""What fuzzing found, each as a test of its own beside the parser that was mended."""

import json
import logging
from pathlib import Path

import pytest
import torch
from fakes import toy_card
from pydantic import ValidationError

from benchmarks.hold.fuzz.targets import frame_of
from handlers.contract.card import Card
from handlers.contract.frame import FrameError, unpack
from model_store.weights import container
from model_store.weights.errors import CheckpointError
from model_store.weights.layouts.base import Layout
from service.core import logs
from service.core.settings.limits import LimitSettings

PLAIN = Layout(name="plain", summary="as it is", rules=())
MOST_GRPC_BYTES = 2**31 - 1


@pytest.mark.parametrize("meta", [[], 5, None, "hello", {"a": None}, {"a": []}], ids=str)
def test_metadata_of_a_frame_are_numbers_and_texts(meta: object) -> None:
    with pytest.raises(FrameError):
        unpack(frame_of({"tensors": [], "meta": meta}))


@pytest.mark.parametrize(
    "entry", [{"name": 5}, {"shape": [-1]}, {"shape": [-1, 3]}, {"shape": [1] * 40}, {"shape": [2**70, 0]}], ids=str
)
def test_a_tensor_has_a_name_and_a_shape(entry: dict[str, object]) -> None:
    tensor = {"name": "x", "dtype": "uint8", "shape": [12], "offset": 0}
    assert unpack(frame_of({"tensors": [tensor], "meta": {}}, bytes(12)))[0]["x"].shape == (12,)
    with pytest.raises(FrameError):
        unpack(frame_of({"tensors": [tensor | entry], "meta": {}}, bytes(12)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_card_holds_only_numbers_that_json_can_hold(tmp_path: Path, value: float) -> None:
    content = json.loads(toy_card().to_json())
    content["normalize"]["mean"] = [value, 0, 0]
    (tmp_path / "card").write_text(json.dumps(content))
    with pytest.raises(ValidationError):
        Card.read(tmp_path / "card")


@pytest.mark.parametrize("name", ["meta", "quantized", "sparse"])
@pytest.mark.filterwarnings("ignore")
def test_a_tensor_that_is_not_plain_is_refused(tmp_path: Path, name: str) -> None:
    tensor = {
        "meta": lambda: torch.ones(2, 3, device="meta"),
        "quantized": lambda: torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.quint8),
        "sparse": lambda: torch.ones(2, 3).to_sparse(),
    }[name]()
    torch.save({"weight": tensor, "bias": torch.zeros(2)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"only plain \(dense\)|plain tensors|damaged"):
        container.read(tmp_path / "a.pt")


def test_a_few_bytes_that_state_terabytes_are_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1).expand(2**40), "bias": torch.zeros(2)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="larger than the bytes"):
        container.read(tmp_path / "a.pt")


def test_the_largest_picture_fits_into_a_message_of_grpc() -> None:
    field = LimitSettings.model_fields["max_image_bytes"]
    (most,) = (limit.le for limit in field.metadata if hasattr(limit, "le"))
    assert 2 * most + 2**20 <= MOST_GRPC_BYTES


def test_what_callers_do_to_grpc_is_not_logged_with_a_traceback() -> None:
    record = logging.LogRecord("grpc._cython.cygrpc", logging.ERROR, "", 0, "Invalid encoding on %s", (b"\xff",), None)
    assert not logs._not_about_callers(record)
    assert logs._not_about_callers(logging.LogRecord("grpc", logging.ERROR, "", 0, "Unexpected %s", ("x",), None))
