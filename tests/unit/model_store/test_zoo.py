"""The list of models: names, lookups, label sets, and that reading it needs no torch."""

import subprocess
import sys
from dataclasses import FrozenInstanceError

import pytest

from handlers.contract.card import Task
from model_store import labels, zoo
from model_store.weights import layouts

USUAL = {Task.CLASSIFY: "classifier", Task.DETECT: "ssdlite", Task.SEGMENT: "deeplabv3"}
OTHER = {"retinanet": Task.DETECT, "pspnet": Task.SEGMENT, "semantic_fpn": Task.SEGMENT}


def test_names_are_unique_and_say_family_variant_and_task_or_head() -> None:
    assert len(set(zoo.names())) == len(zoo.ENTRIES)
    for entry in zoo.ENTRIES:
        start = "demo" if entry.committed else f"{entry.family}_{entry.variant}"
        end = entry.task.value if entry.head.name == USUAL[entry.task] else entry.head.name
        assert entry.name == f"{start}_{end}"
        assert zoo.get(entry.name) is entry


def test_every_task_has_a_model_whose_weights_come_along() -> None:
    assert [entry.task for entry in zoo.ENTRIES if entry.committed] == list(Task)


def test_mobilevit_has_three_variants_for_three_tasks() -> None:
    expected = {f"mobilevit_{variant}_{task.value}" for variant in ("xxs", "xs", "s") for task in Task}
    assert expected <= set(zoo.names())


def test_entries_of_one_task() -> None:
    assert {entry.task for entry in zoo.entries(Task.DETECT)} == {Task.DETECT}
    assert sum(len(list(zoo.entries(task))) for task in Task) == len(list(zoo.entries()))


def test_heads_belong_to_tasks() -> None:
    for entry in zoo.ENTRIES:
        assert entry.head.name == USUAL[entry.task] or OTHER[entry.head.name] is entry.task


def test_the_papers_heads_have_their_scores() -> None:
    published = {entry.name: dict(entry.published) for entry in zoo.ENTRIES if entry.head.name in OTHER}
    assert {name: scores for name, scores in published.items() if scores} == {
        "emo_1m_retinanet": {"map": 34.4},
        "emo_2m_retinanet": {"map": 36.2},
        "emo_5m_retinanet": {"map": 38.9},
        "emo_1m_pspnet": {"miou": 33.2},
        "emo_2m_pspnet": {"miou": 34.5},
        "emo_5m_pspnet": {"miou": 38.2},
        "swiftformer_l1_semantic_fpn": {"miou": 41.4},
        "swiftformer_l3_semantic_fpn": {"miou": 43.9},
    }
    for family in ("mobilevit", "emo", "swiftformer", "mobileformer"):
        variants = {entry.variant for entry in zoo.ENTRIES if entry.family == family}
        assert all(f"{family}_{variant}_retinanet" in published for variant in variants)


def test_layouts_and_label_sets_exist() -> None:
    for entry in zoo.ENTRIES:
        assert layouts.get(entry.layout).name == entry.layout
        assert entry.labels.names


def test_official_mobilevit_takes_bgr() -> None:
    # The checkpoints of ml-cvnets v0.1 do; nothing else would tell.
    mobilevit = [entry for entry in zoo.ENTRIES if entry.family == "mobilevit" and not entry.committed]
    assert {entry.normalize.channel_order for entry in mobilevit} == {"BGR"}
    assert {entry.preprocess.antialias for entry in mobilevit} == {False}


@pytest.mark.parametrize(
    ("asked", "nearest"),
    [
        ("mobilevit_xxs_clasify", "mobilevit_xxs_classify"),
        ("mobilevit_s_detection", "mobilevit_s_detect"),
        ("mobilevit-xs-segment", "mobilevit_xs_segment"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_nearest(asked: str, nearest: str) -> None:
    with pytest.raises(zoo.UnknownModel) as caught:
        zoo.get(asked)
    assert caught.value.nearest[0] == nearest
    assert caught.value.name == asked
    assert nearest in str(caught.value)


def test_a_name_like_no_other_is_answered_with_the_command() -> None:
    with pytest.raises(zoo.UnknownModel, match="models list") as caught:
        zoo.get("qqqq")
    assert caught.value.nearest == ()


def test_entries_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        zoo.ENTRIES[0].name = "other"  # type: ignore[misc]


def test_the_list_is_read_without_torch() -> None:
    code = "import sys; from model_store import zoo; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("imagenet1k", "tench", "toilet tissue"),
        ("coco80", "person", "toothbrush"),
        ("voc21", "background", "tvmonitor"),
        ("ade20k150", "wall", "flag"),
    ],
)
def test_label_sets(name: str, first: str, last: str) -> None:
    found = labels.read(name)
    assert (found[0], found[-1]) == (first, last)
    assert len(found) == len(set(found)) == labels.SIZES[name]
    assert all(label == label.strip() and label for label in found)


def test_unknown_label_sets_are_named() -> None:
    with pytest.raises(LookupError, match=r"cifar.*voc21"):
        labels.read("cifar")
