"""Reading checkpoint files, strict loading through every key layout, random weights, and the digest."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from model_store import zoo
from model_store.build import assemble
from model_store.verify.golden import read
from model_store.weights import container, layouts
from model_store.weights import load as weights
from model_store.weights.errors import CheckpointError

GOLDEN = Path(__file__).parents[2] / "parity" / "golden"
NATIVE = layouts.get("native")


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)


def small_state() -> dict[str, Tensor]:
    network = Small()
    weights.random_(network, seed=3)
    return dict(network.state_dict())


def test_load_copies_everything() -> None:
    state = small_state()
    network = Small()
    weights.load(network, state, NATIVE)
    assert weights.digest(network.state_dict()) == weights.digest(state)


def test_a_missing_counter_is_no_fault() -> None:
    state = small_state()
    del state["norm.num_batches_tracked"]
    weights.load(Small(), state, NATIVE)


def test_load_lists_everything_that_does_not_fit_and_changes_nothing() -> None:
    state = small_state()
    del state["conv.bias"]
    state["extra.weight"] = torch.zeros(1)
    state["conv.weight"] = torch.zeros(4, 3, 3, 3)
    network = Small()
    before = weights.digest(network.state_dict())
    with pytest.raises(CheckpointError) as caught:
        weights.load(network, state, NATIVE)
    assert caught.value.missing == ("conv.bias",)
    assert caught.value.unexpected == ("extra.weight",)
    assert caught.value.shapes == (("conv.weight", (4, 3, 3, 3), (4, 3, 1, 1)),)
    for text in ("conv.bias", "extra.weight", "[4, 3, 3, 3]", "[4, 3, 1, 1]", "native"):
        assert text in str(caught.value)
    assert weights.digest(network.state_dict()) == before


def test_load_refuses_nan() -> None:
    state = small_state()
    state["conv.bias"] = torch.tensor([0.0, float("nan"), 0.0, 0.0])
    with pytest.raises(CheckpointError, match=r"NaN or infinity: conv\.bias"):
        weights.load(Small(), state, NATIVE)


def test_a_long_list_is_cut_in_the_text_but_not_in_the_fields() -> None:
    state = small_state() | {f"extra.{i}": torch.zeros(1) for i in range(20)}
    with pytest.raises(CheckpointError, match="and 12 more") as caught:
        weights.load(Small(), state, NATIVE)
    assert len(caught.value.unexpected) == 20


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".safetensors"])
def test_files_of_every_kind_are_read(tmp_path: Path, suffix: str) -> None:
    path, state = tmp_path / f"weights{suffix}", small_state()
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    assert weights.digest(container.read(path).state) == weights.digest(state)


@pytest.mark.parametrize("key", ["state_dict", "model", "net", "model_state_dict"])
def test_containers_and_ddp_prefixes_are_unwrapped(tmp_path: Path, key: str) -> None:
    state = small_state()
    torch.save({key: {f"module.{name}": value for name, value in state.items()}, "epoch": 3}, tmp_path / "a.pt")
    assert weights.digest(container.read(tmp_path / "a.pt").state) == weights.digest(state)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([torch.zeros(1)], "holds list"),
        ({}, "not a dict of tensors"),
        ({"weight": torch.zeros(1), "epoch": 3}, "not named tensors: epoch"),
        ({0: torch.zeros(1)}, "not named tensors: 0"),
    ],
)
def test_files_without_a_state_dict_are_refused(tmp_path: Path, content: Any, reason: str) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=reason):
        container.read(tmp_path / "a.pt")


@pytest.mark.parametrize("name", ["absent.pt", "noise.pt", "noise.safetensors", "noise.onnx", "code.pt"])
def test_unreadable_files_are_refused_with_their_path(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.startswith("noise"):
        path.write_bytes(b"\x00\x01 not a checkpoint" * 20)
    if name == "code.pt":  # a pickled module would run code when loaded
        torch.save(nn.Linear(1, 1), path)
    with pytest.raises(CheckpointError, match=str(path)):
        container.read(path)


def test_random_weights_depend_on_the_seed_only() -> None:
    def drawn(seed: int) -> str:
        network = Small()
        weights.random_(network, seed)
        return weights.digest(network.state_dict())

    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)


def test_the_digest_sees_names_shapes_dtypes_and_values_but_not_the_order() -> None:
    state = {"a": torch.arange(6.0), "b": torch.zeros(2)}
    same = weights.digest({"b": state["b"], "a": state["a"]})
    assert weights.digest(state) == same
    assert len(same) == 64
    others = [
        {"a": state["a"], "c": state["b"]},
        {"a": state["a"].view(2, 3), "b": state["b"]},
        {"a": state["a"], "b": torch.zeros(2, dtype=torch.int32)},
        {"a": state["a"] + 1e-6, "b": state["b"]},
    ]
    assert len({same, *(weights.digest(other) for other in others)}) == 5


def test_the_digest_sees_through_strides() -> None:
    value = torch.arange(6.0).view(2, 3)
    assert weights.digest({"a": value.t().contiguous().t()}) == weights.digest({"a": value})


def official_rows(name: str) -> list[tuple[str, list[int]]]:
    content = read(GOLDEN / name)
    return [(key, shape) for key, shape, _ in content.get("state_dict") or content["keys"]]


@pytest.mark.parametrize(
    ("file", "layout", "name"),
    [
        ("mobilevit_s.json", "cvnets", "mobilevit_s_classify"),
        ("heads/cvnets_v01_ssd_xs.json", "cvnets", "mobilevit_xs_detect"),
        ("heads/cvnets_v01_deeplabv3_xxs.json", "cvnets", "mobilevit_xxs_segment"),
        ("heads/hf_deeplabv3_mobilevit_xxs.json", "transformers", "mobilevit_xxs_segment"),
        ("heads/emo_retinanet_1M.json", "emo_mmdetection", "emo_1m_retinanet"),
        ("heads/emo_pspnet_1M.json", "emo_mmsegmentation", "emo_1m_pspnet"),
        ("heads/swiftformer_semfpn_XS.json", "swiftformer_mmsegmentation", "swiftformer_xs_semantic_fpn"),
    ],
)
def test_every_official_key_is_renamed_to_one_of_ours(file: str, layout: str, name: str) -> None:
    state = {key: torch.zeros(shape) for key, shape in official_rows(file)}
    native = weights.to_native(state, layouts.get(layout))
    own = assemble.build(zoo.get(name)).state_dict()
    assert {key: value.shape for key, value in native.items()} == {key: value.shape for key, value in own.items()}


# The names of timm and transformers for one key of each kind, as in specs of those projects.
TIMM = {
    "stem.conv.weight": "backbone.stem.conv.weight",
    "stem.bn.running_var": "backbone.stem.norm.running_var",
    "stages.1.2.conv1_1x1.conv.weight": "backbone.stages.1.2.expand.conv.weight",
    "stages.1.2.conv2_kxk.bn.bias": "backbone.stages.1.2.depthwise.norm.bias",
    "stages.3.0.conv3_1x1.conv.weight": "backbone.stages.3.0.reduce.conv.weight",
    "stages.2.1.conv_kxk.conv.weight": "backbone.stages.2.1.local.conv.weight",
    "stages.2.1.conv_1x1.weight": "backbone.stages.2.1.to_tokens.weight",
    "stages.2.1.transformer.1.norm1.bias": "backbone.stages.2.1.layers.1.norm1.bias",
    "stages.2.1.transformer.1.attn.qkv.bias": "backbone.stages.2.1.layers.1.qkv.bias",
    "stages.2.1.transformer.1.attn.proj.weight": "backbone.stages.2.1.layers.1.out.weight",
    "stages.2.1.transformer.0.norm2.weight": "backbone.stages.2.1.layers.0.norm2.weight",
    "stages.2.1.transformer.0.mlp.fc1.weight": "backbone.stages.2.1.layers.0.fc1.weight",
    "stages.2.1.transformer.0.mlp.fc2.bias": "backbone.stages.2.1.layers.0.fc2.bias",
    "stages.4.1.norm.weight": "backbone.stages.4.1.norm.weight",
    "stages.4.1.conv_proj.bn.weight": "backbone.stages.4.1.from_tokens.norm.weight",
    "stages.4.1.conv_fusion.conv.weight": "backbone.stages.4.1.fuse.conv.weight",
    "final_conv.bn.running_mean": "head.expand.norm.running_mean",
    "head.fc.bias": "head.fc.bias",
}
TRANSFORMERS = {
    "mobilevit.conv_1x1_exp.convolution.weight": "head.expand.conv.weight",
    "classifier.weight": "head.fc.weight",
    "mobilevit.encoder.layer.2.transformer.layer.1.attention.attention.key.bias": (
        "backbone.stages.2.1.layers.1.qkv.bias#1"
    ),
    "mobilevit.encoder.layer.4.layernorm.weight": "backbone.stages.4.1.norm.weight",
    "mobilevit.encoder.layer.0.layer.0.conv_3x3.normalization.bias": "backbone.stages.0.0.depthwise.norm.bias",
}


@pytest.mark.parametrize(("theirs", "ours"), TIMM.items())
def test_timm_names(theirs: str, ours: str) -> None:
    assert layouts.rename(theirs, layouts.get("timm")) == ours
    if "num" not in ours:
        assert ours in assemble.build(zoo.get("mobilevit_xxs_classify")).state_dict()


@pytest.mark.parametrize(("theirs", "ours"), TRANSFORMERS.items())
def test_transformers_names(theirs: str, ours: str) -> None:
    assert layouts.rename(theirs, layouts.get("transformers")) == ours


def test_query_key_and_value_are_joined_in_this_order() -> None:
    prefix = "mobilevit.encoder.layer.2.transformer.layer.0.attention.attention"
    state = {f"{prefix}.{name}.bias": torch.full((2,), float(i)) for i, name in enumerate(("query", "key", "value"))}
    joined = weights.to_native(dict(reversed(state.items())), layouts.get("transformers"))
    assert joined["backbone.stages.2.1.layers.0.qkv.bias"].tolist() == [0, 0, 1, 1, 2, 2]
    del state[f"{prefix}.key.bias"]
    with pytest.raises(CheckpointError, match=r"parts 0, 1 and 2.*found \[0, 2\]"):
        weights.load(Small(), state, layouts.get("transformers"))


def test_training_only_parts_are_ignored_and_strangers_are_not() -> None:
    cvnets = layouts.get("cvnets")
    assert layouts.rename("seg_head.aux_head.0.block.conv.weight", cvnets) is None
    assert layouts.rename("encoder.neural_augmentor.brightness._low", cvnets) is None
    assert layouts.rename("decoder.weight", cvnets) == "decoder.weight"


def test_keys_that_meet_are_refused() -> None:
    state = {"classifier.fc.bias": torch.zeros(1), "encoder.classifier.fc.bias": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"both mean 'head\.fc\.bias'"):
        weights.load(Small(), state, layouts.get("cvnets"))


def test_unknown_layouts_are_named() -> None:
    with pytest.raises(layouts.UnknownLayout, match=r"keras.*cvnets"):
        layouts.get("keras")
