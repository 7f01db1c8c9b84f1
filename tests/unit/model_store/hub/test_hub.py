"""Folders of model hubs: what their configurations say, and that a contradiction names both places."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model_store import zoo
from model_store.build import assemble, fitting
from model_store.definition.read import parse
from model_store.definition.resolve import base_of, resolve
from model_store.hub import folder, openmmlab, timm, transformers, weights
from model_store.hub.errors import HubError
from model_store.hub.said import Said
from model_store.labels import LabelSet
from model_store.weights import container
from model_store.weights import load as loading

TIMM = {  # as timm 1.0.31 writes it
    "architecture": "mobilevit_xxs",
    "num_classes": 3,
    "num_features": 320,
    "global_pool": "avg",
    "label_names": ["cat", "dog", "owl"],
    "model_args": {"num_classes": 3, "in_chans": 3, "global_pool": "avg"},
    "pretrained_cfg": {
        "tag": "cvnets_in1k",
        "custom_load": False,
        "input_size": [3, 256, 256],
        "fixed_input_size": False,
        "interpolation": "bicubic",
        "crop_pct": 0.9,
        "crop_mode": "center",
        "mean": [0.0, 0.0, 0.0],
        "std": [1.0, 1.0, 1.0],
        "num_classes": 3,
        "pool_size": [8, 8],
        "license": "cvnets-license",
    },
}
TRANSFORMERS = {  # as transformers 5.24 writes it
    "architectures": ["MobileViTForSemanticSegmentation"],
    "aspp_out_channels": 256,
    "atrous_rates": [6, 12, 18],
    "conv_kernel_size": 3,
    "expand_ratio": 2.0,
    "hidden_act": "silu",
    "hidden_sizes": [64, 80, 96],
    "id2label": {"0": "background", "1": "leaf", "2": "stone"},
    "layer_norm_eps": 1e-05,
    "mlp_ratio": 2.0,
    "model_type": "mobilevit",
    "num_attention_heads": 4,
    "num_channels": 3,
    "output_stride": 16,
    "patch_size": 2,
    "qkv_bias": True,
}
PROCESSOR = {
    "crop_size": {"height": 192, "width": 256},
    "do_center_crop": True,
    "do_flip_channel_order": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],  # written by transformers, but not used by the processor of MobileViT
    "image_processor_type": "MobileViTImageProcessor",
    "image_std": [0.5, 0.5, 0.5],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 288},
}
OPENMMLAB = """
_base_ = ['../_base_/default_runtime.py']
num_classes = 3
img_norm_cfg = dict(mean=[127.5, 127.5, 127.5], std=[63.75, 63.75, 63.75], to_rgb=True)
model = dict(
    type='SingleStageDetector',
    backbone=dict(type='EMO', init_cfg=make_config()),
    bbox_head=dict(type='SSDHead', num_classes=num_classes),
    test_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), score_thr=0.1, max_per_img=50))
classes = ('bolt', 'nut', 'screw')
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='MultiScaleFlipAug', img_scale=(320, 256), flip=False, transforms=[
        dict(type='Resize', keep_ratio=False),
        dict(type='Normalize', **img_norm_cfg)])]
