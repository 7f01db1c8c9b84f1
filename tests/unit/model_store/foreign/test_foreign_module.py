"""Modules that were not written here: what is wrapped answers as the network, what cannot be served is refused.

The modules are examined in this process. `test_foreign_command.py` runs the command, which takes a fresh process.
"""

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import foreign_networks as networks
import numpy as np
import pytest
import torch
from foreign_networks import CLASSES, SIDE, save

from handlers import engine, runtime
from handlers.contract.card import InputSize, Normalize, Task
from handlers.options import RuntimeOptions
from model_store.build import agreement, foreign_job, torchscript
from model_store.build.foreign_job import Facts, Job
from model_store.build.foreign_report import Refused, Report, Wish
from model_store.networks.pixels import Pixels
from model_store.networks.tasks.segment import class_map

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")

NORMALIZE = Normalize(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3), channel_order="BGR")
SIZE = InputSize(width=SIDE, height=SIDE)
CLASSIFY, DETECT, SEGMENT = Task.CLASSIFY, Task.DETECT, Task.SEGMENT
NEAR = 1e-5


def examine(path: Path, task: Task, *, classes: int = CLASSES, report: Report | None = None, **wish: Any) -> Any:
    job = Job(source=path, input=SIZE, normalize=NORMALIZE, wish=Wish(task=task, classes=classes, **wish))
    return foreign_job.examine(job, Report() if report is None else report)


def refusal(path: Path, task: Task, **options: Any) -> str:
    report = Report()
    with pytest.raises(Refused) as error:
        examine(path, task, report=report, **options)
    assert report.checks[-1].state == "not held"
    return str(error.value)


def pictures(count: int = 4) -> Any:
    return agreement.pictures(SIZE, count)


def network_input(pixels: Any) -> torch.Tensor:
    """What the network's own framework would feed it: float [N, 3, H, W], written out in numpy."""
    scaled = pixels[..., ::-1].astype(np.float64) / 255  # RGB -> BGR
    normal = (scaled - np.array(NORMALIZE.mean)) / np.array(NORMALIZE.std)
    return torch.from_numpy(normal.transpose(0, 3, 1, 2).astype(np.float32))


def worker(folder: Path, facts: Facts, module_bytes: bytes, dtype: str = "float32") -> runtime.Runner:
    """A worker that runs the module, as it does in an archive."""
    card = {
        "input": {"height": SIDE, "width": SIDE},
        "max_batch": 4,
        "outputs": [output.model_dump() for output in facts.outputs],
        "module_sha256": hashlib.sha256(module_bytes).hexdigest(),
        "bfloat16": None if facts.bfloat16 is None else facts.bfloat16.model_dump(),
    }
    (folder / "card.json").write_text(json.dumps(card))
    (folder / "model.pt").write_bytes(module_bytes)
    return runtime.load(folder, gpu_id=None, options=RuntimeOptions(dtype=dtype, threads=1))


def answers(folder: Path, facts: Facts, module_bytes: bytes) -> dict[str, Any]:
    return {key: value.copy() for key, value in worker(folder, facts, module_bytes).run(pictures()).items()}


def own(network: torch.nn.Module, pixels: Any) -> Any:
    with torch.inference_mode():
        return network.eval()(network_input(pixels))


CLASSIFIERS = [
    (networks.Stem, {}, lambda out: out),
    (networks.Stem, {"trace": 2}, lambda out: out),
    (networks.Stem, {"frozen": True}, lambda out: out),
    (networks.InTuple, {}, lambda out: out[1]),
    (networks.InTuple, {"trace": 1}, lambda out: out[1]),
    (networks.InDict, {}, lambda out: out["logits"]),
    (networks.Probabilities, {}, lambda out: out.log()),
]


