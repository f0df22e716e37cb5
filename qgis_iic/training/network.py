"""The network of the segmentation work: six convolutions, one pooling, two 1x1 heads.

Conv3x3-BN-ReLU without bias and with padding = dilation: 64, 128, max-pool 2, 256, 256, 512, 512 channels at width 1.0.
The heads are 1x1 convolutions to the classes (main head) and to the clusters (over-clustering head). They act on the
trunk's features at half resolution; their logits are upsampled bilinearly. Because bilinear weights sum to one and a
1x1 convolution is affine in each pixel, this equals upsampling the features first, at a fraction of the memory.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

CHANNELS = (64, 128, 256, 256, 512, 512)
LAYERS_BEFORE_POOL = 2
STRIDE = 2
KERNEL = 3
DECODER_CHANNELS = 64


class Logits(NamedTuple):
    """Of both heads, float32 [N, classes, h, w] and [N, clusters, h, w], of the features unless said otherwise."""

    classes: Tensor
    clusters: Tensor


def receptive_field(dilations: tuple[int, ...]) -> int:
    """Side in pixels of what one feature of the trunk sees: 38 for the dilations 1, 1, 2, 2, 2, 2."""
    before = sum((KERNEL - 1) * dilation for dilation in dilations[:LAYERS_BEFORE_POOL])
    after = sum((KERNEL - 1) * dilation for dilation in dilations[LAYERS_BEFORE_POOL:])
    return 1 + before + (STRIDE - 1) + STRIDE * after


def halo(dilations: tuple[int, ...]) -> int:
    """Pixels around an output pixel that can change its logits, as a multiple of the stride: 20 for a field of 38.

    A feature stands for `STRIDE` pixels and sees (field - stride) / 2 pixels beyond them; bilinear upsampling also
    reads the neighbouring feature, which adds one stride.
    """
    beyond = (receptive_field(dilations) - STRIDE) // 2 + STRIDE
    return -(-beyond // STRIDE) * STRIDE


class IICNetwork(nn.Module):
    """Trunk and both heads.

    Args:
        bands: of the input.
        width: factor on the channels; 1.0 is the published network, 0.25 costs a sixteenth of it.
        dilations: of the six convolutions. With 2 everywhere behind the pooling the four phases of its pixels never
            mix; 1, 1, 1, 1, 2, 2 is the alternative that mixes them.
        clusters, classes: outputs of the over-clustering and the main head.
    """

    def __init__(self, bands: int, width: float, dilations: tuple[int, ...], clusters: int, classes: int) -> None:
        super().__init__()
        channels = [max(1, round(width * count)) for count in CHANNELS]
        layers: list[nn.Module] = []
        for index, (inputs, outputs, dilation) in enumerate(
            zip([bands, *channels[:-1]], channels, dilations, strict=True)
        ):
            if index == LAYERS_BEFORE_POOL:
                layers.append(nn.MaxPool2d(STRIDE))
            layers.append(nn.Conv2d(inputs, outputs, KERNEL, padding=dilation, dilation=dilation, bias=False))
            layers.append(nn.BatchNorm2d(outputs))
            layers.append(nn.ReLU(inplace=True))
        self.trunk = nn.Sequential(*layers)
        self.class_head = nn.Conv2d(channels[-1], classes, 1)
        self.cluster_head = nn.Conv2d(channels[-1], clusters, 1)
        self.features = channels[-1]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, image: Tensor) -> Logits:
        """Logits at feature resolution of a normalised `image`, float32 [N, bands, H, W] with even H and W."""
        return self.heads(self.trunk(image))

    def heads(self, features: Tensor) -> Logits:
        return Logits(self.class_head(features), self.cluster_head(features))


class Decoder(nn.Module):
    """Rebuilds the normalised input from the trunk's features, so that they keep what the joint alone lets go.

    1x1 to 64 channels, ReLU, 1x1, pixel shuffle to full resolution. It serves training only and is never exported.
    """

    def __init__(self, features: int, bands: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(features, DECODER_CHANNELS, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(DECODER_CHANNELS, bands * STRIDE**2, 1),
            nn.PixelShuffle(STRIDE),
        )

    def forward(self, features: Tensor) -> Tensor:
        """[N, bands, 2h, 2w] of `features` [N, C, h, w]."""
        rebuilt: Tensor = self.layers(features)
        return rebuilt


def upsample(logits: Tensor) -> Tensor:
    """[N, K, 2h, 2w] of [N, K, h, w], bilinear with half-pixel centres."""
    return functional.interpolate(logits, scale_factor=STRIDE, mode="bilinear", align_corners=False)


@torch.no_grad()
def predict_logits(network: IICNetwork, image: Tensor) -> Logits:
    """Full-resolution logits in evaluation mode of a normalised image; the network's mode is restored."""
    training = network.training
    network.eval()
    try:
        logits = network(image)
        return Logits(upsample(logits.classes), upsample(logits.clusters))
    finally:
        network.train(training)
