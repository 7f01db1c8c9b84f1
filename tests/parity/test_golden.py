"""Networks against the outputs of the official code, through the loader; and the comparison itself against faults."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from model_store import zoo
from model_store.golden import GoldenError, read
from model_store.verify import Report, check_content, verify, verify_costs

GOLDEN = Path(__file__).parent / "golden"
FILES = sorted(
    [
        *GOLDEN.glob("mobilevit_*.json"),
        *GOLDEN.glob("emo_*.json"),
        *GOLDEN.glob("swiftformer_*.json"),
        *GOLDEN.glob("mobileformer_*.json"),
        *GOLDEN.glob("heads/cvnets_*.json"),
        *GOLDEN.glob("heads/hf_deeplabv3_*.json"),
        *GOLDEN.glob("heads/emo_*.json"),
    ]
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """One thread, so that a busy machine does not stall OpenMP."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_all_golden_files_are_there() -> None:
    assert len(FILES) == 3 + 4 + 4 + 7 + 14 + 3 + 8


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_equals_the_official_code(path: Path) -> None:
    (report,) = verify([path])
    assert report.error == ""
    assert report.failures == ()
    assert len(report.checks) >= (4 if path.stem == "emo_boxes" else 11)


@pytest.mark.parametrize("entry", zoo.ENTRIES, ids=lambda entry: entry.name)
def test_costs_are_those_published(entry: zoo.Entry) -> None:
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


@pytest.mark.parametrize(
    ("content", "reason"),
    [
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