@pytest.mark.parametrize(("kind", "how", "logits_of"), CLASSIFIERS)
def test_a_classifier_answers_as_its_own_framework(kind: Any, how: Any, logits_of: Any, tmp_path: Path) -> None:
    network = kind()
    facts, module_bytes = examine(save(network, tmp_path / "net.pt", **how), CLASSIFY)
    found = answers(tmp_path, facts, module_bytes)
    scores, labels = logits_of(own(network, pictures())).softmax(dim=1).topk(CLASSES, dim=1)
    np.testing.assert_allclose(found["scores"], scores.numpy(), atol=NEAR)
    np.testing.assert_array_equal(found["labels"], labels.numpy())
    assert facts.macs == 8 * 8 * 8 * (3 * 25 + CLASSES)
    assert facts.parameters in {0, sum(part.numel() for part in network.parameters())}  # 0: frozen


@pytest.mark.parametrize(("background", "kept"), [("first", slice(1, 3)), ("last", slice(0, 2))])
def test_the_background_of_a_classifier_is_left_out(background: str, kept: slice, tmp_path: Path) -> None:
    path = save(networks.Stem(), tmp_path / "net.pt")
    assert "3 classes, and there are 2 labels; give one label per class, or say --background" in refusal(
        path, CLASSIFY, classes=2
    )
    facts, module_bytes = examine(path, CLASSIFY, classes=2, background=background)
    scores = own(networks.Stem(), pictures())[:, kept].softmax(dim=1).topk(2, dim=1)[0]
    np.testing.assert_allclose(answers(tmp_path, facts, module_bytes)["scores"], scores.numpy(), atol=NEAR)


@pytest.mark.parametrize("trace", [0, 2])
def test_a_segmenter_answers_as_its_own_framework(trace: int, tmp_path: Path) -> None:
    network = networks.Maps()
    path = save(network, tmp_path / "net.pt")
    if trace:
        path = save(networks.InTuple(), tmp_path / "net.pt", trace=trace)
    facts, module_bytes = examine(path, SEGMENT)
    found = answers(tmp_path, facts, module_bytes)
    logits = own(network, pictures())["out"]
    expected = class_map(logits, height=SIDE, width=SIDE, align_corners=False)
    assert (found["classes"] == expected.numpy()).mean() > 0.999
    confidence = logits.softmax(dim=1).amax(dim=1) * 255
    assert np.abs(found["confidence"] - confidence.numpy()).max() <= 0.51


DETECTORS = [
    (networks.Detector, {}, {}),
    (networks.Detector, {"first": 0}, {}),
    (networks.Detector, {"unit": 1 / SIDE}, {}),
    (networks.ListDetector, {}, {}),
    (networks.TupleDetector, {}, {}),
    (networks.BatchDetector, {}, {}),
    (networks.BatchDetector, {}, {"trace": 2}),
    (networks.CountedDetector, {}, {}),
    (networks.RowDetector, {}, {"trace": 2}),
]


def detections(network: Any, x: torch.Tensor) -> list[tuple[Any, Any, Any]]:
    """The network's own boxes, scores and labels of each picture."""
    if isinstance(network, networks.ListDetector):
        found: Any = network(list(x))[1]
    else:
        found = network(x)
    if isinstance(network, networks.CountedDetector):
        counts, boxes, labels, scores = found
        rows = zip(counts, boxes, scores, labels, strict=True)
        return [(box[:n], score[:n], label[:n]) for n, box, score, label in rows]
    if isinstance(network, networks.TupleDetector):
        return [(boxes, scores, labels) for labels, boxes, scores in found]
    if isinstance(found, torch.Tensor):
        return [(one[:, :4], one[:, 4], one[:, 5]) for one in found]
    if isinstance(found, tuple):
        return list(zip(*found, strict=True))
    return [(one["boxes"], one["scores"], one["labels"]) for one in found]


@pytest.mark.parametrize(("kind", "options", "how"), DETECTORS)
def test_a_detector_answers_as_its_own_framework(kind: Any, options: Any, how: Any, tmp_path: Path) -> None:
    network = kind(**options)
    facts, module_bytes = examine(save(network, tmp_path / "net.pt", **how), DETECT, max_boxes=20)
    found = answers(tmp_path, facts, module_bytes)
    assert [output.shape for output in facts.outputs] == [(20, 4), (20,), (20,), ()]
    with torch.inference_mode():
        theirs = detections(network.eval(), network_input(pictures()))
    counts = set()
    for row, (boxes, scores, labels) in enumerate(theirs):
        order = scores.argsort(descending=True, stable=True)[:20]
        count = len(order)
        counts.add(count)
        assert found["counts"][row] == count
        np.testing.assert_allclose(found["scores"][row, :count], scores[order], atol=NEAR)
        np.testing.assert_array_equal(found["labels"][row, :count], labels[order].int() - network.first)
        shares = (boxes[order] / (1 if network.unit != 1 else SIDE)).clamp(0, 1)
        np.testing.assert_allclose(found["boxes"][row, :count], shares, atol=NEAR)
        assert not found["boxes"][row, count:].any()
        assert not found["scores"][row, count:].any()


