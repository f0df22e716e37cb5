"""The demo's town as rasters: the albedo and the height of every pixel, drawn from polygons all at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import shapely
from affine import Affine
from geometry import Plot, Road, Slab, Tree
from layout import Town
from light import Pixels, clouds, illuminate, record
from numpy.typing import NDArray
from rasterio.features import rasterize
from scipy.ndimage import distance_transform_edt, minimum_filter

PITCH = {"gable": 0.42, "hip": 0.5, "shed": 0.1}
WALL_HEIGHT, WALL_COLOUR = 1.7, (132, 122, 112)
GRASS, EARTH, DUST = (np.array(colour, dtype=np.float32) for colour in ((82, 98, 58), (150, 130, 107), (176, 159, 136)))
BARE_METAL = np.array((150, 150, 148), dtype=np.float32)


def paint(rng: np.random.Generator, town: Town, gsd: float) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Renders the town at a ground sampling distance of `gsd` metres.

    Returns:
        RGB [3, H, W], zero where there is no data, and the mask [H, W] of the pixels that have data.
    """
    canvas = Canvas(rng, (round(town.height / gsd), round(town.width / gsd)), gsd)
    canvas.draw_plots(town.plots)
    canvas.draw_roads(town.roads)
    canvas.draw_slabs([(slab, slab.polygon) for slab in town.objects])
    roofs = [(slab, building.footprint) for building in town.buildings for slab in building.slabs]
    canvas.draw_slabs(roofs)
    canvas.draw_trees(town.trees)
    rgb = record(rng, illuminate(canvas.albedo, canvas.height, gsd))
    valid = canvas.burn([town.valid]) > 0
    rgb[:, ~valid] = 0
    return rgb, valid


