"""From an entry of the zoo to its network and to its served module.

In: a `zoo.ModelSpec`. Out: a `Network` with fresh weights, or the served module around one, both in eval mode. It never
reads checkpoints or writes archives.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model_store import zoo
from model_store.networks.backbones.base import Backbone, Channels
from model_store.networks.backbones.registry import backbone_of
from model_store.networks.heads.registry import head_of
from model_store.networks.pixels import Pixels


class Network(nn.Module):
    """A backbone and a head: float [N, 3, H, W], normalised as the weights expect, to the raw outputs of the head.

    The raw outputs depend on the head: logits [N, K] of a classifier, (class logits, box deltas) of a detector, logits
    [N, K, h, w] of a segmenter. TorchScript infers the return type for each head.
    """

    def __init__(self, *, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, x: Tensor):  # type: ignore[no-untyped-def]
        """Run both."""
        return self.head(self.backbone(x))


class PaddedNetwork(Network):
    """A network that pads its input with zeros, at the bottom and right, to multiples of `multiple` pixels."""

    def __init__(self, *, backbone: nn.Module, head: nn.Module, multiple: int) -> None:
        super().__init__(backbone=backbone, head=head)
        self.multiple = multiple

    def forward(self, x: Tensor):  # type: ignore[no-untyped-def]
        """Pad float [N, 3, H, W], and run both."""
        rows = (x.size(2) + self.multiple - 1) // self.multiple * self.multiple
        columns = (x.size(3) + self.multiple - 1) // self.multiple * self.multiple
        padded = F.pad(x, [0, columns - x.size(3), 0, rows - x.size(2)])
        return self.head(self.backbone(padded))


def build_backbone(entry: zoo.ModelSpec) -> Backbone:
    """The backbone of an entry, with fresh weights. Raises `LookupError` where it is not registered."""
    return backbone_of(entry).build(entry.backbone, entry.head.dense)


def build_head(entry: zoo.ModelSpec, channels: Channels) -> nn.Module:
    """The head of an entry for a backbone whose maps have these channels, with fresh weights.

    Raises `LookupError` where the head is not registered.
    """
    return head_of(entry).build(entry.head, entry, channels)


def build(entry: zoo.ModelSpec) -> Network:
    """Assemble the network of an entry, with fresh weights, in eval mode. Raises `LookupError` as its parts do."""
    backbone = build_backbone(entry)
    head = build_head(entry, backbone.channels)
    multiple = entry.head.pads_to
    if multiple == 1:
        return Network(backbone=backbone, head=head).eval()
    return PaddedNetwork(backbone=backbone, head=head, multiple=multiple).eval()


def served(entry: zoo.ModelSpec, network: nn.Module) -> nn.Module:
    """Wrap a network of `build` in the served module of its head, in eval mode; see `networks.tasks.base`."""
    pixels = Pixels(normalize=entry.normalize)
    return head_of(entry).serve(entry.head, entry, pixels, network).eval()


def count_macs(network: nn.Module, height: int, width: int) -> int:
    """Multiply-adds of convolutions and matrix products for one picture of height x width pixels.

    Nothing is computed: shapes suffice, so a copy without data runs. Attention runs as plain matrix products, because
    torch does not count its fused kernel for the CPU.
    """
    shapes = copy.deepcopy(network).to("meta")
    x = torch.zeros(1, 3, height, width, device="meta")
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.inference_mode():
        shapes(x)
    return int(counter.get_total_flops()) // 2
