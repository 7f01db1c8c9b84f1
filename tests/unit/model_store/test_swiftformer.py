"""SwiftFormer: the two forms of attention, the dense mode, sizes, and the names its checkpoints come in."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from model_store import zoo
from model_store.build import assemble
from model_store.networks.backbones.swiftformer import AdditiveAttention, SwiftFormer
from model_store.verify.golden import fill, read
from model_store.weights import container, layouts
from model_store.weights import load as weights

GOLDEN = Path(__file__).parents[2] / "parity" / "golden"
# Parameters of each head for 80 and 150 classes: counted in specs/heads.md 3.3 from the channels alone.
HEADS = {
    "xs": (1_178_148, 4_624_022),
    "s": (1_211_092, 4_653_718),
    "l1": (1_349_940, 5_841_558),
    "l3": (1_518_900, 6_791_830),
}


@pytest.mark.parametrize("size", [(32, 32), (33, 95), (64, 40), (1, 1)])
def test_maps_of_any_input(size: tuple[int, int]) -> None:
    backbone = SwiftFormer(variant="xs", dense=True).eval()
    with torch.inference_mode():
        maps = backbone(torch.zeros(1, 3, *size))
    height, width = size
    for channels, stride, found in zip(backbone.channels, (4, 8, 16, 32), maps, strict=True):
        assert found.shape == (1, channels, -(-height // stride), -(-width // stride))


@pytest.mark.parametrize("attention", ["l2", "ones"])
def test_attention_is_that_of_the_paper(attention: str) -> None:
    torch.manual_seed(0)
    module = AdditiveAttention(channels=6, attention=attention).double().eval()  # type: ignore[arg-type]
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    expected = torch.empty_like(x)
    for picture in range(2):  # token by token
        query = torch.stack([F.normalize(module.query(token), dim=0) for token in x[picture]])
        key = torch.stack([F.normalize(module.key(token), dim=0) for token in x[picture]])
        share = torch.stack([q @ module.weight[:, 0] for q in query]) * 6**-0.5
        share = share / share.norm() if attention == "l2" else torch.ones_like(share)
        pooled = sum(a * q for a, q in zip(share, query, strict=True))
        for i in range(5):
            expected[picture, i] = module.out(module.project(pooled * key[i]) + query[i])
    torch.testing.assert_close(module(x), expected, atol=1e-12, rtol=0)


def test_output_stride_16_reads_the_same_places() -> None:
    # Every second cell of the finer map sees what the cell of the coarser one saw, up to the block's attention, which
    # is among more positions; without that part the two are equal.
    coarse = SwiftFormer(variant="xs").eval()
    fine = SwiftFormer(variant="xs", output_stride=16).eval()
    with torch.no_grad():
        for name, value in coarse.named_parameters():
            if name.startswith("stages.3") and name.endswith("scale1"):
                value.zero_()
    fine.load_state_dict(coarse.state_dict())
    x = torch.randn(1, 3, 128, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        last, finer = coarse(x)[3], fine(x)[3]
    assert finer.shape[2:] == (8, 6)
    torch.testing.assert_close(finer[:, :, ::2, ::2], last, atol=1e-5, rtol=1e-5)


def test_fresh_norms_of_the_dense_mode_are_the_identity() -> None:
    plain, dense = SwiftFormer(variant="xs").eval(), SwiftFormer(variant="xs", dense=True).eval()
    missing = dense.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert {name.split(".")[0] for name in missing} == {"norms"}
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for a, b in zip(plain(x), dense(x), strict=True):
            torch.testing.assert_close(b, a, atol=0, rtol=1e-5)  # BatchNorm's eps is 1e-5


def test_refuses_what_it_is_not() -> None:
    with pytest.raises(ValueError, match="'m'"):
        SwiftFormer(variant="m")
    with pytest.raises(ValueError, match="16 or 32"):
        SwiftFormer(variant="xs", output_stride=8)
    with pytest.raises(ValueError, match="'softmax'"):
        SwiftFormer(variant="xs", attention="softmax")  # type: ignore[arg-type]


@pytest.mark.parametrize("variant", HEADS)
def test_sizes_of_the_dense_heads(variant: str) -> None:
    for task, expected in zip(("detect", "segment"), HEADS[variant], strict=True):
        with torch.device("meta"):  # parameters without data
            head = assemble.build_head(zoo.get(f"swiftformer_{variant}_{task}"), SwiftFormer(variant=variant).channels)
        assert sum(parameter.numel() for parameter in head.parameters()) == expected


def to_timm(key: str) -> str:
    """Official name -> timm's, from the table in specs/backbones.md."""
    parts = key.split(".")
    if parts[0] == "patch_embed":
        return ".".join(["stem", *parts[1:]])
    if parts[0] == "dist_head":
        return f"head_dist.{parts[1]}"
    if parts[0] != "network":
        return key
    index, rest = int(parts[1]), ".".join(parts[2:])
    if index % 2:
        return f"stages.{(index + 1) // 2}.downsample.{rest}"
    rest = rest.replace("attn.Proj", "attn.proj")
    if parts[-1].startswith("layer_scale"):
        rest += ".gamma"
    return f"stages.{index // 2}.blocks.{rest}"


