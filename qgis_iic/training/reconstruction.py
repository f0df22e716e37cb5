"""Rebuilding the input from the class map, as in W-Net (Xia and Kulis 2017) and the blog's final remarks.

What a decoder can rebuild from the assignments alone, they must tell: each class its colours and textures. It is a
narrower way than `network.Decoder`, which rebuilds from all features.
"""

from __future__ import annotations

from torch import Tensor, nn

from qgis_iic.training.network import DECODER_CHANNELS, KERNEL, STRIDE


class ClassMapDecoder(nn.Module):
    """Rebuilds the normalised input from softmax assignments; for training only, never exported.

    Three 3x3 convolutions with two ReLU between them, 64 channels, then pixel shuffle to full resolution: every pixel
    sees the assignments up to 3 features away, enough for the borders and textures of what is around it.
    """

    def __init__(self, clusters: int, bands: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(clusters, DECODER_CHANNELS, KERNEL, padding=KERNEL // 2),
            nn.ReLU(inplace=True),
            nn.Conv2d(DECODER_CHANNELS, DECODER_CHANNELS, KERNEL, padding=KERNEL // 2),
            nn.ReLU(inplace=True),
            nn.Conv2d(DECODER_CHANNELS, bands * STRIDE**2, KERNEL, padding=KERNEL // 2),
            nn.PixelShuffle(STRIDE),
        )

    def forward(self, p: Tensor) -> Tensor:
        """[N, bands, 2h, 2w] of assignments [N, K, h, w]."""
        rebuilt: Tensor = self.layers(p)
        return rebuilt


def reconstruction_error(rebuilt: Tensor, view: Tensor, valid: Tensor) -> Tensor:
    """Mean squared error over valid pixels and bands, in squared deviations; 0 where no pixel is valid.

    Rebuilding the mean everywhere costs about 1.

    Args:
        rebuilt, view: normalised, [N, bands, H, W].
        valid: bool [N, H, W].
    """
    squared = (rebuilt - view) ** 2 * valid[:, None]
    mean: Tensor = squared.sum() / (valid.sum() * view.shape[1]).clamp(min=1)
    return mean