def test_a_served_module_is_taken_as_it_is(tmp_path: Path) -> None:
    inner = tmp_path / "net.pt"
    _, module_bytes = examine(save(networks.Stem(), inner), CLASSIFY)
    again = tmp_path / "again.pt"
    again.write_bytes(module_bytes)
    report = Report()
    facts, same = examine(again, CLASSIFY, report=report)
    assert facts.head == "served"
    assert any("served module already" in line for line in report.lines())
    pixels = torch.from_numpy(pictures())
    for one, other in zip(torchscript.load(same)(pixels), torchscript.load(module_bytes)(pixels), strict=True):
        assert torch.equal(one, other)
    assert "leave out --mean, --std" in refusal(again, CLASSIFY, normalize_given=True)


REFUSED = [
    (networks.FixedBatch, {"trace": 1}, CLASSIFY, {}, "batch size: it runs with 1 pictures, not with 3; script it"),
    (networks.FixedBatch, {"trace": 2}, CLASSIFY, {}, "batch size: it runs with 2 pictures, not with 3; script it"),
    (networks.MixesRows, {}, CLASSIFY, {}, "rows of a batch: a picture alone gets another answer than in a batch"),
    (networks.Dropped, {}, CLASSIFY, {}, "determinism: two runs on the same pictures differ; save it in eval mode"),
    (networks.NotANumber, {}, CLASSIFY, {}, "finite: outputs are NaN or infinite"),
    (networks.OnCuda, {}, CLASSIFY, {}, "devices: the code makes tensors on cuda in 1 places; trace it on the CPU"),
    (networks.ReadsFiles, {}, CLASSIFY, {}, "operators: uses aten::from_file"),
    (networks.TwoInputs, {}, CLASSIFY, {}, "input: forward takes x, scale; forward must take one tensor"),
    (networks.Stem, {}, CLASSIFY, {"classes": 5}, "labels: it has 3 classes, and there are 5 labels"),
    (networks.Stem, {}, SEGMENT, {}, "output: segment needs logits [N, K, h, w]; it returns nothing of that form"),
    (networks.Maps, {}, SEGMENT, {"classes": 2}, "a segmenter's background is a class: give it a label too"),
    (networks.Stem, {}, DETECT, {}, "output: detect needs boxes, scores and labels; it returns float32 [3, 3]"),
    (networks.Detector, {}, DETECT, {"classes": 1}, "labels: seen: 1 to"),
    (networks.Detector, {}, DETECT, {"classes": 9}, "labels: seen: 1 to 3, with 9 labels; the first class may be 0 or"),
    (networks.Detector, {}, DETECT, {"boxes": "unit"}, "so they are not in 0..1; say --boxes pixels"),
    (networks.CentreDetector, {}, DETECT, {}, "boxes: corners are not in the order x0, y0, x1, y1"),
    (networks.BlindDetector, {}, DETECT, {}, "boxes: it finds none on drawn pictures and noise"),
]


@pytest.mark.parametrize(("kind", "how", "task", "options", "told"), REFUSED)
def test_what_cannot_be_served_is_refused_with_the_remedy(
    kind: Any, how: Any, task: Task, options: Any, told: str, tmp_path: Path
) -> None:
    message = refusal(save(kind(), tmp_path / "net.pt", **how), task, **options)
    assert told in message
    assert "\n" not in message


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.bfloat16])
def test_weights_are_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    message = refusal(save(networks.Stem().to(dtype), tmp_path / "net.pt"), CLASSIFY)
    assert f"8 of 9 tensors are not float32, such as conv.weight ({str(dtype)[6:]}); save it in float32" in message


