"""What cannot be built is refused in one line before weights are read; each option of a head changes what is built."""

import tomllib
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from handlers.contract.card import InputSize
from model_store import zoo
from model_store.build import agreement, assemble, compiler, fits, fitting
from model_store.build.errors import ExportError
from model_store.build.export import export_definition
from model_store.definition.read import parse
from model_store.definition.resolve import resolve
from model_store.labels import LabelSet
from model_store.networks.tasks.classify import CLASSIFY

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


def entry_of(base: str, text: str, tmp_path: Any) -> zoo.ModelSpec:
    content = {"name": "mine", "base": base} | tomllib.loads(text)
    return resolve(parse(content, where="mine.toml", folder=tmp_path), None).entry


def with_classes(entry: zoo.ModelSpec, count: int) -> zoo.ModelSpec:
    return replace(entry, labels=LabelSet(name="", own=tuple(f"label {index}" for index in range(count))))


@pytest.mark.parametrize(
    ("base", "text", "said"),
    [
        ("emo_1m_classify", "[head]\noutput_stride = 16", "EMO has output stride 32, not 16"),
        ("swiftformer_xs_segment", "[head]\noutput_stride = 8", "output_stride must be 16 or 32, not 8"),
        ("mobileformer_26m_classify", "[head]\noutput_stride = 8", "output_stride must be 16 or 32, not 8"),
        ("mobilevit_xxs_detect", "[head]\noutput_stride = 8", "takes output stride 16 or 32, not 8"),
        ("swiftformer_xs_detect", "[head]\noutput_stride = 16", "has anchors for output stride 32, not 16"),
        ("swiftformer_xs_retinanet", "[head]\noutput_stride = 16", "has anchors for output stride 32, not 16"),
        ("swiftformer_xs_semantic_fpn", "[head]\noutput_stride = 16", "Semantic FPN takes output stride 32, not 16"),
        ("emo_1m_classify", "[head]\nwidth = 64", "the classifier of emo has no hidden layer"),
        ("swiftformer_xs_classify", "[head]\nwidth = 64", "the classifier of swiftformer has no hidden layer"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(base: str, text: str, said: str, tmp_path: Any) -> None:
    definition = parse({"name": "mine", "base": base} | tomllib.loads(text), where="", folder=tmp_path)
    with pytest.raises(ExportError) as caught:
        export_definition(definition, text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_class_map_has_at_most_256_classes() -> None:
    entry = zoo.get("mobilevit_xxs_segment")
    fits.check(with_classes(entry, 256))
    with pytest.raises(ExportError, match="at most 256 classes, and there are 257 labels"):
        fits.check(with_classes(entry, 257))


class Picky(nn.Module):
    """A network that takes one shape of windows only, as a window attention without padding does."""

    def forward(self, x: Tensor) -> Tensor:
        """Cut into windows of 64 pixels."""
        return x.view(x.shape[0], 3, x.shape[2] // 64, 64, x.shape[3] // 64, 64)


def test_a_size_that_does_not_work_names_those_that_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assemble, "build", lambda _entry: Picky())
    entry = zoo.get("mobilevit_xxs_classify")
    fits.check(replace(entry, input=InputSize(width=128, height=64)))
    with pytest.raises(ExportError) as caught:
        fits.check(replace(entry, input=InputSize(width=160, height=100)))
    assert "the input 160x100 does not work" in str(caught.value)
    assert "what works is 128x128 or 192x128" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("base", ["mobilevit_xxs_detect", "emo_1m_detect", "emo_1m_retinanet"])
def test_small_and_odd_inputs_can_be_built(base: str) -> None:
    for width, height in ((32, 32), (33, 97), (352, 224), (4096, 32)):
        fits.check(replace(zoo.get(base), input=InputSize(width=width, height=height)))


def test_a_detector_without_an_anchor_for_each_box_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = zoo.get("mobilevit_xxs_detect")
    other = assemble.served
    small = InputSize(width=64, height=64)
    monkeypatch.setattr(fits, "_near", lambda _size: iter(()))
    monkeypatch.setattr(assemble, "served", lambda entry, network: other(replace(entry, input=small), network))
    with pytest.raises(ExportError, match=r"the head predicts .* boxes, and there are .* anchors; no size"):
        fits.check(entry)


def shapes(entry: zoo.ModelSpec) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in assemble.build(entry).state_dict().items()}


def test_output_stride_changes_the_last_map(tmp_path: Any) -> None:
    sides = []
    for stride in (8, 16, 32):
        entry = entry_of("mobilevit_xxs_segment", f"[head]\noutput_stride = {stride}", tmp_path)
        with torch.device("meta"):
            sides.append(assemble.build(entry)(torch.empty(1, 3, 128, 128, device="meta")).shape[-1])
    assert sides == [16, 8, 4]


def test_width_changes_the_layers(tmp_path: Any) -> None:
    segmenter = entry_of("mobilevit_xxs_segment", "[head]\nwidth = 48", tmp_path)
    assert shapes(segmenter)["head.classifier.weight"] == (21, 48, 1, 1)
    assert shapes(entry_of("mobilevit_xxs_classify", "[head]\nwidth = 40", tmp_path))["head.fc.weight"] == (1000, 40)
    former = entry_of("mobileformer_26m_classify", "[head]\nwidth = 24", tmp_path)
    assert shapes(former)["head.fc.weight"] == (1000, 24)


def test_rates_change_the_dilation(tmp_path: Any) -> None:
    with torch.device("meta"):
        head: Any = assemble.build(entry_of("emo_1m_segment", "[head]\nrates = [2, 3, 5]", tmp_path)).head
    assert [branch.conv.dilation[0] for branch in head.branches[1:]] == [2, 3, 5]


def test_align_corners_changes_the_class_map(tmp_path: Any) -> None:
    served = []
    for value in ("true", "false"):
        entry = entry_of("mobilevit_xxs_segment", f"[head]\nalign_corners = {value}", tmp_path)
        served.append(assemble.served(entry, nn.Identity()).postprocess.align_corners)
    assert served == [True, False]


@pytest.mark.parametrize("base", ["mobilevit_xxs_detect", "emo_1m_detect"])
def test_thresholds_change_the_boxes(base: str, tmp_path: Any) -> None:
    """Of two boxes that overlap by a half, and one of a low score, the options choose."""
    text = "[input]\nwidth = 64\nheight = 64\n[head]\n"

    def count(options: str) -> int:
        entry = with_classes(entry_of(base, text + options, tmp_path), 1)
        detections: Any = assemble.served(entry, nn.Identity()).postprocess.detections
        anchors = sum(detections.level_sizes)
        background, label = (0, 1) if detections.background_first else (1, 0)
        logits = torch.zeros(1, anchors, 2)
        logits[..., background] = 20.0
        # Two anchors of one cell, the small square and the larger one around it, and one far away of a low score.
        for anchor, margin in ((0, 3.0), (1, 2.0), (90, -2.0)):
            logits[0, anchor, label] = 20.0 + margin
        return int(detections(logits, torch.zeros(1, anchors, 4))[3][0])

    assert count("score_threshold = 0.05\niou_threshold = 0.99") == 3
    assert count("score_threshold = 0.5\niou_threshold = 0.99") == 2
    assert count("score_threshold = 0.05\niou_threshold = 0.1") == 2
    assert count("score_threshold = 0.05\niou_threshold = 0.99\nmax_boxes = 1") == 1


def test_a_checkpoint_of_another_width_is_recognised(tmp_path: Any) -> None:
    entry = with_classes(entry_of("mobilevit_xxs_segment", "[head]\nwidth = 48", tmp_path), 4)
    with torch.device("meta"):
        state = assemble.build(entry).state_dict()
    base = zoo.get("mobilevit_xxs_segment")
    found = fitting.recognised(state, replace(base, head=entry.head), "native")
    assert found.classes == 4


@pytest.mark.parametrize(
    ("base", "count"),
    [
        ("swiftformer_xs_classify", 10_000),
        ("mobilevit_xxs_detect", 1),
        pytest.param("mobilevit_xxs_classify", 1, marks=pytest.mark.exhaustive),
        pytest.param("emo_1m_classify", 2, marks=pytest.mark.exhaustive),
        pytest.param("mobilevit_xxs_segment", 1, marks=pytest.mark.exhaustive),
        pytest.param("mobilevit_xxs_detect", 10_000, marks=pytest.mark.exhaustive),
        pytest.param("mobilevit_xxs_segment", 256, marks=pytest.mark.exhaustive),
    ],
)
def test_few_and_many_classes_are_compiled_and_measured(base: str, count: int) -> None:
    entry = replace(with_classes(zoo.get(base), count), input=InputSize(width=64, height=40))
    compiled = compiler.compile_here(entry, dict(assemble.build(entry).state_dict()))
    assert 0 <= compiled.bfloat16.agreement <= 1
    assert compiled.bfloat16.pictures == fits_pictures(entry)


def fits_pictures(entry: zoo.ModelSpec) -> int:
    return {"classify": 8, "detect": 4, "segment": 2}[entry.task.value]


class OnlyAlone(nn.Module):
    """Runs for one picture, and no more."""

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Fail for a batch."""
        scores = pixels.float().mean(dim=[1, 2]).view(1, 3)
        return scores, scores.to(torch.int32)


class FirstRow(nn.Module):
    """Answers the first picture only."""

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Drop all rows but one."""
        scores = pixels[:1].float().mean(dim=[1, 2])
        return scores, scores.to(torch.int32)


@pytest.mark.parametrize(
    ("module", "said"),
    [(OnlyAlone(), "cannot run a batch of 2 at 64x48"), (FirstRow(), "answers a batch of 2 with [1] rows")],
)
def test_a_module_that_fails_for_a_batch_is_refused(module: nn.Module, said: str) -> None:
    size = InputSize(width=64, height=48)
    with pytest.raises(ExportError) as caught:
        agreement.measure(CLASSIFY, lambda: torch.jit.script(module.eval()), size=size)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