import os
os.remove('this must not happen')
"""


def told(read, content, tmp_path, name="config.json", **others):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    for other, values in others.items():
        (tmp_path / f"{other}.json").write_text(json.dumps(values))
    said = Said()
    read(path, said)
    return said


def entry_of(said, **more):
    return resolve(parse({"name": "own", **said.content(), **more}, where="", folder=Path()), None).entry


def test_timm(tmp_path):
    said = told(timm.read, TIMM, tmp_path)
    entry = entry_of(said, checkpoint="x", layout=None)
    assert said.content()["base"] == "mobilevit_xxs_classify"
    assert said.content()["layout"] == "timm"
    assert said.get("classes") == 3
    assert entry.labels.names == ("cat", "dog", "owl")
    assert entry.licence == "cvnets-license"
    assert entry.preprocess.model_dump() == {**entry.preprocess.model_dump(), "mode": "crop", "shorter_side_px": 284}
    assert (entry.preprocess.interpolation, entry.preprocess.antialias) == ("bicubic", True)
    assert entry.preprocess.crop_offset == "round"
    assert (entry.normalize.channel_order, entry.normalize.mean) == ("RGB", (0, 0, 0))
    assert said.missing == ()


def test_old_files_of_timm_have_their_keys_beside_the_others(tmp_path):
    flat = {**{key: value for key, value in TIMM.items() if key != "pretrained_cfg"}, **TIMM["pretrained_cfg"]}
    assert told(timm.read, flat, tmp_path).content() == told(timm.read, TIMM, tmp_path).content()


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"input_size": [3, 192, 256]}, "crop_mode 'center' with crop_pct 0.9 to 256x192"),
        ({"crop_mode": "border"}, "give --resize"),
        ({"interpolation": "lanczos"}, "'lanczos' is not served"),
        ({"crop_mode": "squash", "crop_pct": 1.0, "input_size": [3, 192, 256]}, None),
    ],
)
def test_what_timm_does_and_the_server_does_not_has_to_be_said(tmp_path, changes, missing):
    said = told(timm.read, {**TIMM, "pretrained_cfg": {**TIMM["pretrained_cfg"], **changes}}, tmp_path)
    assert [missing in reason for reason in said.missing] == ([True] if missing else [])
    if missing is None:
        assert said.content()["preprocess"]["resize"] == "squash"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architecture": "resnet50"}, "'resnet50' is none of"),
        ({"num_classes": 4}, "config.json num_classes says classes 4, .*pretrained_cfg.num_classes says 3"),
        ({"num_classes": "three"}, "num_classes has three, not int"),
        ({"label_names": {"0": "cat", "2": "dog"}}, "class numbers must be 0 to 1"),
        ({"pretrained_cfg": {"mean": [0, "x", 0]}}, "mean has .*, not 3 numbers"),
        ({"pretrained_cfg": {"crop_pct": 3}}, None),
        ({"pretrained_cfg": {"input_size": [3, 64, 64], "crop_pct": 3}}, "crop_pct has 3"),
        ({"pretrained_cfg": {"input_size": [1, 64, 64]}}, "1 channels"),
    ],
)
def test_wrong_files_of_timm_end_in_one_line(tmp_path, changes, said):
    if said is None:
        told(timm.read, {**TIMM, **changes}, tmp_path)
        return
    with pytest.raises(HubError, match=said) as caught:
        told(timm.read, {**TIMM, **changes}, tmp_path)
    assert "\n" not in str(caught.value)


def test_transformers(tmp_path):
    said = told(transformers.read, TRANSFORMERS, tmp_path, preprocessor_config=PROCESSOR)
    entry = entry_of(said, checkpoint="x")
    assert said.content()["base"] == "mobilevit_xxs_segment"
    assert said.get("classes") == 3
    assert entry.labels.names == ("background", "leaf", "stone")
    assert (entry.head.width, entry.head.rates, entry.backbone.output_stride) == (256, (6, 12, 18), 16)
    assert (entry.input.width, entry.input.height) == (256, 192)
    assert (entry.preprocess.mode, entry.preprocess.shorter_side_px) == ("crop", 288)
    assert (entry.preprocess.interpolation, entry.preprocess.antialias) == ("bicubic", True)
    assert entry.normalize.channel_order == "BGR"
    assert entry.normalize.mean == (0, 0, 0)
    assert said.missing == ()


def test_a_processor_that_normalises_and_squashes(tmp_path):
    config = {
        "model_type": "swiftformer",
        "architectures": ["SwiftFormerForImageClassification"],
        "embed_dims": [48, 56, 112, 220],
        "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    }
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_normalize": True,
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.4, 0.5, 0.6],
        "resample": 2,
        "size": {"height": 160, "width": 224},
    }
    said = told(transformers.read, config, tmp_path, preprocessor_config=processor)
    table = said.content()["preprocess"]
    assert table["mean"] == [0.1, 0.2, 0.3]
    assert table["resize"] == "squash"
    assert table["channels"] == "RGB"
    assert said.content()["input"] == {"width": 224, "height": 160}
    assert ["only LABEL_0" in reason for reason in said.missing] == [True]


@pytest.mark.parametrize(
    ("changes", "processor", "said"),
    [
        ({"hidden_act": "relu"}, {}, "hidden_act is 'relu'; the network of this project has 'silu'"),
        ({"model_type": "vit"}, {}, "model_type 'vit' is none of"),
        ({"architectures": ["MobileViTModel"]}, {}, "MobileViTModel has no head"),
        ({"hidden_sizes": [1, 2, 3]}, {}, r"hidden_sizes is \[1, 2, 3\]"),
        ({"num_labels": 7}, {}, "num_labels says classes 7, .*id2label says 3"),
        ({}, {"rescale_factor": 1.0}, "scaled to 0..1"),
        ({}, {"do_rescale": False}, "scaled to 0..1"),
    ],
)
def test_wrong_files_of_transformers_end_in_one_line(tmp_path, changes, processor, said):
    with pytest.raises(HubError, match=said) as caught:
        told(transformers.read, {**TRANSFORMERS, **changes}, tmp_path, preprocessor_config={**PROCESSOR, **processor})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["resample", "crop_size"])
def test_what_transformers_does_not_say_has_to_be_said(tmp_path, missing):
    processor = {key: value for key, value in PROCESSOR.items() if key != missing}
    assert len(told(transformers.read, TRANSFORMERS, tmp_path, preprocessor_config=processor).missing) == 1


def test_openmmlab_is_parsed_and_never_executed(tmp_path):
    said = told(openmmlab.read, OPENMMLAB, tmp_path, name="emo.py")
    content = said.content()
    assert content["labels"] == ["bolt", "nut", "screw"]
    assert content["input"] == {"width": 320, "height": 256}
    assert content["preprocess"] == {
        "resize": "squash",
        "interpolation": "bilinear",
        "antialias": False,
        "channels": "RGB",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
    }
    assert content["head"] == {"score_threshold": 0.1, "iou_threshold": 0.5, "max_boxes": 50}
    assert said.get("classes") == 3
    notes = " ".join(said.notes)
    assert "_base_: ../_base_/default_runtime.py not read" in notes
    assert "model (line 7)" in notes
    assert "line 17" in notes


def test_an_aspect_ratio_that_is_kept_has_to_be_decided(tmp_path):
    said = told(openmmlab.read, OPENMMLAB.replace("keep_ratio=False", "keep_ratio=True"), tmp_path, name="emo.py")
    assert ["keep_ratio" in reason for reason in said.missing] == [True]


@pytest.mark.parametrize("text", ["a = (", "classes = 3", "a = " + "-" * 5000 + "1", "model = [", "\0"])
def test_wrong_files_of_openmmlab_end_in_one_line(tmp_path, text):
    try:
        told(openmmlab.read, text, tmp_path, name="a.py")
    except HubError as error:
        assert "\n" not in str(error)


@pytest.fixture(scope="module")
def network():
    entry = replace(zoo.get("emo_1m_detect"), labels=LabelSet("", own=("a", "b", "c")))
    made = assemble.build(entry)
    loading.random_(made, 0)
    return made


@pytest.fixture
def mm(tmp_path, network):
    """A folder with an OpenMMLab configuration and a checkpoint of a detector with three classes."""
    (tmp_path / "emo.py").write_text(OPENMMLAB)
    content = {"meta": {"CLASSES": ["bolt", "nut", "screw"]}, "state_dict": network.state_dict()}
    torch.save(content, tmp_path / "epoch_12.pth")
    return tmp_path


def test_a_folder_is_a_definition(mm):
    found = folder.read(mm, name="parts", given={"version": "1.2"})
    assert found.missing == ()
    assert found.content["base"] == "emo_1m_detect"
    assert found.content["version"] == "1.2"
    assert found.content["checkpoint"] == str(mm / "epoch_12.pth")
    entry = resolve(parse(found.content, where="", folder=mm), None).entry
    assert entry.labels.names == ("bolt", "nut", "screw")
    assert entry.head.score_threshold == 0.1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"base": "emo_2m_detect"}, "the command line says base emo_2m_detect, .*epoch_12.pth says emo_1m_detect"),
        ({"base": "emo_9m"}, "the command line: no model is called"),
        ({"width": 512}, "the command line says width 512, .*emo.py test_pipeline Resize says 320"),
        ({"channels": "BGR"}, "the command line says channels BGR, .*img_norm_cfg.to_rgb says RGB"),
        ({"labels": "five.txt"}, "the command line says labels .*, .*emo.py classes says"),
    ],
)
def test_a_contradiction_names_both_places(mm, monkeypatch, given, said):
    monkeypatch.chdir(mm)
    (mm / "five.txt").write_text("a\nb\nc\nd\ne\n")
    with pytest.raises(HubError, match=said):
        folder.read(mm, name="parts", given=given)


def test_labels_of_the_checkpoint_and_of_the_configuration_must_agree(mm):
    (mm / "emo.py").write_text(OPENMMLAB.replace("'screw'", "'washer'"))
    with pytest.raises(HubError, match=r"emo.py classes says labels .*epoch_12.pth meta.classes says"):
        folder.read(mm, name="parts", given={})


def test_as_many_classes_as_the_tensors_have(mm):
    (mm / "emo.py").write_text(OPENMMLAB.replace("num_classes = 3", "num_classes = 4"))
    with pytest.raises(HubError, match=r"emo.py model.bbox_head.num_classes says classes 4, .*epoch_12.pth says 3"):
        folder.read(mm, name="parts", given={})


def test_labels_are_demanded_where_nothing_has_them(mm, network):
    (mm / "emo.py").write_text("a = 1")
    torch.save(network.state_dict(), mm / "epoch_12.pth")
    (reason,) = folder.read(mm, name="parts", given={}).missing
    assert "3 classes" in reason
    assert "--labels" in reason


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "no config.json"),
        ({"config.json": "{}"}, "neither architecture"),
        ({"config.json": "[]"}, "holds list"),
        ({"config.json": "{"}, "not JSON"),
        ({"config.json": json.dumps(TIMM)}, "no weights"),
        ({"config.json": json.dumps(TIMM), "a.pth": "x", "b.pth": "x"}, r"several files .*a.pth, b.pth.*--checkpoint"),
        ({"a.py": "", "b.py": ""}, "several .py files"),
    ],
)
def test_incomplete_folders_end_in_one_line(tmp_path, files, said):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(HubError, match=said) as caught:
        folder.read(tmp_path, name="own", given={})
    assert "\n" not in str(caught.value)


def test_the_safe_form_of_the_same_weights_is_taken(tmp_path):
    for name in ("pytorch_model.bin", "model.safetensors", "optimizer.pt"):
        (tmp_path / name).write_bytes(b"x")
    said = Said()
    assert weights.find(tmp_path, said).name == "model.safetensors"
    assert "pytorch_model.bin" in said.notes[0]


def _logits_here(path, pixels):
    """Logits of a folder's definition for float [N, 3, H, W], already normalised."""
    found = folder.read(path, name="own", given={})
    definition = parse(found.content, where="", folder=path)
    state = container.read(definition.checkpoint).state
    fit = fitting.recognised(state, base_of(definition), definition.layout)
    made = assemble.build(resolve(definition, fit.layout).entry)
    loading.load(made, state, fit.layout)
    with torch.inference_mode():
        return made(pixels)


