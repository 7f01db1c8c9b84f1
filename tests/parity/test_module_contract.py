"""The module contract: eager = scripted = saved and reloaded; a row of a batch = the picture alone; padding inert."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from handlers.contract.card import InputSize, Normalize, Task
from model_store import zoo
from model_store.build import assemble, export, parity, torchscript
from model_store.networks.boxes import box_iou
from model_store.networks.heads.registry import head_of
from model_store.networks.pixels import Pixels
from model_store.weights import load as weights

SCORE_TOLERANCE = 1e-4
# `make test` checks the first model of each family and task, which is the smallest, models with committed weights, and
# the first model of each other head with small pictures. The other variants are the same code with other numbers.
# `make test-all` checks them with fewer pictures, and with small ones but for MobileViT.
FIRST = {(entry.family, entry.task): entry for entry in reversed(zoo.ENTRIES)}
_FIRST_OF_HEADS = {entry.head.name: entry for entry in reversed(zoo.ENTRIES)}
OTHER_HEADS = [entry for entry in _FIRST_OF_HEADS.values() if entry not in FIRST.values()]
# How many pictures at once, per model. The whole range is swept with the smallest model in a test of its own.
BATCHES = {
    "mobilevit_xxs_classify": (2, 3, 8, 17),
    "mobilevit_xxs_detect": (2, 3, 8),
}
FIRST_BATCHES = (2, 3)
OTHER_BATCHES = (3,)
SMALL_PX = 160


@pytest.fixture(scope="module", autouse=True)
def _as_served() -> Iterator[None]:
    """Run as `handlers.runtime` does: without fusion. One thread, so that a busy machine does not stall OpenMP."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    strategy = _set_fusion([])
    yield
    _set_fusion(strategy)
    torch.set_num_threads(threads)


