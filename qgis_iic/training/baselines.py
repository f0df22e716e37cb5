"""What a network has to beat with the same labels: clusterings and linear classifiers on hand-made features.

All of them see what the network sees: raw values on the working grid, and labels of the same tiles. Clusterings are
fitted on pixels of the regions that are matched on and of those that are scored, without their labels, as the network
learnt from both; and matched like the network's clusters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from qgis_iic.protocol.model_metadata import NODATA, ModelMetadata
from qgis_iic.training import probe
from qgis_iic.training.heads import feature_parts
from qgis_iic.training.labels import BUILDING, Labels
from qgis_iic.training.model_file import FEATURES, run_inner
from qgis_iic.training.network import STRIDE, IICNetwork
from qgis_iic.training.regions import Region

CLUSTERS = 24
SCALES = (3, 7, 15, 31)
"""Sides in pixels of the windows of mean and deviation: 1 to 9 m at 0.3 m."""
SAMPLE = 30_000
RANDOM_NETWORK = {"width": 0.25, "dilations": (1, 1, 2, 2, 2, 2), "multi_layer": False}
"""For models that do not say what was trained."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Features:
    """A way to describe each pixel.

    Attributes:
        name: for the table.
        compute: float32 [F, H / stride, W / stride] of a region, rounded up.
        stride: pixels per feature along each axis.
    """

    name: str
    compute: Callable[[Region], Floats]
    stride: int = 1


def pixel_features(region: Region) -> Floats:
    """The bands' values as they are."""
    return region.values


def multiscale_features(region: Region) -> Floats:
    """Values, and their mean and deviation in windows of several sizes; pixels without data are weighted out."""
    weight = region.valid.astype(np.float32)
    values = region.values * weight
    planes = [values]
    for side in SCALES:
        total = np.maximum(uniform_filter(weight, side), 1e-6)
        mean = np.stack([uniform_filter(plane, side) for plane in values]) / total
        square = np.stack([uniform_filter(plane**2, side) for plane in values]) / total
        planes += [mean, np.sqrt(np.maximum(square - mean**2, 0))]
    return np.concatenate(planes).astype(np.float32)


PIXELS = Features("pixel values", pixel_features)
MULTISCALE = Features("multi-scale mean and deviation", multiscale_features)


def trunk_features(model: onnx.ModelProto, metadata: ModelMetadata) -> Features | None:
    """What the trained trunk knows of each pixel, before any cluster is formed; None for a graph without such a tensor.

    A linear classifier on them is what the same labels could get out of the network, had it a head for them.
    """
    if not feature_parts(model):
        return None

    def compute(region: Region) -> Floats:
        features: Floats = run_inner(model, FEATURES, network_image(region, metadata))[0]
        return features

    return Features("features of the IIC trunk", compute, STRIDE)


def network_image(region: Region, metadata: ModelMetadata) -> Floats:
    """What a graph takes, raw values with the mean where there is no data, filled up to multiples of the stride.

    Returns:
        float32 [1, bands, H, W].
    """
    mean = np.asarray(metadata.mean, np.float32)[:, None, None]
    image = np.where(region.valid, region.values, mean)
    height, width = region.valid.shape
    return np.pad(image, ((0, 0), (0, height % STRIDE), (0, width % STRIDE)), mode="edge")[None]


def random_network(metadata: ModelMetadata, regions: Sequence[Region], seed: int) -> Features:
    """What the heads of the model see, with random weights; batch normalisation takes its moments from `regions`.

    The network is that of the model, but for fixed convolutions in front.
    """
    import torch

    torch.manual_seed(seed)
    shape = metadata.training.get("config", {}).get("network", RANDOM_NETWORK)
    network = IICNetwork(
        len(metadata.bands),
        shape["width"],
        tuple(shape["dilations"]),
        clusters=2,
        classes=2,
        multi_layer=shape["multi_layer"],
    )
    mean, std = (np.asarray(moment, np.float32)[:, None, None] for moment in (metadata.mean, metadata.std))

    @torch.no_grad()
    def compute(region: Region) -> Floats:
        normalised = np.where(region.valid, (region.values - mean) / std, 0).astype(np.float32)
        height, width = region.valid.shape
        padded = np.pad(normalised, ((0, 0), (0, height % STRIDE), (0, width % STRIDE)))
        features: Floats = network.encode(torch.from_numpy(padded)[None])[0].numpy()
        return features

    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None  # cumulative: all regions count alike
    network.train()
    for region in regions:
        compute(region)
    network.eval()
    return Features("random-weights network", compute, STRIDE)


