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
TILE_SIZE = 650
"""Side in pixels of what an exported model predicts at a time unless memory says otherwise, halo included."""
KERNEL = 3
DECODER_CHANNELS = 64
LAYERS_SEEN = (2, 4, 6)
"""Convolutions whose output the heads see with `multi_layer`, counted from 1."""
CONTEXT_SIDES = (1, 3, 7, 15)
"""Sides in features of the windows of mean and deviation that the heads see with `multi_layer`: 0.6 to 9 m at 0.3 m."""
LEAST_VARIANCE = 1e-4


class Logits(NamedTuple):
    """Of both heads, float32 [N, classes, h, w] and [N, clusters, h, w], of the features unless said otherwise."""

    classes: Tensor
    clusters: Tensor


def receptive_field(dilations: tuple[int, ...]) -> int:
    """Side in pixels of what one feature of the trunk sees: 38 for the dilations 1, 1, 2, 2, 2, 2."""
    before = sum((KERNEL - 1) * dilation for dilation in dilations[:LAYERS_BEFORE_POOL])
    after = sum((KERNEL - 1) * dilation for dilation in dilations[LAYERS_BEFORE_POOL:])
    return 1 + before + (STRIDE - 1) + STRIDE * after


def halo(dilations: tuple[int, ...], multi_layer: bool = False, front_side: int = 1) -> int:
    """Pixels around an output pixel that can change its logits, as a multiple of the stride: 20 for a field of 38.

    A feature stands for `STRIDE` pixels and sees (field - stride) / 2 pixels beyond them; bilinear upsampling also
    reads the neighbouring feature, which adds one stride.

    Args:
        dilations: of the convolutions.
        multi_layer: whether the heads also see the windows of `CONTEXT_SIDES`.
        front_side: of the kernel in front of the first layer, 1 where there is none.
    """
    seen = (receptive_field(dilations) - STRIDE) // 2 + front_side // 2
    beyond = max(seen, STRIDE * (CONTEXT_SIDES[-1] // 2) if multi_layer else 0) + STRIDE
    return -(-beyond // STRIDE) * STRIDE


class IICNetwork(nn.Module):
    """Trunk and both heads.

    Args:
        bands: of the input.
        width: factor on the channels; 1.0 is the published network, 0.25 costs a sixteenth of it.
        dilations: of the six convolutions. With 2 everywhere behind the pooling the four phases of its pixels never
            mix; 1, 1, 1, 1, 2, 2 is the alternative that mixes them.
        clusters, classes: outputs of the over-clustering and the main head.
        multi_layer: the heads see not the last layer alone but every second one, and the image's own mean and
            deviation in windows of several sizes: what the joint lets go of on the way up stays in their sight.
        front: fixed convolution in front of the first layer, see `preprocessing`.

    Attributes:
        features: channels that the heads see.
    """

    def __init__(
        self,
        bands: int,
        width: float,
        dilations: tuple[int, ...],
        clusters: int,
        classes: int,
        multi_layer: bool = False,
        front: nn.Conv2d | None = None,
    ) -> None:
        super().__init__()
        channels = [max(1, round(width * count)) for count in CHANNELS]
        inputs = bands if front is None else front.out_channels
        layers: list[nn.Module] = []
        for index, (outputs, dilation) in enumerate(zip(channels, dilations, strict=True)):
            if index == LAYERS_BEFORE_POOL:
                layers.append(nn.MaxPool2d(STRIDE))
            layers.append(nn.Conv2d(inputs, outputs, KERNEL, padding=dilation, dilation=dilation, bias=False))
            layers.append(nn.BatchNorm2d(outputs))
            layers.append(nn.ReLU(inplace=True))
            inputs = outputs
        self.trunk = nn.Sequential(*layers)
        self.features = channels[-1]
        if multi_layer:
            self.features = sum(channels[layer - 1] for layer in LAYERS_SEEN) + 2 * bands * len(CONTEXT_SIDES)
        # Layers and windows differ in scale by far; without this the widest would rule the first steps of the heads.
        self.levelling = nn.BatchNorm2d(self.features, affine=False) if multi_layer else None
        self.class_head = nn.Conv2d(self.features, classes, 1)
        self.cluster_head = nn.Conv2d(self.features, clusters, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.front = front

    def forward(self, image: Tensor) -> Logits:
        """Logits at feature resolution of a normalised `image`, float32 [N, bands, H, W] with even H and W."""
        return self.heads(self.encode(image))

    def encode(self, image: Tensor) -> Tensor:
        """What the heads see of a normalised `image`, float32 [N, features, H / 2, W / 2]."""
        current = image if self.front is None else self.front(image)
        if self.levelling is None:
            features: Tensor = self.trunk(current)
            return features
        outputs = []
        for layer in self.trunk:
            current = layer(current)
            if isinstance(layer, nn.ReLU):
                outputs.append(current)
        seen = [outputs[layer - 1] for layer in LAYERS_SEEN]
        seen = [functional.avg_pool2d(each, STRIDE) if each.shape[-1] == image.shape[-1] else each for each in seen]
        levelled: Tensor = self.levelling(torch.cat([*seen, local_moments(image)], dim=1))
        return levelled

    def heads(self, features: Tensor, main_head_trains_trunk: bool = True) -> Logits:
        """Logits of both heads; without the last argument's gradient the main head reads the features and no more."""
        seen = features if main_head_trains_trunk else features.detach()
        return Logits(self.class_head(seen), self.cluster_head(features))


def local_moments(image: Tensor) -> Tensor:
    """Mean and standard deviation of each band in windows around each feature, from the smallest to the largest.

    What lies beyond the image counts as 0, the mean, as it does for the convolutions.

    Args:
        image: normalised, [N, bands, H, W].

    Returns:
        [N, 2 * bands * len(CONTEXT_SIDES), H / 2, W / 2].
    """
    means, squares = functional.avg_pool2d(image, STRIDE), functional.avg_pool2d(image.square(), STRIDE)
    moments = []
    for side in CONTEXT_SIDES:
        mean, square = (_box_mean(plane, side) for plane in (means, squares))
        moments += [mean, (square - mean.square()).clamp(min=LEAST_VARIANCE).sqrt()]
    return torch.cat(moments, dim=1)


def _box_mean(planes: Tensor, side: int) -> Tensor:
    rows = functional.avg_pool2d(planes, (side, 1), stride=1, padding=(side // 2, 0))
    return functional.avg_pool2d(rows, (1, side), stride=1, padding=(0, side // 2))


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