class Canvas:
    """Albedo [H, W, 3] (RGB in full sun, 0 to 255) and height [H, W] in metres of a scene under way."""

    def __init__(self, rng: np.random.Generator, shape: tuple[int, int], gsd: float) -> None:
        self.rng, self.shape, self.gsd = rng, shape, gsd
        self.height: Pixels = np.zeros(shape, dtype=np.float32)
        # Blotches of 0.6, 2, 7 and 45 m, shared by all that is drawn.
        self.fine, self.small, self.medium, self.wide = (clouds(rng, shape, size / gsd) for size in (0.6, 2, 7, 45))
        green = _step(self.wide + 0.7 * self.medium + 0.4 * self.small + 0.3, 0.5)[..., None]
        self.albedo: Pixels = green * GRASS + (1 - green) * EARTH
        self.albedo *= (1 + 0.07 * self.fine + 0.08 * self.small + 0.05 * self.medium)[..., None]

    def burn(self, geometries: Sequence[shapely.Geometry]) -> NDArray[np.int32]:
        """Raster [H, W] with the 1-based number of the last geometry over each pixel centre, 0 where there is none."""
        shapes = [(geometry, number) for number, geometry in enumerate(geometries, 1) if not geometry.is_empty]
        if not shapes:
            return np.zeros(self.shape, dtype=np.int32)
        return rasterize(shapes, self.shape, transform=Affine.scale(self.gsd), dtype="int32")

    def draw_plots(self, plots: Sequence[Plot]) -> None:
        """Grass, soil, yards and crops over the wild ground, then the walls around plots."""
        covered = [plot for plot in plots if plot.cover != "wild"]
        rows, columns, number = _found(self.burn([plot.polygon for plot in covered]))
        colour = np.array([plot.colour for plot in covered], dtype=np.float32)[number]
        angle = np.array([plot.angle for plot in covered], dtype=np.float32)[number]
        is_crop = np.array([plot.cover == "crop" for plot in covered])[number]
        is_yard = np.array([plot.cover == "yard" for plot in covered])[number]
        across = self.gsd * (rows * np.cos(angle) - columns * np.sin(angle))
        spacing = self.rng.uniform(1.1, 2.2, len(covered)).astype(np.float32)[number]
        furrows = 0.11 * is_crop * np.sin(2 * np.pi * across / spacing)
        fine, small, medium = (layer[rows, columns] for layer in (self.fine, self.small, self.medium))
        tone = 1 + furrows + np.where(is_yard, 0.04, 0.07) * fine + 0.05 * small + 0.06 * medium
        # Weeds and bare patches show the wild ground through everything but a yard.
        through = _step(medium + 0.6 * small - 0.9, 0.3)[:, None] * np.where(is_yard, 0.25, 0.7)[:, None]
        wild = self.albedo[rows, columns]
        self.albedo[rows, columns] = (1 - through) * colour * tone[:, None] + through * wild

        walls = self.burn([plot.polygon.exterior for plot in plots if plot.walled]) > 0
        self.albedo[walls] = WALL_COLOUR
        self.height[walls] = WALL_HEIGHT

    def draw_roads(self, roads: Sequence[Road]) -> None:
        """Roads with frayed, dusty edges."""
        number = self.burn([road.polygon for road in roads])
        inside = number > 0
        depth = distance_transform_edt(inside).astype(np.float32) * self.gsd
        outside = distance_transform_edt(~inside).astype(np.float32) * self.gsd
        verge = 0.7 * _step(0.9 - outside + 0.5 * self.small, 0.3)[..., None]
        self.albedo = (1 - verge) * self.albedo + verge * DUST
        colour = np.array([(0, 0, 0), *(road.colour for road in roads)], dtype=np.float32)[number]
        colour *= (1 + 0.035 * self.fine + 0.04 * self.small + 0.05 * self.medium)[..., None]
        worn = 0.6 * _step(0.8 - depth + 0.45 * self.small, 0.3)[..., None]
        self.albedo = np.where(inside[..., None], (1 - worn) * colour + worn * DUST, self.albedo)
        self.height[inside] = 0

    def draw_slabs(self, slabs: Sequence[tuple[Slab, shapely.Geometry]]) -> None:
        """Draws slabs over each other, each inside the outline that it comes with.

        A pixel of an outline that none of its slabs covers, as rounding can leave one between two of them, gets the
        first of them: what is drawn fills the outline to the pixel.
        """
        if not slabs:
            return
        outlines: dict[int, tuple[shapely.Geometry, int]] = {}
        for number, (_, outline) in enumerate(slabs, 1):
            outlines.setdefault(id(outline), (outline, number))
        backing = np.array([0, *(first for _, first in outlines.values())], dtype=np.int32)
        outlined = backing[self.burn([outline for outline, _ in outlines.values()])]
        on_top = self.burn([slab.polygon.intersection(outline) for slab, outline in slabs])
        number = np.where((on_top > 0) & (outlined > 0), on_top, outlined)
        rows, columns, index = _found(number)
        faces = _Faces([slab for slab, _ in slabs], index, self.gsd * (columns + 0.5), self.gsd * (rows + 0.5))
        self.height[rows, columns] = faces.height()
        tone, colour = self._texture(faces, rows, columns)
        # A parapet is what stands at the edge of a flat roof over something lower.
        lower = minimum_filter(self.height, 3)[rows, columns] < self.height[rows, columns] - 0.6
        parapet = faces.has("parapet") & lower
        self.height[rows[parapet], columns[parapet]] += 0.6
        self.albedo[rows, columns] = colour * (tone * np.where(parapet, 1.08, 1))[:, None]

    def _texture(self, faces: _Faces, rows: NDArray, columns: NDArray) -> tuple[Pixels, Pixels]:
        """Tone [N] and colour [N, 3] of the pixels of slabs."""
        fine, small, medium = (layer[rows, columns] for layer in (self.fine, self.small, self.medium))
        stained, rusty, tiled = (faces.made_of(texture) for texture in ("stained", "rusty", "tiled"))
        sheets = faces.made_of("sheet") | rusty
        one_sheet = faces.per_sheet(self.rng)
        tone = 1 + 0.02 * fine
        tone += stained * (0.05 * fine + 0.05 * small + 0.04 * medium)
        tone += sheets * (0.07 * np.sin(2 * np.pi * faces.u / 0.76) + 0.035 * one_sheet)
        tone += tiled * (0.06 * np.sin(2 * np.pi * faces.v / 0.68) + 0.06 * fine + 0.04 * small)
        tone += rusty * 0.06 * small
        bare = rusty * _step(one_sheet + 0.5 * small - 0.7, 0.25)
        colour = (1 - bare[:, None]) * faces.colour() + bare[:, None] * BARE_METAL
        return tone.astype(np.float32), colour

    def draw_trees(self, trees: Sequence[Tree]) -> None:
        """Crowns as lumpy domes, over whatever is lower than they are."""
        for tree in trees:
            reach = int(1.35 * tree.radius / self.gsd) + 1
            row, column = int(tree.y / self.gsd), int(tree.x / self.gsd)
            centre_and_end = ((row, self.shape[0]), (column, self.shape[1]))
            window = tuple(slice(max(0, at - reach), min(end, at + reach + 1)) for at, end in centre_and_end)
            rows, columns = np.ogrid[window]
            distance = np.hypot(self.gsd * rows - tree.y, self.gsd * columns - tree.x) / tree.radius
            leaves = 0.16 * self.small[window] + 0.13 * self.fine[window]
            dome = 1 - (distance + leaves) ** 2
            top = tree.height * (0.55 + 0.45 * np.sqrt(np.clip(dome, 0, 1))) + 0.3 * self.fine[window]
            crown = (dome > 0) & (top > self.height[window])
            self.height[window][crown] = top[crown]
            tone = 1 + 0.16 * self.fine[window] + 0.1 * self.small[window]
            self.albedo[window][crown] = np.array(tree.colour, dtype=np.float32) * tone[crown][:, None]


