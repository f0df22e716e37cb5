"""Buildings of the demo's town: an outline that fits its plot, roofs over it, and what stands on the roofs."""

from __future__ import annotations

import numpy as np
import shapely
from geometry import Building, Colour, Frame, Slab, frame_of
from shapely.geometry import Point, Polygon

Box = tuple[float, float, float, float]

GRID = 0.01
"""Corners of footprints lie on a grid of a centimetre: slivers thinner than that would be invalid on the map."""

FLAT: tuple[Colour, ...] = ((158, 154, 147), (176, 170, 158), (136, 132, 127), (120, 112, 104), (150, 126, 112))
ROOFS: dict[str, tuple[tuple[Colour, ...], str, tuple[str, ...], tuple[float, float]]] = {
    # colours in full sun, texture, forms, eaves in metres
    "concrete": (FLAT, "stained", ("parapet",), (3.2, 12.5)),
    "white": (((222, 220, 214), (206, 206, 204)), "stained", ("parapet", "flat"), (4.0, 12.0)),
    "metal": (((164, 172, 178), (184, 190, 194), (140, 148, 154)), "sheet", ("gable", "shed"), (2.8, 6.0)),
    "rust": (((138, 100, 80), (122, 104, 92), (154, 122, 100)), "rusty", ("gable", "shed"), (2.6, 5.5)),
    "tile": (((164, 88, 68), (140, 84, 68), (112, 82, 70)), "tiled", ("gable", "hip"), (3.2, 7.5)),
    "blue": (((58, 118, 164), (76, 134, 176), (52, 94, 140)), "sheet", ("gable", "shed"), (2.8, 7.0)),
    "red": (((168, 74, 66), (148, 72, 66)), "sheet", ("gable", "shed"), (2.8, 7.0)),
}
SHARES = (0.46, 0.09, 0.13, 0.12, 0.09, 0.08, 0.03)
SHEETS = ("metal", "rust", "blue", "red")


def build(rng: np.random.Generator, plot: Polygon, town_share: float, roads: shapely.Geometry) -> Building | None:
    """A building on a plot, or None where the plot stays empty or is too small.

    Args:
        town_share: 1 in the middle of the town, where houses stand close and fill their plots, 0 in the fields.
        roads: the building stands at the side of the plot that is nearest to them.
    """
    if rng.random() > 0.2 + 0.75 * town_share**0.8:
        return None
    dense = town_share > 0.5
    inner = plot.buffer(-rng.uniform(0.05, 0.35) if dense else -rng.uniform(0.6, 2.0), join_style="mitre")
    if not isinstance(inner, Polygon) or inner.area < 20:
        return None
    frame = _site(rng, frame_of(inner), inner, 0.92 if dense else 0.8, roads)
    if frame.half_width < 1.8:
        return None
    pieces = [(box_frame, box_frame.polygon().intersection(inner)) for box_frame in _wings(rng, frame)]
    footprint = shapely.union_all([polygon for _, polygon in pieces], grid_size=GRID)
    if not isinstance(footprint, Polygon) or footprint.area < 18:
        return None
    pieces = [(box_frame, polygon) for box_frame, polygon in pieces if isinstance(polygon, Polygon)]
    return Building(footprint, tuple(_roofs(rng, pieces, footprint)))


def toned(rng: np.random.Generator, colour: Colour, spread: float) -> Colour:
    """The colour, brighter or darker by a share of about `spread`, and a little off in hue."""
    tone = rng.normal(1, spread) * rng.normal(1, 0.015, 3)
    red, green, blue = (np.asarray(colour) * tone.clip(0.4, 1.4)).tolist()
    return red, green, blue


def _site(rng: np.random.Generator, free: Frame, inner: Polygon, filling: float, roads: shapely.Geometry) -> Frame:
    """A rectangle in the free part `inner` of a plot, pushed to the corner of its frame `free` nearest to a road.

    It shrinks until little of it is cut off at a slanted or curved boundary: walls are built straight.
    """
    hall = free.half_length > 12 and rng.random() < 0.3
    length = min(free.half_length * rng.uniform(filling, 1.0), rng.uniform(10, 26) if hall else rng.uniform(5, 10))
    width = min(free.half_width * rng.uniform(filling, 1.0), rng.uniform(5, 9) if hall else rng.uniform(3.6, 7))
    for shrink in (1.0, 0.92, 0.84, 0.76, 0.66):
        a, b = shrink * length, shrink * width
        slack_u, slack_v = free.half_length - a, free.half_width - b
        corners = [free.at(u, v) for u in (-slack_u, slack_u) for v in (-slack_v, slack_v)]
        order = np.argsort(shapely.distance(roads, shapely.points(corners)))
        x, y = max(
            (corners[corner] for corner in order[:2]),
            key=lambda at: Frame(*at, free.angle, a, b).polygon().intersection(inner).area,
        )
        site = Frame(x, y, free.angle, a, b)
        if site.polygon().intersection(inner).area > 0.9 * site.polygon().area:
            break
    return site


