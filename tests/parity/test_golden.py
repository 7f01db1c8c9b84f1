"""Networks against the outputs of the official code, through the loader; and the comparison itself against faults."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from model_store import zoo
from model_store.verify.golden import GoldenError, read
from model_store.verify.run import Report, check_content, verify, verify_costs
from service.cli.main import to_input

GOLDEN = Path(__file__).parent / "golden"
FILES = sorted(GOLDEN.rglob("*.json"))
# The least number of checks in a file that is not of a model.
CHECKS = {
    "boxops": 24,
    "emo_boxes": 4,
    "emo_retinanet_postprocess": 20,
    "maskrcnn_ops": 6,
    "preprocess": 12,
    "preprocess2": 6,
    "torchvision_boxes": 5,
    "torchvision_ssd_postprocess": 11,
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """One thread, so that a busy machine does not stall OpenMP."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_all_golden_files_are_there() -> None:
    backbones = [path for path in FILES if path.parent == GOLDEN]
    assert len(backbones) == 3 + 4 + 4 + 7
    models = [path for path in FILES if path not in backbones and path.stem not in CHECKS]
    assert len(models) == 14 + 3 + 7 + 10
    assert len(FILES) == len(backbones) + len(models) + len(CHECKS)


# The same code with other numbers than a file of `make test`, and large.
EXHAUSTIVE = {"emo_retinanet_2M", "emo_pspnet_2M", "swiftformer_semfpn_S", "swiftformer_semfpn_L3"}


def _param(path: Path) -> Any:
    return pytest.param(path, id=path.stem, marks=pytest.mark.exhaustive if path.stem in EXHAUSTIVE else ())


@pytest.mark.parametrize("path", [_param(path) for path in FILES])
def test_equals_the_official_code(path: Path) -> None:
    (report,) = verify([path], to_input=to_input)
    assert report.error == ""
    assert report.failures == ()
    assert len(report.checks) >= CHECKS.get(path.stem, 11)


@pytest.mark.parametrize("entry", zoo.ENTRIES, ids=lambda entry: entry.name)
def test_costs_are_those_published(entry: zoo.ModelSpec) -> None:
    with torch.device("meta"):  # parameters without data: shapes suffice
        assert verify_costs(entry).failures == ()


@pytest.fixture(scope="module")
def backbone_content() -> dict[str, Any]:
    content = read(GOLDEN / "mobilevit_xxs.json")
    content["cases"] = content["cases"][:1]
    return content


def failures(content: dict[str, Any]) -> list[str]:
    return [check.name for check in check_content(content) if not check.ok]


def test_sees_a_wrong_logit(backbone_content: dict[str, Any]) -> None:
    content = copy.deepcopy(backbone_content)
    logits = content["cases"][0]["logits"]
    logits["values"][1234] += 1e-4 * logits["std"]
    assert failures(content) == ["square: logits, share of std"]


def test_sees_a_wrong_tap(backbone_content: dict[str, Any]) -> None:
    content = copy.deepcopy(backbone_content)
    tap = content["cases"][0]["taps"][3]
    tap["strided64"][63] += 1e-4 * tap["std"]
    assert failures(content) == [f"square: {tap['name']}, share of std"]


def test_sees_a_wrong_shape_and_count(backbone_content: dict[str, Any]) -> None:
    content = copy.deepcopy(backbone_content)
    content["parameters"] += 1
    content["cases"][0]["taps"][0]["shape"][1] += 1
    assert failures(content) == ["parameters", "square: conv_1, share of std"]


def test_takes_the_salt_from_the_file(backbone_content: dict[str, Any]) -> None:
    content = copy.deepcopy(backbone_content)
    content["salt"] = "golden-2"
    assert "square: logits, share of std" in failures(content)


def test_sees_a_wrong_box_and_a_wrong_overlap() -> None:
    content = read(GOLDEN / "heads" / "boxops.json")
    content["iou"]["iou"][0][0] += 1e-4
    content["nms"][0]["results"][0]["keep"].reverse()
    content["per_class_nms"][0]["results"][1]["keep"].pop()
    content["pipeline"][1]["result_index_and_class"][0][1] += 1
    assert failures(content) == [
        "overlap",
        f"suppression, {content['nms'][0]['name']}: wrong answers",
        f"suppression per class, {content['per_class_nms'][0]['name']}: wrong answers",
        f"whole chain, {content['pipeline'][1]['name']}: wrong answers",
    ]


def test_sees_a_picture_that_is_read_otherwise() -> None:
    content = read(GOLDEN / "heads" / "preprocess.json")
    shifted = [check.name for check in check_content(content, lambda *asked: to_input(*asked)[:, ::-1]) if not check.ok]
    assert len(shifted) == 12
    content["images"][0]["webp"] = {}
    with pytest.raises(GoldenError, match="webp"):
        check_content(content, to_input)


def test_sees_other_anchors_of_torchvision() -> None:
    content = read(GOLDEN / "heads" / "torchvision_boxes.json")
    content["grid_small"]["all"][-1][2] += 1e-3
    content["coder"]["decoded"][1][0] += 1.0
    assert failures(content) == ["anchors, tiny", "decoded boxes, pixels"]


def test_sees_wrong_detections() -> None:
    content = read(GOLDEN / "heads" / "cvnets_main_ssd_postprocess.json")
    case = content["results"][0]["cases"][0]
    case["boxes"][7][0] += 0.5
    case["scores"][9] += 1e-3
    case["labels"][11] += 1
    assert failures(content) == [
        "dense: detections above 0.01: rows without partner",
        "dense: detections above 0.01: scores",
    ]


def test_sees_a_box_cut_at_the_padding() -> None:
    content = read(GOLDEN / "heads" / "emo_retinanet_postprocess.json")
    assert content["image_size"] != content["network_input"][::-1]
    content["image_size"] = content["network_input"][::-1]
    assert "dense: detections: rows without partner" in failures(content)


def test_sees_a_wrong_map_of_a_pyramid() -> None:
    content = read(GOLDEN / "heads" / "swiftformer_semfpn_XS.json")
    content["cases"] = content["cases"][2:]
    branch = content["cases"][0]["scale_heads"][3]
    branch["strided"][20] += 1e-4 * branch["std"]
    assert failures(content) == ["odd: branch, map 3, share of std"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"what": "Mask R-CNN, SwiftFormer backbone", "source": {"project": "SwiftFormer"}}, "Mask R-CNN"),
        ({"what": "preprocessing of one picture"}, "mobilevision models verify"),
        ({"family": "resnet", "variant": "50"}, "resnet"),
        ({"family": "mobilevit", "variant": "xl"}, "'xl'"),
        ({"what": "SSDLite", "source": {"project": "torchvision"}}, "torchvision"),
        ({"what": "SSDLite", "source": {"project": "ml-cvnets"}}, "lacks the field 'model'"),
        ({"family": "mobilevit"}, "lacks the field 'variant'"),
        ({"rules": []}, "neither"),
    ],
)
def test_refuses_what_it_cannot_compare(content: dict[str, Any], reason: str) -> None:
    with pytest.raises(GoldenError, match=reason):
        check_content(content)


def test_a_file_that_cannot_be_used_is_a_failed_report(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    paths = [tmp_path / "broken.json", tmp_path / "list.json", tmp_path / "absent.json"]
    seen: list[Report] = []
    reports = verify(paths, seen.append)
    assert seen == reports
    assert [report.ok for report in reports] == [False] * 3
    assert all(report.error for report in reports)
