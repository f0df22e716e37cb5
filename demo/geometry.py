"""The town's vocabulary: a local frame, the things that stand in a town, and how ground is divided.

Lengths are metres. x runs to the right and y down from the scene's upper left corner, so that the centre of the pixel
(row, column) is at ((column + 0.5) * gsd, (row + 0.5) * gsd).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import shapely
from shapely.geometry import LineString, Point, Polygon
from shapely.ops import split

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Frame:
    """A rotated rectangle and its axes: u along the long side, v along the short one, both from the centre.

    Attributes:
        x, y: the centre.
        angle: of the u axis against the x axis, in radians.
        half_length, half_width: half the extent along u and v.
    """

    x: float
    y: float
    angle: float
    half_length: float
    half_width: float

    def at(self, u: float, v: float) -> tuple[float, float]:
        """The point (x, y) that has the local coordinates (u, v)."""
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        return self.x + u * cos - v * sin, self.y + u * sin + v * cos

    def part(self, u0: float, v0: float, u1: float, v1: float) -> Frame:
        """The frame of the box between two corners, its u axis again along the longer side."""
        x, y = self.at((u0 + u1) / 2, (v0 + v1) / 2)
        length, width = abs(u1 - u0) / 2, abs(v1 - v0) / 2
        if length >= width:
            return Frame(x, y, self.angle, length, width)
        return Frame(x, y, self.angle + math.pi / 2, width, length)

    def polygon(self) -> Polygon:
        a, b = self.half_length, self.half_width
        return Polygon([self.at(-a, -b), self.at(a, -b), self.at(a, b), self.at(-a, b)])


@dataclass(frozen=True)
class Slab:
    """Anything with an outline, seen from above: a roof or a piece of one, a water tank, a car, a tarpaulin.

    Attributes:
        polygon: where it is drawn.
        frame: its axes; ridges and corrugations follow them.
        height: of its upper side, of the eaves where the roof is pitched.
        roof: `flat`, `parapet`, `gable`, `hip` or `shed`.
        colour: RGB of 0 to 255, in full sun.
        texture: `plain`, `stained`, `sheet`, `rusty` or `tiled`.
    """

    polygon: Polygon
    frame: Frame
    height: float
    roof: str
    colour: Colour
    texture: str


@dataclass(frozen=True)
class Building:
    """A footprint and the slabs that cover it; later slabs lie over earlier ones."""

    footprint: Polygon
    slabs: tuple[Slab, ...]


@dataclass(frozen=True)
class Road:
    polygon: Polygon
    colour: Colour


@dataclass(frozen=True)
class Plot:
    """A piece of ground with one use.

    Attributes:
        angle: of its long side, in radians.
        cover: `wild`, `grass`, `soil`, `yard` or `crop`.
        colour: RGB of the cover; ignored for `wild`.
        walled: whether a wall runs around it.
    """

    polygon: Polygon
    angle: float
    cover: str
    colour: Colour
    walled: bool


@dataclass(frozen=True)
class Tree:
    x: float
    y: float
    radius: float
    height: float
    colour: Colour


def frame_of(polygon: Polygon) -> Frame:
    """The smallest rotated rectangle around a polygon."""
    corners = np.asarray(shapely.oriented_envelope(polygon).exterior.coords)
    first, second = corners[1] - corners[0], corners[2] - corners[1]
    along, across = (first, second) if np.hypot(*first) >= np.hypot(*second) else (second, first)
    x, y = corners[:4].mean(axis=0)
    return Frame(float(x), float(y), math.atan2(along[1], along[0]), np.hypot(*along) / 2, np.hypot(*across) / 2)


def divide(
    rng: np.random.Generator,
    polygon: Polygon,
    largest: Callable[[Point], float],
    winding: float,
    depth: int = 0,
) -> tuple[list[Polygon], list[tuple[int, LineString]]]:
    """Cuts a polygon across its long side, again and again, until each piece is small enough.

    Args:
        largest: the largest area in m2 that a piece at a place may have.
        winding: how far cuts swing from a straight line, as a share of the length of the cut.

    Returns:
        The pieces, and the cuts with their depth, the first cut having depth 0.
    """
    if polygon.area <= largest(polygon.centroid) * rng.uniform(0.7, 1.3):
        return [polygon], []
    cut = _cut_line(rng, frame_of(polygon), winding)
    halves = [half for half in split(polygon, cut).geoms if half.area > 1]
    if len(halves) < 2:
        return [polygon], []
    pieces, cuts = [], [(depth, cut.intersection(polygon))]
    for half in halves:
        below, below_cuts = divide(rng, half, largest, winding, depth + 1)
        pieces += below
        cuts += below_cuts
    return pieces, cuts


def _cut_line(rng: np.random.Generator, frame: Frame, winding: float) -> LineString:
    """A line across the frame, near its middle, that swings by two sines."""
    middle = rng.uniform(-0.3, 0.3) * frame.half_length
    reach = 1.3 * frame.half_width
    v = np.linspace(-reach, reach, 40 if winding else 2)
    swing = winding * frame.half_width
    phases = rng.uniform(0, 2 * math.pi, 2)
    u = middle + swing * np.sin(v / reach * 2.2 + phases[0]) + 0.4 * swing * np.sin(v / reach * 6 + phases[1])
    lean = rng.uniform(-0.12, 0.12)
    return LineString([frame.at(along + lean * across, across) for along, across in zip(u, v, strict=True)])