def to_transformers(key: str) -> str:
    """Official name -> that of transformers."""
    parts = key.split(".")
    if parts[0] == "patch_embed":
        return ".".join(["swiftformer.patch_embed.patch_embedding", *parts[1:]])
    if parts[0] != "network":
        return key
    rest = ".".join(parts[2:])
    for ours, theirs in (("dwconv", "depth_wise_conv"), ("pwconv", "point_wise_conv"), ("attn.Proj", "attn.proj")):
        rest = rest.replace(ours, theirs)
    return f"swiftformer.encoder.network.{parts[1]}.{'' if int(parts[1]) % 2 else 'blocks.'}{rest}"


@pytest.mark.parametrize(
    ("layout", "rename"), [("swiftformer_timm", to_timm), ("swiftformer_transformers", to_transformers)]
)
def test_all_layouts_mean_the_same_weights(layout: str, rename: Callable[[str], str], tmp_path: Path) -> None:
    content = read(GOLDEN / "swiftformer_XS.json")
    state = fill(content["state_dict"], content["salt"], content["gain"])
    official = weights.to_native(state, layouts.get("swiftformer"))
    renamed = weights.to_native({rename(key): value for key, value in state.items()}, layouts.get(layout))
    assert weights.digest(renamed) == weights.digest(official)
    torch.save({"model": state, "epoch": 299}, tmp_path / "checkpoint.pth")
    network = assemble.build(zoo.get("swiftformer_xs_classify"))
    weights.load(network, container.read(tmp_path / "checkpoint.pth").state, layouts.get("swiftformer"))
    assert weights.digest(network.state_dict()) == weights.digest(official)


def test_the_layout_says_which_attention() -> None:
    swiftformers = [layout for layout in layouts.LAYOUTS.values() if layout.name.startswith("swiftformer")]
    forms = {layout.name: layout.backbone_options["attention"] for layout in swiftformers}
    assert forms == {
        "swiftformer": "l2",
        "swiftformer_first": "ones",
        "swiftformer_mmsegmentation": "l2",
        "swiftformer_mmsegmentation_first": "ones",
        "swiftformer_timm": "l2",
        "swiftformer_transformers": "ones",
    }
    entry = zoo.get("swiftformer_xs_classify")
    first, second = (
        assemble.build(replace(entry, backbone=zoo.SwiftFormerBackbone(variant="xs", attention=form)))
        for form in ("l2", "ones")
    )
    weights.random_(first, 0)
    weights.random_(second, 0)
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert not torch.allclose(first(x), second(x), atol=1e-3)
