"""Sunlight, shadows, haze and sensor: from what the town is made of to what a camera above it records."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Pixels = NDArray[np.float32]

SUN_AZIMUTH = math.radians(128)
"""Clockwise from north."""
SUN_ELEVATION = math.radians(50)
SKYLIGHT = np.array((0.31, 0.34, 0.39), dtype=np.float32)
"""What a shadow still gets, as a share of full sun; it comes from the sky and is bluish."""
HAZE = np.array((172, 180, 190), dtype=np.float32)
POINT_SPREAD = 0.62
"""Standard deviation of the sensor's point spread, in pixels."""
WALL = 1.7
"""Steeper than any roof: such a slope in the height raster is a wall, which nobody sees from above."""


def clouds(rng: np.random.Generator, shape: tuple[int, int], scale: float) -> Pixels:
    """Smooth noise of mean 0 and deviation about 1, with blotches of `scale` pixels.

    A coarse random grid is interpolated by two matrix products, one an axis, which is faster than a spline.
    """
    rows, columns = (_interpolation(length, scale) for length in shape)
    grid = rng.standard_normal((rows.shape[1], columns.shape[1]), dtype=np.float32)
    # Interpolation averages neighbours, which narrows the distribution; 1.55 widens it again.
    return 1.55 * (rows @ grid @ columns.T)


def illuminate(albedo: Pixels, height: Pixels, gsd: float) -> Pixels:
    """What a surface sends upwards.

    Args:
        albedo: [H, W, 3], RGB in full sun on level ground, 0 to 255.
        height: [H, W] in metres.

    Returns:
        [H, W, 3], the same scale.
    """
    lit = gaussian_filter(_unshadowed(height, gsd), 0.6)
    # Between high walls less of the sky is seen.
    sky = 1 - 0.5 * np.clip((gaussian_filter(height, 3.0 / gsd) - height) / 9, 0, 1)
    direct = lit * _incidence(height, gsd)
    return albedo * (SKYLIGHT * sky[..., None] + (1 - SKYLIGHT) * direct[..., None])


def record(rng: np.random.Generator, radiance: Pixels) -> NDArray[np.uint8]:
    """The sensor's RGB [3, H, W] of a radiance [H, W, 3]: uneven light, haze, point spread and noise."""
    shape = radiance.shape[:2]
    down, across = np.meshgrid(np.linspace(-1, 1, shape[0]), np.linspace(-1, 1, shape[1]), indexing="ij")
    gain = (1 + 0.05 * across - 0.04 * down).astype(np.float32)
    haze = (0.05 + 0.025 * down).astype(np.float32)[..., None]
    seen = radiance * gain[..., None] * (1 - haze) + HAZE * haze
    bands = np.empty((3, *shape), dtype=np.uint8)
    for band in range(3):
        blurred = gaussian_filter(seen[..., band], POINT_SPREAD)
        noise = rng.standard_normal(shape, dtype=np.float32) * (1.6 + 0.012 * blurred)
        bands[band] = np.clip(blurred + noise, 1, 255).round()
    return bands


def _interpolation(length: int, scale: float) -> Pixels:
    """Matrix [length, nodes] that interpolates values at nodes `scale` apart, with weights that ease in and out."""
    position = np.arange(length) / scale
    node = position.astype(int)
    share = position - node
    share = (share * share * (3 - 2 * share)).astype(np.float32)
    weights = np.zeros((length, node[-1] + 2), dtype=np.float32)
    rows = np.arange(length)
    weights[rows, node] = 1 - share
    weights[rows, node + 1] = share
    return weights


def _unshadowed(height: Pixels, gsd: float) -> Pixels:
    """Share [H, W] of the sun that reaches each pixel: walks towards the sun and looks for something in the way."""
    right, up = math.sin(SUN_AZIMUTH), math.cos(SUN_AZIMUTH)
    fall = gsd * math.tan(SUN_ELEVATION)
    reach = int(float(height.max()) / fall) + 1
    horizon = height.copy()
    rows, columns = height.shape
    for step in range(1, reach):
        down, across = round(-up * step), round(right * step)
        here = (_span(down, rows), _span(across, columns))
        there = (_span(-down, rows), _span(-across, columns))
        np.maximum(horizon[here], height[there] - step * fall, out=horizon[here])
    return np.clip(1 - (horizon - height) / 0.4, 0, 1)


def _span(shift: int, length: int) -> slice:
    """The part of an axis whose neighbour `shift` pixels on lies inside too."""
    return slice(max(0, -shift), min(length, length - shift))


def _incidence(height: Pixels, gsd: float) -> Pixels:
    """Cosine [H, W] of the angle between the sun and the surface, 1 for level ground."""
    down, across = np.gradient(height, gsd)
    wall = np.hypot(down, across) > WALL
    down[wall], across[wall] = 0, 0
    towards_sun = (-across * math.sin(SUN_AZIMUTH) + down * math.cos(SUN_AZIMUTH)) / math.tan(SUN_ELEVATION)
    return np.clip((1 + towards_sun) / np.sqrt(1 + down**2 + across**2), 0.15, 1.35)
