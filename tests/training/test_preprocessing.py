from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage

from qgis_iic.protocol.errors import SourceUnsuitable
from qgis_iic.training.preprocessing import sample_patches, sobel, zca, zca_matrix

RGBN = ("red", "green", "blue", "nir")


def scene(bands: int = 3, count: int = 4, side: int = 40, seed: int = 0) -> torch.Tensor:
    """Normalised images [N, B, side, side] whose bands and neighbours are correlated."""
    random = np.random.default_rng(seed)
    common = random.standard_normal((count, 1, side, side))
    images = ndimage.gaussian_filter(common + random.standard_normal((count, bands, side, side)), (0, 0, 1, 1))
    images -= images.mean(axis=(0, 2, 3), keepdims=True)
    return torch.from_numpy(images / images.std(axis=(0, 2, 3), keepdims=True))


def patches(images: torch.Tensor, side: int, count: int = 4000) -> NDArray[np.float64]:
    everywhere = torch.ones(len(images), *images.shape[2:], dtype=torch.bool)
    return sample_patches(images, everywhere, side, count, np.random.default_rng(0))


@pytest.mark.parametrize(("bands", "grey"), [(RGBN, [0, 1, 2]), (("nir", "blue"), [1]), (("nir", "swir"), [0, 1])])
def test_sobel_is_that_of_scipy_beside_the_bands(bands: tuple[str, ...], grey: list[int]) -> None:
    images = torch.randn(2, len(bands), 9, 12, dtype=torch.float64)
    made = sobel(bands).double()(images)
    assert torch.equal(made[:, :-2], images)
    for image, channels in zip(images[:, grey].mean(dim=1).numpy(), made[:, -2:].numpy(), strict=True):
        for derivative, axis in zip(channels, (1, 0), strict=True):
            expected = ndimage.sobel(image, axis=axis, mode="constant") / 4
            np.testing.assert_allclose(derivative, expected, rtol=0, atol=1e-6)


def test_sobel_of_a_ramp_is_twice_its_slope() -> None:
    # One side's weighted mean minus the other's, two pixels away; x grows to the right, y downwards.
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(5.0), indexing="ij")
    derivatives = sobel(["pan"])((3 * columns + 7 * rows)[None, None])[0, 1:, 1:-1, 1:-1]
    torch.testing.assert_close(derivatives, torch.tensor([6.0, 14.0])[:, None, None].expand(2, 4, 3))


@pytest.mark.parametrize("side", [1, 3])
def test_whitened_samples_have_unit_covariance(side: int) -> None:
    samples = patches(scene(), side).reshape(4000, -1)
    matrix = zca_matrix(samples, regularisation=0)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-9)  # ZCA, unlike other whitenings
    whitened = samples @ matrix
    np.testing.assert_allclose(whitened.T @ whitened / len(samples), np.eye(samples.shape[1]), atol=1e-9)


def test_whitening_per_channel_is_a_1x1_convolution() -> None:
    images = scene()
    # All pixels are the sample: the channels of all of the answer are uncorrelated, of deviation 1.
    layer = zca(patches(images, side=1, count=images.numel()), regularisation=0).double()
    assert layer.weight.shape == (3, 3, 1, 1)
    channels = layer(images).transpose(0, 1).flatten(1).numpy()
    np.testing.assert_allclose(np.cov(channels, bias=True), np.eye(3), atol=1e-5)


def test_whitening_patches_is_the_central_pixel_of_each() -> None:
    images, side = scene(), 5
    sample = patches(images, side)
    layer = zca(sample).double()
    matrix = zca_matrix(sample.reshape(len(sample), -1), regularisation=0.01)
    made = layer(images)
    assert made.shape == images.shape
    padded = torch.nn.functional.pad(images, [side // 2] * 4)
    for row, column in [(0, 0), (7, 0), (20, 31), (39, 39)]:
        patch = padded[1, :, row : row + side, column : column + side].numpy()
        whitened = (matrix @ patch.flatten()).reshape(patch.shape)
        centre = whitened[:, side // 2, side // 2]
        np.testing.assert_allclose(made[1, :, row, column].numpy(), centre, rtol=0, atol=1e-5)


def test_whitening_patches_decorrelates_neighbours() -> None:
    images = scene(count=8)
    made = zca(patches(images, side=7, count=6000), regularisation=1e-4).double()(images)[..., 4:-4, 4:-4]

    def correlation(values: torch.Tensor) -> float:
        pair = values[..., :-1].flatten(), values[..., 1:].flatten()
        return float(torch.corrcoef(torch.stack(pair))[0, 1])

    assert correlation(images) > 0.7
    assert abs(correlation(made)) < 0.2


def test_regularisation_bounds_the_gain() -> None:
    silent = np.zeros((10, 1, 1, 1))
    assert zca(silent).weight.item() == pytest.approx(10)


def test_zero_stays_zero_and_nothing_is_trained() -> None:
    images = scene()
    for layer in (sobel(RGBN[:3]), zca(patches(images, 1)), zca(patches(images, 3))):
        assert layer.bias is None
        assert not any(parameter.requires_grad for parameter in layer.parameters())
        assert layer(torch.zeros(1, 3, 8, 8)).abs().max() == 0


def test_an_even_side_has_no_centre() -> None:
    with pytest.raises(ValueError, match="odd"):
        zca(np.zeros((10, 3, 8, 8)))


def test_patches_are_windows_with_data() -> None:
    images = torch.arange(2 * 2 * 5 * 6, dtype=torch.float32).reshape(2, 2, 5, 6)
    valid = torch.ones(2, 5, 6, dtype=torch.bool)
    valid[0, 2, 2] = False
    drawn = sample_patches(images, valid, 3, 100, np.random.default_rng(0))
    # The first image loses the nine windows with the gap in them, of three rows of four.
    expected = [
        images[n, :, row : row + 3, column : column + 3].flatten().tolist()
        for n in (0, 1)
        for row in range(3)
        for column in range(4)
        if valid[n, row : row + 3, column : column + 3].all()
    ]
    assert len(expected) == 15
    assert sorted(drawn.reshape(len(drawn), -1).tolist()) == sorted(expected)
    assert len(sample_patches(images, valid, 3, 4, np.random.default_rng(0))) == 4


def test_no_ground_to_fit_on() -> None:
    with pytest.raises(SourceUnsuitable):
        sample_patches(torch.zeros(1, 3, 8, 8), torch.zeros(1, 8, 8, dtype=torch.bool), 3, 10, np.random.default_rng(0))
