"""Recognising a checkpoint: entry, layout and class count from names and shapes, or a sentence that says what to do."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model_store import zoo
from model_store.build import assemble, fitting
from model_store.build.recognise import layouts_for, recognise
from model_store.labels import LabelSet
from model_store.verify import golden
from model_store.weights import layouts
from model_store.weights.errors import CheckpointError

GOLDEN = Path(__file__).parents[2] / "parity" / "golden"


def state_of(name, classes=None):
    entry = zoo.get(name)
    if classes:
        entry = replace(entry, labels=LabelSet("", own=tuple(map(str, range(classes)))))
    with torch.device("meta"):
        return dict(assemble.build(entry).state_dict())


@pytest.mark.parametrize("name", zoo.names())
def test_every_entry_is_recognised_with_any_number_of_classes(name):
    entry = zoo.get(name)
    for classes in (1, 5, entry.classes):
        found = recognise(state_of(name, classes), [entry], layouts_for(entry))
        assert found is not None
        assert found.classes == classes


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("mobilevit_xs_classify", 10),
        ("emo_1m_detect", 13),
        ("mobilevit_s_segment", 7),
        ("emo_2m_retinanet", 13),
        ("emo_1m_pspnet", 7),
        ("swiftformer_l1_semantic_fpn", 7),
    ],
)
def test_the_right_base_is_named(name, classes):
    base = zoo.get("swiftformer_xs_classify")
    with pytest.raises(CheckpointError, match=f"this is {name} with {classes} classes .* use base = '{name}'"):
        fitting.recognised(state_of(name, classes), base, None)


def test_a_wrong_layout_is_answered_with_the_right_one():
    content = golden.read(GOLDEN / "mobilevit_xxs.json")
    state = golden.fill(content["state_dict"], content["salt"], content["gain"])
    with pytest.raises(CheckpointError, match="use layout = 'cvnets'"):
        fitting.recognised(state, zoo.get("mobilevit_xxs_classify"), "timm")


def test_layouts_with_the_same_names_are_told():
    entry = zoo.get("mobilevit_xxs_classify")
    found = recognise(state_of(entry.name), [entry], [layouts.get("native")])
    assert found is not None
    assert fitting.notes(found, None) == ()
    alike = replace(found, alike=("cvnets_v2",))
    assert "cvnets_v2" in fitting.notes(alike, None)[0]
    assert fitting.notes(alike, "cvnets") == ()


def test_as_many_labels_as_classes_are_demanded(tmp_path):
    entry = replace(zoo.get("emo_1m_detect"), labels=LabelSet("l.txt", own=("a", "b")))
    found = recognise(state_of(entry.name, 13), [zoo.get(entry.name)], layouts_for(entry))
    assert found is not None
    with pytest.raises(CheckpointError, match=r"best.pt has 13 classes \(its background is not counted\), l.txt has 2"):
        fitting.check_labels(entry, found, tmp_path / "best.pt")


def test_what_is_of_no_entry_lists_what_does_not_fit():
    state = dict(assemble.build(zoo.get("emo_1m_classify")).state_dict())
    state["stray"] = torch.zeros(3)
    with pytest.raises(CheckpointError, match="1 unexpected: stray"):
        fitting.recognised(state, zoo.get("emo_1m_classify"), None)


def test_numbers_that_are_nan_are_no_matter_of_layout():
    entry = zoo.get("mobilevit_xxs_classify")
    network = assemble.build(entry)
    state = {name: value * float("nan") for name, value in network.state_dict().items() if value.is_floating_point()}
    with pytest.raises(CheckpointError, match="hold NaN") as caught:
        fitting.load(network, state, layouts.get("native"), entry)
    assert "layout cvnets" not in str(caught.value)
