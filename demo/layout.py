"""Where everything in the demo's town is: roads, plots, buildings, trees and cars, as polygons from one generator."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import houses
import numpy as np
import shapely
from geometry import Building, Colour, Frame, Plot, Road, Slab, Tree, divide, frame_of
from shapely.geometry import Point, Polygon, box

ROAD_WIDTHS = (9.0, 7.5, 5.5, 4.6, 3.4, 2.8)
"""By the depth of the cut that the road follows; deeper cuts are as wide as the last."""
ASPHALT, CONCRETE, DIRT, BRICK = (117, 115, 114), (166, 161, 151), (176, 151, 120), (142, 98, 78)

COVERS: dict[str, tuple[Colour, ...]] = {
    "wild": ((0, 0, 0),),
    "grass": ((92, 112, 62), (104, 116, 72), (80, 100, 52)),
    "soil": ((170, 145, 118), (150, 124, 102), (182, 162, 138), (134, 108, 90)),
    # The greys of the flat roofs on purpose: a yard and a roof differ by their surroundings only.
    "yard": ((156, 152, 144), (172, 168, 160), (138, 134, 128), (146, 106, 90)),
    "crop": ((84, 106, 60), (112, 112, 72), (132, 114, 88), (70, 92, 58)),
}
CAR_COLOURS = ((232, 232, 230), (60, 62, 66), (168, 172, 176), (160, 40, 36), (40, 70, 130), (222, 186, 60))
CLUTTER_COLOURS = ((60, 60, 58), (214, 212, 206), (48, 112, 170), (146, 108, 82), (120, 118, 112), (170, 60, 50))
TREE_COLOURS = ((72, 102, 50), (86, 112, 54), (62, 90, 48), (106, 118, 62), (118, 116, 66))


@dataclass(frozen=True)
class Town:
    """A town `width` x `height` metres large.

    Attributes:
        valid: the part of the scene that has data.
        objects: what stands around outside: cars, tarpaulins, heaps.
    """

    width: float
    height: float
    valid: Polygon
    roads: list[Road]
    plots: list[Plot]
    buildings: list[Building]
    trees: list[Tree]
    objects: list[Slab]


def lay_out(rng: np.random.Generator, width: float, height: float) -> Town:
    """A town that fills a scene of `width` x `height` metres, one corner of which has no data."""
    valid = _valid_area(rng, width, height)
    centre = Point(rng.uniform(0.35, 0.5) * width, rng.uniform(0.4, 0.6) * height)
    reach = 0.5 * math.hypot(width, height)

    def density(place: Point) -> float:
        """1 in the middle of the town, 0 in the fields."""
        return math.exp(-((place.distance(centre) / reach) ** 2) * 1.9)

    # Blocks and plots go on beyond the scene, so that nothing in it looks cut to its frame.
    ground = box(-40, -40, width + 40, height + 40)
    blocks, cuts = divide(rng, ground, lambda place: 2400 + 9000 * (1 - density(place)) ** 2, winding=0.22)
    roads = [_road(rng, depth, cut) for depth, cut in sorted(cuts, key=lambda item: -item[0])]
    road_area = shapely.union_all([road.polygon for road in roads])

    plots: list[Plot] = []
    buildings: list[Building] = []
    for block in blocks:
        for polygon in _plots_of(rng, block.difference(road_area), density):
            town_share = density(polygon.centroid)
            building = houses.build(rng, polygon, town_share, road_area)
            visible = _visible(building, valid)
            if visible is not None:
                buildings.append(visible)
            plots.append(_plot(rng, polygon, town_share, visible is not None))
    footprints = [building.footprint for building in buildings]
    trees = _trees(rng, width, height, [*footprints, *(road.polygon for road in roads)])
    objects = [*_cars(rng, cuts, footprints), *_clutter(rng, plots, footprints)]
    return Town(width, height, valid, roads, plots, buildings, trees, objects)


def _valid_area(rng: np.random.Generator, width: float, height: float) -> Polygon:
    """The scene without its upper right corner, along the slanted edge of a flight strip."""
    right, top = rng.uniform(0.16, 0.24) * height, rng.uniform(0.1, 0.16) * width
    corner = Polygon([(width - top, -1), (width + 1, -1), (width + 1, right)])
    return box(0, 0, width, height).difference(corner)


def _visible(building: Building | None, valid: Polygon) -> Building | None:
    """The building as far as the scene shows it; None where too little of it is left to be seen."""
    if building is None:
        return None
    shown = shapely.intersection(building.footprint, valid, grid_size=houses.GRID)
    if not isinstance(shown, Polygon) or shown.area < 12:
        return None
    return Building(shown, building.slabs)


def _road(rng: np.random.Generator, depth: int, cut: shapely.Geometry) -> Road:
    width = ROAD_WIDTHS[min(depth, len(ROAD_WIDTHS) - 1)] * rng.uniform(0.9, 1.1)
    shares = (0.9, 0.1, 0.0, 0.0) if depth < 2 else (0.2, 0.3, 0.35, 0.15)
    colour = (ASPHALT, CONCRETE, DIRT, BRICK)[rng.choice(4, p=shares)]
    return Road(cut.buffer(width / 2), houses.toned(rng, colour, 0.08))


def _plots_of(rng: np.random.Generator, block: shapely.Geometry, density: Callable[[Point], float]) -> list[Polygon]:
    """Plots of 90 m2 in the middle of the town to some 1500 m2 in the fields."""
    plots: list[Polygon] = []
    for polygon in shapely.get_parts(block):
        if polygon.area < 40:
            continue
        mood = rng.lognormal(0, 0.35)
        pieces, _ = divide(rng, polygon, lambda place, mood=mood: mood * 95 * math.exp(2.45 * (1 - density(place))), 0)
        plots += pieces
    return plots


def _plot(rng: np.random.Generator, polygon: Polygon, town_share: float, built: bool) -> Plot:
    shares = (0.3, 0.12, 0.2, 0.38, 0.0) if built or town_share > 0.6 else (0.22, 0.2, 0.13, 0.05, 0.4)
    cover = list(COVERS)[rng.choice(5, p=shares)]
    colours = COVERS[cover]
    colour = houses.toned(rng, colours[rng.integers(len(colours))], 0.1)
    walled = rng.random() < (0.45 if built else 0.2)
    return Plot(polygon, frame_of(polygon).angle, cover, colour, walled)


def _trees(rng: np.random.Generator, width: float, height: float, obstacles: list[Polygon]) -> list[Tree]:
    """Trees in groves and alone, their trunks off the roads and the buildings."""
    groves = rng.uniform((0, 0), (width, height), (max(4, int(width * height / 9000)), 2))
    spread = rng.uniform(4, 18, len(groves))
    count = int(width * height / 260)
    chosen = rng.integers(len(groves), size=count)
    places = groves[chosen] + spread[chosen, None] * rng.normal(size=(count, 2))
    alone = rng.random(count) < 0.35
    places[alone] = rng.uniform((0, 0), (width, height), (int(alone.sum()), 2))
    radii = rng.lognormal(0.75, 0.5, count).clip(0.7, 6)
    points = shapely.points(places)
    (index, _), distance = shapely.STRtree(obstacles).query_nearest(points, return_distance=True, all_matches=False)
    free = ((places > 0) & (places < (width, height))).all(axis=1)
    free[index] &= distance > 0.75 * radii[index]
    return [
        Tree(x, y, radius, radius * rng.uniform(1.2, 2.0) + 1, houses.toned(rng, _any(rng, TREE_COLOURS), 0.12))
        for (x, y), radius in zip(places[free].tolist(), radii[free].tolist(), strict=True)
    ]


def _cars(rng: np.random.Generator, cuts: list[tuple[int, shapely.Geometry]], footprints: list[Polygon]) -> list[Slab]:
    """Cars at the kerbs of the wider roads, each a body and a darker strip of glass."""
    cars: list[Slab] = []
    for depth, cut in cuts:
        if depth > 3:
            continue
        for along in np.arange(0, cut.length, 9.0):
            if rng.random() > 0.16:
                continue
            start, end = cut.interpolate(along), cut.interpolate(along + 1)
            side = (ROAD_WIDTHS[depth] / 2 - 1.3) * rng.choice((-1, 1))
            angle = math.atan2(end.y - start.y, end.x - start.x)
            x, y = start.x - side * math.sin(angle), start.y + side * math.cos(angle)
            body = Frame(x, y, angle, rng.uniform(1.9, 2.5), 0.9)
            glass = body.part(0.1, -0.75, 0.9, 0.75)
            colour = _any(rng, CAR_COLOURS)
            cars.append(Slab(body.polygon(), body, 1.3, "flat", colour, "plain"))
            cars.append(Slab(glass.polygon(), glass, 1.4, "flat", (50, 54, 60), "plain"))
    return _clear_of(cars, footprints)


def _clutter(rng: np.random.Generator, plots: list[Plot], footprints: list[Polygon]) -> list[Slab]:
    """Tarpaulins, heaps and sheds too small to be buildings, on yards and bare soil."""
    clutter = []
    for plot in plots:
        frame = frame_of(plot.polygon)
        for _ in range(rng.poisson(1.6) if plot.cover in ("yard", "soil") else rng.binomial(1, 0.15)):
            u = rng.uniform(-0.9, 0.9) * frame.half_length
            v = rng.uniform(-0.9, 0.9) * frame.half_width
            size = rng.uniform(0.3, 1.1, 2)
            item = frame.part(u - size[0], v - size[1], u + size[0], v + size[1])
            colour = houses.toned(rng, _any(rng, CLUTTER_COLOURS), 0.2)
            clutter.append(Slab(item.polygon(), item, rng.uniform(0.2, 1.5), "flat", colour, "stained"))
    return _clear_of(clutter, footprints)


def _clear_of(slabs: list[Slab], footprints: list[Polygon]) -> list[Slab]:
    """The slabs that touch no building."""
    index = shapely.STRtree(footprints)
    hit = set(index.query([slab.polygon for slab in slabs], predicate="intersects")[0].tolist())
    return [slab for number, slab in enumerate(slabs) if number not in hit]


def _any(rng: np.random.Generator, colours: tuple[Colour, ...]) -> Colour:
    return colours[rng.integers(len(colours))]