def test_weights_are_finite(tmp_path: Path) -> None:
    network = networks.Stem()
    network.conv.bias.data[0] = float("nan")
    assert "weights: conv.bias has NaN" in refusal(save(network, tmp_path / "net.pt"), CLASSIFY)


def test_another_input_size_than_that_of_the_trace(tmp_path: Path) -> None:
    class Flat(networks.Stem):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.maps(x).flatten(1) @ self.weight

    network = Flat()
    network.register_buffer("weight", torch.randn(CLASSES * 8 * 8, CLASSES))
    path = save(network, tmp_path / "net.pt", trace=2)
    job = Job(
        source=path,
        input=InputSize(width=64, height=48),
        normalize=NORMALIZE,
        wish=Wish(task=CLASSIFY, classes=CLASSES),
    )
    with pytest.raises(Refused, match=r"input: it fails on float.*64x48.*; give --input as it was traced"):
        foreign_job.examine(job, Report())


def test_a_blind_detector_is_served_once_its_numbers_are_explained(tmp_path: Path) -> None:
    path = save(networks.BlindDetector(), tmp_path / "net.pt")
    facts, module_bytes = examine(path, DETECT, boxes="pixels", background="first")
    assert not answers(tmp_path, facts, module_bytes)["counts"].any()


def test_a_network_for_float32_only_is_run_in_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = Report()
    facts, module_bytes = examine(save(networks.OnlyFloat32(), tmp_path / "net.pt"), CLASSIFY, report=report)
    assert facts.bfloat16 is None
    assert "workers will run it in float32" in report.lines()[-1]
    monkeypatch.setattr(engine, "cpu_has_fast_bfloat16", lambda: True)
    assert worker(tmp_path, facts, module_bytes, dtype="auto").dtype_name == "float32"
    facts, module_bytes = examine(save(networks.Stem(), tmp_path / "net.pt"), CLASSIFY)
    assert facts.bfloat16 is not None
    assert worker(tmp_path, facts, module_bytes, dtype="auto").dtype_name == "bfloat16"


def test_what_matters_on_a_gpu_is_told(tmp_path: Path) -> None:
    for kind, how, told in [
        (networks.NamesTheCpu, {}, "devices: the code names the CPU in 1 places"),
        (networks.Stem, {"frozen": True}, "are constants of the code (torch.jit.freeze)"),
    ]:
        report = Report()
        examine(save(kind(), tmp_path / "net.pt", **how), CLASSIFY, report=report)
        assert any(line.startswith("note") and told in line for line in report.lines())


def test_files_that_are_no_module(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.save(networks.Stem().state_dict(), path)
    assert "not a TorchScript file, but one of torch.save; save it with torch.jit.script" in refusal(path, CLASSIFY)
    path.write_bytes(b"")
    assert "not a readable TorchScript file" in refusal(path, CLASSIFY)
    whole = save(networks.Stem(), tmp_path / "whole.pt").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "not a readable TorchScript file" in refusal(path, CLASSIFY)
    with zipfile.ZipFile(tmp_path / "whole.pt") as archive, zipfile.ZipFile(path, "w") as changed:
        for name in archive.namelist():
            if not name.endswith("data/0"):
                changed.writestr(name, archive.read(name))
    assert "torch cannot load it" in refusal(path, CLASSIFY)


def test_a_file_that_unpacks_to_more_than_an_archive_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model_store.build.foreign_file.archive_file.MOST_BYTES", 2**20)
    path = tmp_path / "net.pt"
    with zipfile.ZipFile(save(networks.Stem(), tmp_path / "whole.pt")) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        for name, content in entries.items():
            bomb.writestr(name, content)
        bomb.writestr("whole/data/9", bytes(2**21))
    assert "2 MB unpacked, in a file of 0 MB; an archive holds 2 GiB" in refusal(path, CLASSIFY)


def test_pixels_are_normalised_as_numpy_does_it() -> None:
    ours = Pixels(normalize=NORMALIZE)(torch.from_numpy(pictures()))
    assert float((ours - network_input(pictures())).abs().max()) < 1e-6
