"""From an entry of the zoo to a network: one builder per family and per head.

In: a `zoo.Entry`. Out: a `Network` with fresh weights, in eval mode. Knows nothing of checkpoints or archives.
"""

import copy
from typing import assert_never

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model_store import labels, zoo
from model_store.backbones import mobileformer
from model_store.backbones.emo import EMO
from model_store.backbones.mobileformer import MobileFormer
from model_store.backbones.mobilevit import MobileViT
from model_store.backbones.swiftformer import SwiftFormer
from model_store.heads.classifier import Classifier, NormClassifier, PairClassifier, TokenClassifier
from model_store.heads.deeplabv3 import DeepLabV3
from model_store.heads.ssdlite import cvnets_ssdlite, mmdet_ssdlite

# Each has `channels` and answers a list of feature maps; a MobileFormer for classification its tokens too.
Backbone = MobileViT | EMO | SwiftFormer | MobileFormer


class Network(nn.Module):
    """A backbone and a head: float [N, 3, H, W], normalised as the weights expect, to the head's raw outputs.

    What the head answers is its type's business: logits [N, K] of a classifier, (class logits, box deltas) of an
    SSDLite, logits [N, K, h, w] of a DeepLabv3. The return type is left to TorchScript to infer, per head.
    """

    def __init__(self, *, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, x: Tensor):  # type: ignore[no-untyped-def]
        """Run both."""
        return self.head(self.backbone(x))


def build_backbone(entry: zoo.Entry) -> Backbone:
    """The backbone of an entry, with fresh weights."""
    if entry.family == "mobilevit":
        return MobileViT(variant=entry.variant, output_stride=entry.output_stride)
    if entry.family == "emo" and entry.output_stride == 32 and entry.window is not None:
        return EMO(variant=entry.variant, window=entry.window)
    classifies = isinstance(entry.head, zoo.ClassifierHead)
    if entry.family == "swiftformer" and entry.attention is not None:
        return SwiftFormer(
            variant=entry.variant,
            output_stride=entry.output_stride,
            attention=entry.attention,
            dense=not classifies,
        )
    if entry.family == "mobileformer":
        return MobileFormer(variant=entry.variant, output_stride=entry.output_stride, tokens=classifies)
    raise ValueError(f"this is a bug: {entry.name} asks of the family {entry.family!r} what is not here")


def build_head(entry: zoo.Entry, channels: tuple[int, int, int, int]) -> nn.Module:
    """The head of an entry for a backbone whose maps have these channels, with fresh weights."""
    classes = len(labels.read(entry.labels))
    head = entry.head
    if isinstance(head, zoo.ClassifierHead):
        return _classifier(entry, head, channels[3], classes)
    if isinstance(head, zoo.SSDLiteHead):
        make = cvnets_ssdlite if head.form == "cvnets" else mmdet_ssdlite
        return make(channels=channels, classes=classes)
    if isinstance(head, zoo.DeepLabV3Head):
        return DeepLabV3(
            in_channels=channels[3],
            classes=classes,
            width=head.width,
            rates=head.rates,
            pool_first=head.form == "mmseg",
            fuse_kernel=3 if head.form == "mmseg" else 1,
        )
    assert_never(head)


def _classifier(entry: zoo.Entry, head: zoo.ClassifierHead, in_channels: int, classes: int) -> nn.Module:
    if head.form == "mobilevit":
        return Classifier(in_channels=in_channels, width=head.width, classes=classes)
    if head.form == "emo":
        return NormClassifier(in_channels=in_channels, classes=classes)
    if head.form == "swiftformer":
        return PairClassifier(in_channels=in_channels, classes=classes)
    if head.form == "mobileformer":
        config = mobileformer.CONFIGS[entry.variant]
        return TokenClassifier(
            in_channels=in_channels,
            token_width=config.width,
            hidden=head.width,
            classes=classes,
            groups=config.groups,
        )
    assert_never(head.form)


def build(entry: zoo.Entry) -> Network:
    """Assemble the network of an entry, with fresh weights, in eval mode."""
    backbone = build_backbone(entry)
    network = Network(backbone=backbone, head=build_head(entry, backbone.channels))
    return network.eval()


def count_macs(network: nn.Module, height: int, width: int) -> int:
    """Multiply-adds of convolutions and matrix products for one picture of height x width pixels.

    Nothing is computed: shapes suffice, so a copy without data runs. Attention is plain matrix products there, because
    torch does not count its fused kernel for the CPU.
    """
    shapes = copy.deepcopy(network).to("meta")
    x = torch.zeros(1, 3, height, width, device="meta")
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.inference_mode():
        shapes(x)
    return int(counter.get_total_flops()) // 2