def _wings(rng: np.random.Generator, frame: Frame) -> list[Frame]:
    """The boxes of a building that do not overlap: one, two of an L, three of a U, four around a courtyard."""
    a, b = frame.half_length, frame.half_width
    whole: Box = (-a, -b, a, b)
    boxes = [whole]
    kind = rng.random()
    if a * b > 45 and kind < 0.12:
        wing = 0.55 * b
        boxes = [(-a, -b, a, -b + wing), (-a, b - wing, a, b), (-a, -b + wing, -a + wing, b - wing)]
        if kind < 0.07:
            boxes.append((a - wing, -b + wing, a, b - wing))
    elif b > 2.6 and kind < 0.4:
        u, v = a * rng.uniform(-0.3, 0.5), b * rng.uniform(-0.2, 0.4)
        boxes = [(-a, -b, a, v), (-a, v, u, b)] if rng.random() < 0.5 else [(-a, v, a, b), (u, -b, a, v)]
    elif kind < 0.65:
        u = a * rng.uniform(-0.4, 0.4)
        boxes = [(-a, -b, u, b), (u, -b, a, b)]
    return [frame.part(*corners) for corners in boxes]


def _roofs(rng: np.random.Generator, wings: list[tuple[Frame, Polygon]], footprint: Polygon) -> list[Slab]:
    """The roofs of the wings, mostly of one material, and the things on flat ones."""
    materials = list(ROOFS)
    material = materials[rng.choice(len(materials), p=SHARES)]
    main = _roof(rng, material, *wings[0])
    slabs = [main]
    for frame, polygon in wings[1:]:
        if main.roof in ("parapet", "flat"):
            # Flat roofs step down by whole storeys: terraces.
            height = max(3.0, main.height - 3.0 * rng.integers(0, 3))
            slabs.append(Slab(polygon, frame, height, main.roof, toned(rng, main.colour, 0.09), main.texture))
        else:
            same = rng.random() < 0.7
            slabs.append(
                _roof(rng, material if same else materials[rng.choice(len(materials), p=SHARES)], frame, polygon)
            )
    for slab in list(slabs):
        if slab.roof in ("parapet", "flat"):
            slabs += _on_flat_roof(rng, slab, footprint)
    return slabs


def _roof(rng: np.random.Generator, material: str, frame: Frame, polygon: Polygon) -> Slab:
    colours, texture, forms, (lowest, highest) = ROOFS[material]
    colour = toned(rng, colours[rng.integers(len(colours))], 0.11)
    return Slab(polygon, frame, rng.uniform(lowest, highest), forms[rng.integers(len(forms))], colour, texture)


def _on_flat_roof(rng: np.random.Generator, roof: Slab, footprint: Polygon) -> list[Slab]:
    """A shelter of sheets over a part of the roof, the head of the stairs, water tanks, and what lies around."""
    a, b = roof.frame.half_length, roof.frame.half_width
    items: list[Slab] = []

    def put(u: float, v: float, du: float, dv: float, rise: float, form: str, colour: Colour, texture: str) -> None:
        frame = roof.frame.part(u - du, v - dv, u + du, v + dv)
        polygon = frame.polygon().intersection(footprint)
        if isinstance(polygon, Polygon) and not polygon.is_empty:
            items.append(Slab(polygon, frame, roof.height + rise, form, colour, texture))

    if rng.random() < 0.3 and a > 2:
        material = SHEETS[rng.choice(len(SHEETS), p=(0.3, 0.25, 0.35, 0.1))]
        share = rng.uniform(0.25, 0.5)
        colours, texture, _, _ = ROOFS[material]
        put(a * (1 - share), 0, a * share, b, 2.4, "shed", toned(rng, colours[0], 0.1), texture)
    if rng.random() < 0.45 and a > 2.5 and b > 2:
        u, v = -a + 1.7, (b - 1.4) * rng.choice((-1, 1))
        put(u, v, rng.uniform(1.0, 1.6), rng.uniform(0.9, 1.3), 2.6, "flat", toned(rng, roof.colour, 0.15), "stained")
    for _ in range(rng.poisson(0.7)):
        spot = Point(roof.frame.at(rng.uniform(-0.7, 0.7) * a, rng.uniform(-0.7, 0.7) * b))
        colour = ((40, 42, 44), (72, 140, 104), (214, 214, 210))[rng.integers(3)]
        tank = spot.buffer(rng.uniform(0.5, 0.8)).intersection(footprint)
        if isinstance(tank, Polygon) and not tank.is_empty:
            items.append(Slab(tank, roof.frame, roof.height + 1.5, "flat", colour, "plain"))
    for _ in range(rng.poisson(a * b / 7)):
        colour = toned(rng, ((70, 66, 62), (200, 196, 188), (150, 110, 92), (90, 100, 110))[rng.integers(4)], 0.2)
        u, v = rng.uniform(-0.85, 0.85) * a, rng.uniform(-0.85, 0.85) * b
        put(u, v, rng.uniform(0.2, 0.9), rng.uniform(0.2, 0.6), rng.uniform(0.1, 0.8), "flat", colour, "plain")
    return items