@dataclass(frozen=True)
class _Scaling:
    """Brings features to zero mean and unit deviation."""

    mean: Floats
    std: Floats

    @classmethod
    def of(cls, vectors: Floats) -> _Scaling:
        return cls(vectors.mean(axis=0), np.maximum(vectors.std(axis=0), 1e-6))

    def __call__(self, vectors: Floats) -> Floats:
        return ((vectors - self.mean) / self.std).astype(np.float32)


class KMeansClustering:
    """k-means on features, fitted on a sample of the pixels of some regions.

    Args:
        features: see `Features`.
        regions: to fit on; their labels are not used.
        seed: of the sample and the first centres.
        clusters: k.
    """

    def __init__(self, features: Features, regions: Sequence[Region], seed: int, clusters: int = CLUSTERS) -> None:
        from sklearn.cluster import KMeans

        self.features = features
        generator = np.random.default_rng(seed)
        total = sum(int(region.valid.sum()) for region in regions)
        sample = np.concatenate(
            [
                _sample(
                    features.compute(region),
                    region.valid[:: features.stride, :: features.stride],
                    SAMPLE * int(region.valid.sum()) // total,
                    generator,
                )
                for region in regions
                if region.valid.any()
            ]
        )
        self._scaling = _Scaling.of(sample)
        self.count = min(clusters, len(sample))
        self._means = KMeans(self.count, n_init=1, random_state=seed).fit(self._scaling(sample))

    def clusters(self, region: Region) -> NDArray[np.uint8]:
        """uint8 [H, W], 255 where not valid."""
        features = self.features.compute(region)
        found = self._means.predict(self._scaling(features.reshape(len(features), -1).T)).astype(np.uint8)
        plane = found.reshape(features.shape[1:])
        stride = self.features.stride
        height, width = region.valid.shape
        fine = plane.repeat(stride, axis=0).repeat(stride, axis=1)[:height, :width]
        return np.where(region.valid, fine, NODATA).astype(np.uint8)


def _sample(features: Floats, where: NDArray[np.bool_], count: int, generator: np.random.Generator) -> Floats:
    """`count` feature vectors, float32 [n, F], of the pixels in `where`; all of them where there are fewer."""
    places = np.flatnonzero(where)
    chosen = generator.choice(places, size=min(count, len(places)), replace=False)
    return features.reshape(len(features), -1)[:, chosen].T


class LinearClassifier:
    """Logistic regression on features, fitted to labelled pixels just as the building head is: see `probe`.

    Args:
        features: float32 [F, H / stride, W / stride], rounded up, of each region.
        labels: uint8 [H, W] of each region.
        stride: pixels per feature along each axis.
        seed: of the sample.

    Raises:
        LabelsInvalid: see `probe.fit_head`.
    """

    def __init__(self, features: Sequence[Floats], labels: Sequence[Labels], stride: int, seed: int) -> None:
        vectors, targets, groups = [], [], []
        drawn = probe.draw_pixels(labels, np.random.default_rng(seed))
        for number, (values, plane, (rows, cols)) in enumerate(zip(features, labels, drawn, strict=True)):
            vectors.append(values[:, rows // stride, cols // stride].T)
            targets.append(plane[rows, cols] == BUILDING)
            groups.append(probe.tile_numbers(number, rows, cols))
        kinds = np.concatenate(targets)
        weights = probe.pixel_weights(labels, kinds)
        self._head, _ = probe.fit_head(probe.Sample(np.concatenate(vectors), kinds, np.concatenate(groups), weights))

    def predict(self, features: Floats) -> NDArray[np.bool_]:
        """Building or not, bool [H / stride, W / stride], of features as they were fitted to."""
        found: NDArray[np.bool_] = np.tensordot(self._head.weight, features, axes=1) + self._head.bias > 0
        return found
