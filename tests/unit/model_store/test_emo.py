"""EMO: which cells attend to which, sizes, and the containers its checkpoints come in."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from model_store.networks.backbones.emo import CONFIGS, EMO, WindowAttention
from model_store.weights import container


def attention(window: int) -> WindowAttention:
    torch.manual_seed(0)
    return WindowAttention(channels=6, heads=2, window=window).double().eval()


def by_definition(module: WindowAttention, x: Tensor) -> Tensor:
    """Cell by cell: each looks at those whose row and column are its own modulo the number of windows."""
    batch, channels, height, width = x.shape
    side, depth = module.window, channels // module.heads
    rows, columns = -(-height // side), -(-width // side)
    padded = torch.zeros(batch, channels, rows * side, columns * side, dtype=x.dtype)
    padded[:, :, :height, :width] = x
    queries, keys = module.qk(padded).chunk(2, dim=1)
    found = torch.empty_like(x)
    for row in range(height):
        for column in range(width):
            window = (..., slice(row % rows, None, rows), slice(column % columns, None, columns))
            for head in range(module.heads):
                part = slice(head * depth, (head + 1) * depth)
                q = queries[:, part, row, column]  # [N, d]
                k, v = keys[:, part][window].flatten(2), padded[:, part][window].flatten(2)  # [N, d, side*side]
                share = (torch.einsum("nd,ndl->nl", q, k) * depth**-0.5).softmax(dim=1)
                found[:, part, row, column] = torch.einsum("nl,ndl->nd", share, v)
    return found


@pytest.mark.parametrize(("height", "width"), [(3, 3), (6, 9), (7, 4), (2, 5), (1, 1)])
def test_windows_span_the_map_and_padding_takes_part(height: int, width: int) -> None:
    module = attention(3)
    x = torch.randn(2, 6, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(module(x), by_definition(module, x), atol=1e-12, rtol=0)


@pytest.mark.parametrize("size", [(32, 32), (33, 95), (64, 40), (1, 1)])
def test_maps_of_any_input(size: tuple[int, int]) -> None:
    backbone = EMO(variant="1m").eval()
    with torch.inference_mode():
        maps = backbone(torch.zeros(1, 3, *size))
    height, width = size
    for channels, stride, found in zip(backbone.channels, (4, 8, 16, 32), maps, strict=True):
        assert found.shape == (1, channels, -(-height // stride), -(-width // stride))


def test_the_window_changes_no_parameter() -> None:
    first, second = (EMO(variant="5m", window=window).state_dict() for window in (7, 16))
    assert {name: value.shape for name, value in first.items()} == {n: value.shape for n, value in second.items()}


def test_channels_divide_into_heads_and_widths_are_whole() -> None:
    for config in CONFIGS.values():
        assert config.channels[2] % config.heads[0] == 0
        assert config.channels[3] % config.heads[1] == 0
        for channels, expansion in zip(config.channels, config.expansions, strict=True):
            assert channels * expansion == int(channels * expansion)


def test_refuses_what_does_not_exist() -> None:
    with pytest.raises(ValueError, match="1m, 2m, 5m, 6m"):
        EMO(variant="5M")
    with pytest.raises(ValueError, match="at least 1"):
        EMO(variant="1m", window=0)


@pytest.mark.parametrize("averaged", [None, {"w": torch.ones(1)}])
def test_averaged_weights_come_before_the_last_ones(tmp_path: Path, averaged: dict[str, Tensor] | None) -> None:
    torch.save({"net": {"w": torch.zeros(1)}, "net_E": averaged, "epoch": 3}, tmp_path / "latest.pth")
    assert container.read(tmp_path / "latest.pth").state["w"].item() == (0 if averaged is None else 1)