def test_a_folder_of_transformers_itself(tmp_path):
    hf = pytest.importorskip("transformers")
    names = {0: "cat", 1: "dog", 2: "owl"}
    config = hf.MobileViTConfig(
        hidden_sizes=[64, 80, 96], neck_hidden_sizes=[16, 16, 24, 48, 64, 80, 320], expand_ratio=2.0, id2label=names
    )
    torch.manual_seed(0)
    theirs = hf.MobileViTForImageClassification(config).eval()
    loading.random_(theirs, 0)  # the weights that it begins with give numbers near zero
    theirs.save_pretrained(tmp_path)
    hf.MobileViTImageProcessor(size={"shortest_edge": 288}).save_pretrained(tmp_path)
    x = torch.randn(2, 3, 256, 256)
    with torch.inference_mode():
        expected = theirs(x).logits
    assert (_logits_here(tmp_path, x) - expected).abs().max() < 1e-4 * expected.std()
    assert folder.read(tmp_path, name="own", given={}).missing == ()


@pytest.mark.skipif(
    "timm" not in sys.modules, reason="timm needs an import of its own where torchvision has no operators"
)
def test_a_folder_of_timm_itself(tmp_path):
    framework = sys.modules["timm"]
    torch.manual_seed(0)
    theirs = framework.create_model("mobilevit_xxs", num_classes=3).eval()
    framework.models.save_for_hf(theirs, tmp_path, model_config={"label_names": ["cat", "dog", "owl"]})
    x = torch.randn(2, 3, 256, 256)
    with torch.inference_mode():
        expected = theirs(x)
    assert (_logits_here(tmp_path, x) - expected).abs().max() < 1e-4 * expected.std()
