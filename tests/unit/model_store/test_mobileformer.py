"""Mobile-Former: its parts by definition, sizes, tokens, and the containers its checkpoints come in."""

from pathlib import Path

import pytest
import torch

from model_store import zoo
from model_store.build import assemble
from model_store.networks.backbones.mobileformer import CONFIGS, DynamicReLU, GlobalToLocal, LocalToGlobal, MobileFormer
from model_store.networks.layers import Shuffle
from model_store.verify.golden import fill, read
from model_store.weights import container, layouts
from model_store.weights import load as weights

GOLDEN = Path(__file__).parents[2] / "parity" / "golden"
# Parameters of each head for 80 and 150 classes: counted in specs/heads.md 3.3 from the channels alone.
HEADS = {
    "26m": (1_054_900, 3_703_446),
    "52m": (1_054_900, 3_703_446),
    "96m": (1_092_884, 3_941_014),
    "151m": (1_092_884, 3_941_014),
    "214m": (1_130_868, 4_178_582),
    "294m": (1_164_596, 4_416_150),
    "508m": (1_227_956, 4_772_502),
}


@pytest.mark.parametrize("size", [(32, 32), (33, 95), (64, 40), (1, 1)])
def test_maps_of_any_input(size: tuple[int, int]) -> None:
    backbone = MobileFormer(variant="26m").eval()
    with torch.inference_mode():
        maps = backbone(torch.zeros(1, 3, *size))
    height, width = size
    for channels, stride, found in zip(backbone.channels, (4, 8, 16, 32), maps, strict=True):
        assert found.shape == (1, channels, -(-height // stride), -(-width // stride))


@pytest.mark.parametrize("variant", CONFIGS)
def test_tokens_are_the_fifth_entry_where_asked_for(variant: str) -> None:
    config = CONFIGS[variant]
    with torch.inference_mode():
        *maps, tokens = MobileFormer(variant=variant, tokens=True).eval()(torch.zeros(2, 3, 32, 32))
    assert len(maps) == 4
    assert tokens.shape == (2, config.tokens, config.width)


def test_shuffle_interleaves_groups() -> None:
    x = torch.randn(2, 12, 3, 5, generator=torch.Generator().manual_seed(0))
    found = Shuffle(groups=4)(x)
    for group in range(4):
        for place in range(3):
            assert torch.equal(found[:, place * 4 + group], x[:, group * 3 + place])


def test_dynamic_relu_is_steered_by_token_0() -> None:
    torch.manual_seed(0)
    module = DynamicReLU(channels=5, width=8).double().eval()
    x, z = torch.randn(2, 5, 3, 4, dtype=torch.float64), torch.randn(2, 3, 8, dtype=torch.float64)
    h = ((module.fc2(module.fc1(z[:, 0]).clamp(min=0)) + 3).clamp(0, 6) / 6)[:, :, None, None]
    a, b = (h[:, :5] - 0.5) * 2 + 1, (h[:, 5:] - 0.5) * 2
    torch.testing.assert_close(module(x, z), torch.max(a * x, b * x), atol=1e-12, rtol=0)
    other = z.clone()
    other[:, 1:] = 0
    assert torch.equal(module(x, z), module(x, other))


def test_map_and_tokens_read_each_other() -> None:
    torch.manual_seed(0)
    x, z = torch.randn(2, 6, 4, 5, dtype=torch.float64), torch.randn(2, 3, 8, dtype=torch.float64)
    up, down = LocalToGlobal(channels=6, width=8).double().eval(), GlobalToLocal(channels=6, width=8).double().eval()
    read, added = torch.empty(2, 3, 6, dtype=torch.float64), torch.empty_like(x)
    for picture in range(2):
        query, key, value = up.query(z[picture]), down.key(z[picture]), down.value(z[picture])
        for head in range(2):
            part = slice(head * 3, head * 3 + 3)
            positions = x[picture, part].flatten(1).T  # (H*W, C/heads)
            read[picture, :, part] = (query[:, part] @ positions.T * 3**-0.5).softmax(dim=1) @ positions
            share = (positions @ key[:, part].T * 3**-0.5).softmax(dim=1)
            added[picture, part] = (share @ value[:, part]).T.reshape(3, 4, 5)
    read = read * 2 * ((up.gate(z) + 3).clamp(0, 6) / 6)
    torch.testing.assert_close(up(x, z), up.norm(z + up.project(read)), atol=1e-12, rtol=0)
    torch.testing.assert_close(down(x, z), x + added, atol=1e-12, rtol=0)


@pytest.mark.parametrize("variant", ["26m", "151m"])
def test_output_stride_16_dilates_what_follows(variant: str) -> None:
    coarse = MobileFormer(variant=variant).eval()
    fine = MobileFormer(variant=variant, output_stride=16).eval()
    fine.load_state_dict(coarse.state_dict())
    dilated = [
        name for name, module in fine.named_modules() if isinstance(module, torch.nn.Conv2d) and module.dilation[0] == 2
    ]
    first, last = fine.taps[2] + 1, fine.taps[3]
    assert dilated == [
        f"blocks.{first}.conv3.conv",
        *(f"blocks.{index}.conv2.conv" for index in range(first + 1, last + 1)),
    ]
    x = torch.randn(1, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for index, (a, b) in enumerate(zip(coarse(x), fine(x), strict=True)):
            if index < 3:
                assert torch.equal(a, b)
            else:
                assert (a.shape[2:], b.shape[2:]) == ((3, 2), (6, 4))


def test_refuses_what_it_is_not() -> None:
    with pytest.raises(ValueError, match="'1g'"):
        MobileFormer(variant="1g")
    with pytest.raises(ValueError, match="16 or 32"):
        MobileFormer(variant="26m", output_stride=8)


@pytest.mark.parametrize("variant", HEADS)
def test_sizes_of_the_dense_heads(variant: str) -> None:
    for task, expected in zip(("detect", "segment"), HEADS[variant], strict=True):
        with torch.device("meta"):  # parameters without data
            channels = MobileFormer(variant=variant).channels
            head = assemble.build_head(zoo.get(f"mobileformer_{variant}_{task}"), channels)
        assert sum(parameter.numel() for parameter in head.parameters()) == expected


@pytest.mark.parametrize("key_of_weights", ["", "state_dict", "state_dict_ema"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_containers_and_prefix(key_of_weights: str, prefix: str, tmp_path: Path) -> None:
    content = read(GOLDEN / "mobileformer_26M.json")
    state = fill(content["state_dict"], content["salt"], content["gain"])
    named = {prefix + key: value for key, value in state.items()}
    torch.save({key_of_weights: named, "epoch": 449} if key_of_weights else named, tmp_path / "checkpoint.pth")
    network = assemble.build(zoo.get("mobileformer_26m_classify"))
    weights.load(network, container.read(tmp_path / "checkpoint.pth").state, layouts.get("mobileformer"))
    assert weights.digest(network.state_dict()) == weights.digest(weights.to_native(state, layouts.get("mobileformer")))