def _set_fusion(strategy: list[tuple[str, int]]) -> list[tuple[str, int]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch 2.13 says so of everything in torch.jit
        before: list[tuple[str, int]] = torch.jit.set_fusion_strategy(strategy)
    return before


@dataclass(frozen=True)
class Subject:
    entry: zoo.ModelSpec
    eager: Any
    scripted: Any
    reloaded: Any

    @property
    def first(self) -> bool:
        return self.entry in FIRST.values()

    def batches(self) -> tuple[int, ...]:
        return BATCHES.get(self.entry.name, FIRST_BATCHES if self.first else OTHER_BATCHES)

    def pixels(self, count: int) -> Tensor:
        return parity.sample_pixels(self.entry, count)


def small(entry: zoo.ModelSpec) -> zoo.ModelSpec:
    return replace(entry, input=InputSize(height=SMALL_PX, width=SMALL_PX))


def _param(entry: zoo.ModelSpec) -> Any:
    in_the_gate = entry in FIRST.values() or entry in OTHER_HEADS or entry.committed
    return pytest.param(entry, id=entry.name, marks=() if in_the_gate else pytest.mark.exhaustive)


@pytest.fixture(scope="module", params=[_param(entry) for entry in zoo.ENTRIES])
def subject(request: pytest.FixtureRequest) -> Subject:
    entry: zoo.ModelSpec = request.param
    if entry not in FIRST.values() and (entry.family != "mobilevit" or entry.head.name == "retinanet"):
        entry = small(entry)
    network = assemble.build(entry)
    weights.random_(network, seed=0)
    eager = assemble.served(entry, network)
    scripted = torchscript.script(eager)
    return Subject(entry, eager, scripted, torchscript.load(torchscript.save(scripted)))


def run(module: Any, pixels: Tensor) -> tuple[Tensor, ...]:
    with torch.inference_mode():
        answers: tuple[Tensor, ...] = module(pixels)
    return answers


def assert_same(task: Task, first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> None:
    """Equal answers up to rounding: near-ties may change places, nothing else may change."""
    for a, b in zip(first, second, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
    if task is Task.SEGMENT:
        assert float((first[0] != second[0]).float().mean()) <= 1e-4
        assert int((first[1].int() - second[1].int()).abs().max()) <= 1
    elif task is Task.CLASSIFY:
        torch.testing.assert_close(first[0], second[0], atol=SCORE_TOLERANCE, rtol=0)
        for row in range(first[0].shape[0]):
            _assert_rows_meet(_classes(first, row), _classes(second, row))
    else:
        torch.testing.assert_close(first[1], second[1], atol=SCORE_TOLERANCE, rtol=0)
        for row in range(first[0].shape[0]):
            _assert_boxes_meet(first, second, row)


def _classes(answers: tuple[Tensor, ...], row: int) -> dict[int, float]:
    return dict(zip(answers[1][row].tolist(), answers[0][row].tolist(), strict=True))


def _assert_rows_meet(first: dict[int, float], second: dict[int, float]) -> None:
    last = min(first.values()) + SCORE_TOLERANCE  # only near-ties of the last place may be in one answer alone
    for label in first.keys() | second.keys():
        if label in first and label in second:
            assert abs(first[label] - second[label]) <= SCORE_TOLERANCE
        else:
            assert first.get(label, second.get(label, 1.0)) <= last


def _assert_boxes_meet(first: tuple[Tensor, ...], second: tuple[Tensor, ...], row: int) -> None:
    count = int(first[3][row])
    if count < first[1].shape[1]:
        assert int(second[3][row]) == count
    last = float(first[1][row, count - 1]) + SCORE_TOLERANCE if count else 0.0
    clear = first[1][row, :count] > last
    overlap = box_iou(first[0][row, :count], second[0][row])
    same = (first[2][row, :count, None] == second[2][row][None]) & (
        (first[1][row, :count, None] - second[1][row][None]).abs() <= SCORE_TOLERANCE
    )
    flat = (first[0][row, :count, None, :] - second[0][row][None]).abs().amax(dim=2) <= 1e-4
    assert bool((same & (flat | (overlap > 0.99))).any(dim=1)[clear].all())


def test_eager_scripted_and_reloaded_agree(subject: Subject) -> None:
    pixels = subject.pixels(2)
    expected = run(subject.eager, pixels)
    # The third run is the optimised one: TorchScript profiles the first two.
    for module, runs in ((subject.reloaded, 3), (subject.scripted, 3 if subject.first else 1)):
        for _ in range(runs):
            assert_same(subject.entry.task, expected, run(module, pixels))


def test_the_raw_outputs_depend_on_the_picture(subject: Subject) -> None:
    first, second = parity.raw_outputs(subject.eager, subject.pixels(2))[0]
    assert float((first - second).std()) > 0.01 * float(first.std())
    assert bool(torch.isfinite(first).all())


def test_outputs_are_as_the_card_says(subject: Subject) -> None:
    for count in (1, 2) if subject.first else (1,):
        pixels = subject.pixels(count)
        described = export.describe_outputs(subject.entry, subject.eager, pixels)
        for output, answer in zip(described, run(subject.reloaded, pixels), strict=True):
            assert tuple(answer.shape) == (count, *output.shape)
            assert str(answer.dtype) == f"torch.{output.dtype}"


def test_ranges(subject: Subject) -> None:
    classes = len(subject.entry.labels.names)
    answers = dict(
        zip(
            head_of(subject.entry).contract.outputs,
            run(subject.reloaded, subject.pixels(2)),
            strict=True,
        )
    )
    if subject.entry.task is Task.SEGMENT:
        assert int(answers["classes"].max()) < classes
        assert int(answers["confidence"].min()) >= 255 // classes  # the best of K classes has at least 1/K
        return
    scores = answers["scores"]
    assert float(scores.min()) >= 0
    assert float(scores.max()) <= 1
    assert bool((scores[:, :-1] >= scores[:, 1:]).all())
    if subject.entry.task is Task.CLASSIFY:
        assert bool((scores.sum(dim=1) <= 1 + 1e-5).all())
        assert int(answers["labels"].max()) < classes
    else:
        boxes, counts = answers["boxes"], answers["counts"]
        assert float(boxes.min()) >= 0
        assert float(boxes.max()) <= 1
        assert bool((boxes[..., :2] <= boxes[..., 2:]).all())
        assert int(answers["labels"].max()) < classes
        assert int(counts.min()) > 0  # otherwise this file proves little about detections
        for row in range(2):
            assert int((scores[row] > 0).sum()) == int(counts[row])


def test_a_row_of_a_batch_is_the_picture_alone(subject: Subject) -> None:
    most = max(subject.batches())
    pixels = subject.pixels(most)
    alone = [run(subject.reloaded, pixels[i : i + 1]) for i in range(most)]
    for count in subject.batches():
        expected = tuple(torch.cat(parts) for parts in zip(*alone[:count], strict=True))
        assert_same(subject.entry.task, expected, run(subject.reloaded, pixels[:count]))


def test_padding_rows_change_nothing(subject: Subject) -> None:
    pixels = subject.pixels(4 if subject.first else 3)
    with_zeros, with_noise = pixels.clone(), pixels.clone()
    with_zeros[2:] = 0
    for clean, dirty in zip(run(subject.reloaded, with_zeros), run(subject.reloaded, with_noise), strict=True):
        assert torch.equal(clean[:2], dirty[:2])


def test_every_batch_size_up_to_64() -> None:
    entry = zoo.get("mobilevit_xxs_classify")
    network = assemble.build(entry)
    weights.random_(network, seed=1)
    module = torchscript.script(assemble.served(entry, network))
    pixels = parity.sample_pixels(entry, 64)[:, :64, :64]  # the sweep is about N, so small pictures do
    alone = [run(module, pixels[i : i + 1]) for i in range(64)]
    for count in range(1, 65):
        expected = tuple(torch.cat(parts) for parts in zip(*alone[:count], strict=True))
        assert_same(entry.task, expected, run(module, pixels[:count]))


@pytest.mark.parametrize("entry", [*FIRST.values(), *OTHER_HEADS], ids=lambda entry: entry.name)
def test_runs_in_bfloat16(entry: zoo.ModelSpec) -> None:
    if entry.task is Task.SEGMENT or entry in OTHER_HEADS:
        entry = small(entry)  # processors without bfloat16 take half a minute otherwise
    network = assemble.build(entry)
    weights.random_(network, seed=0)
    module = torchscript.load(torchscript.save(torchscript.script(assemble.served(entry, network))))
    pixels = parity.sample_pixels(entry, 1)
    if entry.task is not Task.DETECT:  # anchors belong to one size; the others take any, and bfloat16 may be slow here
        pixels = pixels[:, :128, :128]
    expected, raw = run(module, pixels), parity.raw_outputs(module, pixels)[0]
    module.to(torch.bfloat16)
    for a, b in zip(expected, run(module, pixels), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
    half = parity.raw_outputs(module, pixels)[0]
    assert half.dtype is torch.bfloat16
    assert float((half.float() - raw).std() / raw.std()) < 0.25


def test_pixels_are_scaled_exactly_in_any_dtype() -> None:
    pixels = torch.tensor([[[[0, 128, 255]]]], dtype=torch.uint8)  # one pixel, (N, H, W, 3)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        plain = Pixels(normalize=Normalize()).to(dtype)(pixels)
        assert plain.dtype is dtype
        assert torch.equal(plain.flatten(), torch.tensor([0, 128 / 255, 1]).to(dtype))
        swapped = Pixels(normalize=Normalize(channel_order="BGR")).to(dtype)(pixels)
        assert torch.equal(swapped.flatten(), plain.flatten().flip(0))


def test_mean_and_std_follow_the_channel_order() -> None:
    normalize = Normalize(channel_order="BGR", mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.125))
    pixels = torch.tensor([[[[0, 51, 255]]]], dtype=torch.uint8)
    found = Pixels(normalize=normalize)(pixels).flatten()
    torch.testing.assert_close(found, torch.tensor([(1.0 - 0.1) / 0.5, (0.2 - 0.2) / 0.25, (0.0 - 0.3) / 0.125]))