class _Faces:
    """The pixels of slabs: which slab each shows, and where in the slab's frame it lies."""

    def __init__(self, slabs: Sequence[Slab], index: NDArray, x: NDArray, y: NDArray) -> None:
        """`index` [N] is the slab of each pixel, `x` and `y` [N] the pixel centres in metres."""
        self.slabs, self.index = slabs, index
        frames = [slab.frame for slab in slabs]
        columns = ((frame.x, frame.y, frame.angle, frame.half_length, frame.half_width) for frame in frames)
        x0, y0, angle, self._length, self._width = np.array(list(columns), dtype=np.float64)[index].T
        self.u = (x - x0) * np.cos(angle) + (y - y0) * np.sin(angle)
        self.v = (y - y0) * np.cos(angle) - (x - x0) * np.sin(angle)

    def has(self, roof: str) -> NDArray[np.bool_]:
        return np.array([slab.roof == roof for slab in self.slabs])[self.index]

    def made_of(self, texture: str) -> NDArray[np.bool_]:
        return np.array([slab.texture == texture for slab in self.slabs])[self.index]

    def colour(self) -> Pixels:
        return np.array([slab.colour for slab in self.slabs], dtype=np.float32)[self.index]

    def height(self) -> NDArray[np.float64]:
        """Upper side in metres: eaves plus what the pitch of the roof adds."""
        to_eaves = np.clip(self._width - np.abs(self.v), 0, None)
        to_gable = np.clip(self._length - np.abs(self.u), 0, None)
        rise = np.where(self.has("gable"), PITCH["gable"] * to_eaves, 0)
        rise += np.where(self.has("hip"), PITCH["hip"] * np.minimum(to_eaves, to_gable), 0)
        rise += np.where(self.has("shed"), PITCH["shed"] * (self.v + self._width), 0)
        return np.array([slab.height for slab in self.slabs])[self.index] + rise

    def per_sheet(self, rng: np.random.Generator) -> Pixels:
        """Noise [N] that is one value all over each sheet, 0.9 m by 2.4 m, of a roof."""
        table = rng.standard_normal(4099, dtype=np.float32)
        across, along = np.floor(self.u / 0.9).astype(int), np.floor(self.v / 2.4).astype(int)
        return table[(self.index * 7919 + across * 131 + along * 1031) % len(table)]


def _found(number: NDArray[np.int32]) -> tuple[NDArray, NDArray, NDArray]:
    """Rows, columns and 0-based numbers of the pixels that a geometry covers."""
    rows, columns = np.nonzero(number)
    return rows, columns, number[rows, columns] - 1


def _step(value: Pixels, softness: float) -> Pixels:
    """A soft threshold at 0: from 0 well below it to 1 well above."""
    return (1 / (1 + np.exp(np.clip(-value / softness, -30, 30)))).astype(np.float32)
