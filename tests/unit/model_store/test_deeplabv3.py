"""DeepLabv3: shapes, forms, and the class map against plain interpolation and argmax."""

import io

import pytest
import torch
from torch import Tensor, nn

from model_store.networks.heads.deeplabv3 import DeepLabV3, upsample
from model_store.networks.tasks.segment import class_map

# TorchScript is what TorchServe loads; torch announces its successor on every call.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


class Served(nn.Module):
    """A head and its class map as an archive holds them."""

    def __init__(self, *, pool_first: bool, fuse_kernel: int) -> None:
        super().__init__()
        self.head = DeepLabV3(
            in_channels=6, classes=5, width=8, rates=(1, 2, 3), pool_first=pool_first, fuse_kernel=fuse_kernel
        )

    def forward(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        logits = self.head(features)
        return logits, class_map(logits, height=24, width=40, align_corners=False)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (50, 37), (5, 7), (3, 4), (1, 1)])
def test_class_map_is_argmax_of_the_enlarged_logits(height: int, width: int, align_corners: bool) -> None:
    logits = torch.randn(3, 21, 5, 7, generator=torch.Generator().manual_seed(1))
    large = upsample(logits, height=height, width=width, align_corners=align_corners)
    best_two = large.topk(2, dim=1).values
    clear = best_two[:, 0] - best_two[:, 1] > 1e-5  # closer ones may fall either way by rounding
    answer = class_map(logits, height=height, width=width, align_corners=align_corners)
    assert answer.dtype == torch.uint8
    assert answer.shape == (3, height, width)
    assert clear.float().mean() > 0.99
    assert torch.equal(answer[clear], large.argmax(dim=1).to(torch.uint8)[clear])


def test_equal_logits_give_the_lowest_class() -> None:
    logits = torch.zeros(1, 4, 2, 2)
    logits[:, 2:] = 1.0
    assert torch.equal(class_map(logits, height=8, width=8, align_corners=False), torch.full((1, 8, 8), 2).byte())


def test_the_last_of_256_classes_can_win() -> None:
    logits = torch.zeros(1, 256, 2, 2)
    logits[:, 255] = 1.0
    assert int(class_map(logits, height=4, width=4, align_corners=True).min()) == 255
    with pytest.raises(ValueError, match="256 classes"):
        class_map(torch.zeros(1, 257, 2, 2), height=4, width=4, align_corners=True)


def test_align_corners_matters() -> None:
    logits = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    maps = [class_map(logits, height=64, width=64, align_corners=flag) for flag in (False, True)]
    assert not torch.equal(*maps)


@pytest.mark.parametrize(("pool_first", "fuse_kernel"), [(False, 1), (True, 3)])
def test_scripted_and_reloaded_equal_eager(pool_first: bool, fuse_kernel: int) -> None:
    torch.manual_seed(3)
    module = Served(pool_first=pool_first, fuse_kernel=fuse_kernel).eval()
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(module), buffer)
    buffer.seek(0)
    reloaded = torch.jit.load(buffer)
    for pictures in (1, 3, 2):
        features = [torch.zeros(0)] * 3 + [torch.randn(pictures, 6, 3, 5)]  # strides 4, 8, 16 are not looked at
        with torch.inference_mode():
            expected, found = module(features), reloaded(features)
        assert expected[0].shape == (pictures, 5, 3, 5)
        torch.testing.assert_close(found[0], expected[0], atol=1e-6, rtol=0)
        assert torch.equal(found[1], expected[1])


def test_pooled_branch_stands_where_the_form_says() -> None:
    torch.manual_seed(4)
    last = DeepLabV3(in_channels=6, classes=5, width=8, rates=(1, 2, 3)).eval()
    first = DeepLabV3(in_channels=6, classes=5, width=8, rates=(1, 2, 3), pool_first=True).eval()
    state = last.state_dict()
    # The same function, with the fusing weights of the pooled branch moved to the front.
    state["fuse.conv.weight"] = torch.roll(state["fuse.conv.weight"], 8, dims=1)
    first.load_state_dict(state)
    features = [torch.zeros(0)] * 3 + [torch.randn(2, 6, 3, 5)]
    torch.testing.assert_close(first(features), last(features), atol=1e-6, rtol=0)
    first.load_state_dict(last.state_dict())
    assert not torch.allclose(first(features), last(features), atol=1e-3)


@pytest.mark.parametrize(
    ("channels", "classes", "width", "pool_first", "fuse_kernel", "parameters"),
    # specs/heads.md 3.3: heads on SwiftFormer XS and Mobile-Former 26M in mmsegmentation's form, 150 classes
    [(220, 150, 256, True, 3, 4_624_022), (96, 150, 256, True, 3, 3_703_446)],
)
def test_parameter_count(
    channels: int, classes: int, width: int, pool_first: bool, fuse_kernel: int, parameters: int
) -> None:
    head = DeepLabV3(
        in_channels=channels,
        classes=classes,
        width=width,
        rates=(12, 24, 36),
        pool_first=pool_first,
        fuse_kernel=fuse_kernel,
    )
    assert sum(parameter.numel() for parameter in head.parameters()) == parameters
