"""Polygons of strips are those of the whole; their area is that of the pixels."""

from __future__ import annotations

import pickle
from typing import NamedTuple

import numpy as np
import pytest
import rasterio.features
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

from qgis_iic.engine import vectorization
from qgis_iic.engine.strip import Strip
from qgis_iic.engine.tiling import Window
from qgis_iic.engine.vectorization import Components, Vectorizer, building_mask
from qgis_iic.engine.workers import threads

BUILDINGS = (1, 3)

CLASSES = arrays.arrays(
    np.uint8, st.tuples(st.integers(1, 24), st.integers(1, 24)), elements=st.sampled_from([0, 1, 3, 255])
)


def probabilities(clusters: np.ndarray) -> np.ndarray:
    """Some that have nothing to do with the clusters; 255 where those have no data."""
    numbers = 37 * np.arange(clusters.size).reshape(clusters.shape) % 255
    return np.where(clusters == 255, 255, numbers).astype(np.uint8)


class Part(NamedTuple):
    """One of `Components`."""

    polygon: shapely.Polygon
    cluster: int
    pixels: int
    confidence: float


def parts(components: Components) -> list[Part]:
    columns = (components.polygons, components.cluster, components.pixels, components.confidence)
    return [Part(*values) for values in zip(*columns, strict=True)]


def vectorize(
    clusters: np.ndarray,
    cuts: list[int],
    origin: tuple[int, int] = (0, 0),
    smallest: float = 0,
    building_clusters: tuple[int, ...] | None = BUILDINGS,
    workers: int = 1,
) -> list[Part]:
    with threads(workers) as hands:
        return fed(Vectorizer(building_clusters, smallest, hands), clusters, cuts, origin)


def fed(vectorizer: Vectorizer, clusters: np.ndarray, cuts: list[int], origin: tuple[int, int] = (0, 0)) -> list[Part]:
    """Components of a class raster that is fed in strips with ends at `cuts`."""
    height, width = clusters.shape
    planes = np.stack([clusters, clusters, probabilities(clusters)])
    ends = sorted({cut for cut in cuts if 0 < cut < height} | {height})
    strips = (
        Strip(Window(origin[0], origin[1] + start, width, end - start), planes[:, start:end])
        for start, end in zip([0, *ends], ends, strict=False)
    )
    return [part for complete in vectorizer.complete(strips) for part in parts(complete.components())]


def outlines(components: list[Part]) -> set[tuple[bytes, int, int, float]]:
    return {
        (shapely.normalize(part.polygon).wkb, part.cluster, part.pixels, round(part.confidence, 9))
        for part in components
    }


@settings(max_examples=300, deadline=None)
@given(CLASSES, st.lists(st.integers(1, 23), max_size=8), st.sampled_from([BUILDINGS, None]))
def test_strips_give_the_polygons_of_the_whole(
    clusters: np.ndarray, cuts: list[int], building_clusters: tuple[int, ...] | None
) -> None:
    whole = vectorize(clusters, [], building_clusters=building_clusters)
    pieced = vectorize(clusters, cuts, building_clusters=building_clusters)
    assert len(pieced) == len(whole)
    assert outlines(pieced) == outlines(whole)


@settings(max_examples=200, deadline=None)
@given(CLASSES, st.lists(st.integers(1, 23), max_size=4))
def test_polygons_are_the_connected_components(clusters: np.ndarray, cuts: list[int]) -> None:
    mask = np.isin(clusters, BUILDINGS)
    labels, count = ndimage.label(mask)
    components = vectorize(clusters, cuts, origin=(100, 200))
    assert len(components) == count
    assert sum(part.polygon.area for part in components) == mask.sum()
    for part in components:
        assert shapely.is_valid(part.polygon)
        assert part.polygon.area == part.pixels
        rows, cols = np.nonzero(mask)
        inside = shapely.contains_xy(part.polygon, cols + 100.5, rows + 200.5)
        label = np.unique(labels[rows[inside], cols[inside]])
        assert len(label) == 1
        members = clusters[labels == label[0]]
        assert part.pixels == len(members)
        assert part.cluster == np.bincount(members).argmax()


@settings(max_examples=100, deadline=None)
@given(CLASSES, st.lists(st.integers(1, 23), max_size=4))
def test_without_clusters_the_probability_decides(clusters: np.ndarray, cuts: list[int]) -> None:
    probability = probabilities(clusters)
    components = vectorize(clusters, cuts, building_clusters=None)
    assert sum(part.pixels for part in components) == ((probability >= 127) & (probability < 255)).sum()
    assert all(part.confidence >= 0.5 for part in components)


def test_the_mask_by_clusters_and_by_probability() -> None:
    planes = np.array([[[1, 1, 2, 2, 255]], [[0] * 5], [[126, 127, 0, 254, 255]]], np.uint8)
    assert building_mask(planes, (1,)).tolist() == [[True, True, False, False, False]]
    assert building_mask(planes, None).tolist() == [[False, True, False, True, False]]


def test_a_building_over_three_strips_with_a_court_has_no_vertices_at_the_strips() -> None:
    clusters = np.zeros((9, 9), np.uint8)
    clusters[1:8, 1:8] = 1
    clusters[3:6, 3:6] = 0
    (part,) = vectorize(clusters, [2, 4, 6])
    assert shapely.equals(part.polygon, shapely.box(1, 1, 8, 8).difference(shapely.box(3, 3, 6, 6)))
    assert len(part.polygon.exterior.coords) == 5
    assert len(part.polygon.interiors[0].coords) == 5


def test_corner_contact_does_not_connect() -> None:
    clusters = np.array([[1, 0], [0, 1]], np.uint8)
    for cuts in ([], [1]):
        assert len(vectorize(clusters, cuts)) == 2


def snakes(height: int, width: int, seed: int) -> np.ndarray:
    """Buildings that wander down through all rows, meet and part, and enclose ground, among specks of one pixel."""
    random = np.random.default_rng(seed)
    clusters = random.choice(np.array([0, 1], np.uint8), (height, width), p=[0.85, 0.15])
    columns = random.integers(0, width, 4)
    for row in range(height):
        for number, col in enumerate(columns):
            clusters[row, max(0, col - 1) : col + 2] = (1, 3)[number % 2]
        columns = (columns + random.integers(-1, 2, 4)).clip(0, width - 1)
    return clusters


@pytest.mark.parametrize("seed", range(20))
def test_what_stays_open_through_many_strips_is_what_gdal_traces(seed: int) -> None:
    """Joined now and then only: the parts that wait have to fit together whenever that is."""
    clusters = snakes(300, 40, seed)
    mask = np.isin(clusters, BUILDINGS).view(np.uint8)
    expected = [shapely.geometry.shape(shape) for shape, _ in rasterio.features.shapes(mask, mask, connectivity=4)]
    random = np.random.default_rng(seed)
    components = vectorize(clusters, random.choice(300, 150, replace=False).tolist())
    polygons = shapely.normalize([part.polygon for part in components])
    assert sorted(shapely.to_wkt(polygons)) == sorted(shapely.to_wkt(shapely.normalize(shapely.simplify(expected, 0))))
    assert outlines(components) == outlines(vectorize(clusters, []))


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Corners that each joining of parts takes up."""
    counts = []
    joined = vectorization._joined

    def counting(parts: list[vectorization._Part]) -> tuple[vectorization._Closed, vectorization._Part]:
        counts.append(sum(len(part.corners) for part in parts))
        return joined(parts)

    monkeypatch.setattr(vectorization, "_joined", counting)
    return counts


def test_what_is_open_is_not_moved_with_every_strip(moved: list[int]) -> None:
    """A road through a thousand strips: with each of them, that would be five hundred times a corner."""
    clusters = np.zeros((2000, 12), np.uint8)
    clusters[:, 2:6] = 1
    clusters[::2, 6:10] = 1
    (part,) = vectorize(clusters, list(range(2, 2000, 2)))
    corners = len(part.polygon.exterior.coords) - 1
    assert sum(moved) < 10 * corners


def test_little_waits_within_a_strip_of_many_parts(moved: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of four rows, cut in parts of three: what has ended leaves before the strip does."""
    monkeypatch.setattr(vectorization, "_PIXELS_AT_ONCE", 3 * 40)
    clusters = np.zeros((1000, 40), np.uint8)
    clusters[np.arange(1000) % 5 < 4] = np.arange(40) % 4 < 2
    assert len(vectorize(clusters, [])) == 200 * 10
    # Ten blocks of four corners are open at a time, and all of them would be 8000 corners.
    assert max(moved) < 200


@settings(max_examples=200, deadline=None)
@given(CLASSES, st.integers(1, 6), st.integers(0, 12), st.sampled_from([1, 3]))
def test_what_is_too_large_is_cut_along_rows_and_nothing_is_lost(
    clusters: np.ndarray, rows: int, most: int, workers: int
) -> None:
    whole = vectorize(clusters, [], origin=(100, 200))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectorization, "_MOST_CORNERS", most)
        patch.setattr(vectorization, "_PIXELS_AT_ONCE", 48)
        patch.setattr(vectorization, "_PIXELS_OF_WORKER", 48)
        pieces = vectorize(clusters, list(range(rows, 24, rows)), origin=(100, 200), workers=workers)
    sums = [(0, 0.0) for _ in whole]
    for piece in pieces:
        assert shapely.is_valid(piece.polygon)
        assert piece.polygon.area == piece.pixels
        (of,) = [number for number, part in enumerate(whole) if shapely.covers(part.polygon, piece.polygon)]
        sums[of] = (sums[of][0] + piece.pixels, sums[of][1] + piece.pixels * piece.confidence)
    assert [pixels for pixels, _ in sums] == [part.pixels for part in whole]
    assert [probability for _, probability in sums] == pytest.approx([part.pixels * part.confidence for part in whole])
    polygons = shapely.STRtree([piece.polygon for piece in pieces])
    first, second = polygons.query(polygons.geometries, predicate="overlaps")
    assert len(first) == len(second) == 0


def test_only_the_largest_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectorization, "_MOST_CORNERS", 100)
    clusters = np.zeros((400, 20), np.uint8)
    clusters[:, 1:4] = clusters[::2, 4] = 1  # a comb from end to end
    clusters[:, 8:10] = 1
    clusters[np.arange(400) % 10 < 8, 12:18] = 1
    vectorizer = Vectorizer(BUILDINGS)
    pieces = fed(vectorizer, clusters, list(range(3, 400, 3)))
    left, right = ([piece for piece in pieces if low < piece.polygon.centroid.x < low + 4] for low in (1, 7))
    assert len(left) > 4
    assert [piece.polygon.bounds for piece in right] == [(8, 0, 10, 400)]
    assert len(pieces) == len(left) + 1 + 40
    assert vectorizer.cut_off == len(left) - 1


def test_two_arms_that_meet_below_are_one_building() -> None:
    clusters = np.array([[1, 0, 1], [1, 0, 3], [1, 3, 3]], np.uint8)
    (part,) = vectorize(clusters, [1, 2])
    assert part.pixels == 7
    assert part.cluster == 1  # four against three


def test_confidence_is_the_mean_probability() -> None:
    strip = Strip(Window(0, 0, 2, 1), np.array([[[1, 1]], [[0, 0]], [[254, 127]]], np.uint8))
    vectorizer = Vectorizer((1,))
    (part,) = [part for complete in vectorizer.complete([strip]) for part in parts(complete.components())]
    assert part.confidence == pytest.approx(0.75)


@settings(max_examples=150, deadline=None)
@given(CLASSES, st.lists(st.integers(1, 23), max_size=4), st.integers(2, 30))
def test_only_specks_are_left_out(clusters: np.ndarray, cuts: list[int], smallest: int) -> None:
    def large(components: list[Part]) -> list[Part]:
        return [part for part in components if shapely.Polygon(part.polygon.exterior).area >= smallest]

    assert outlines(large(vectorize(clusters, cuts, smallest=smallest))) == outlines(large(vectorize(clusters, [])))


@pytest.mark.parametrize("workers", [1, 3])
def test_a_strip_is_the_same_whatever_is_labelled_at_once(monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    clusters = np.random.default_rng(0).choice(np.array([0, 1, 3, 255], np.uint8), (40, 30))
    whole = outlines(vectorize(clusters, []))
    monkeypatch.setattr(vectorization, "_PIXELS_AT_ONCE", 200)
    monkeypatch.setattr(vectorization, "_PIXELS_OF_WORKER", 200)
    assert outlines(vectorize(clusters, [], workers=workers)) == whole


def test_ground_closed_in_by_pixels_that_touch_is_a_hole() -> None:
    """Between the two pieces of ground, and beside the second, pixels of one building meet at a corner only."""
    clusters = np.array([[1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 0, 1], [0, 1, 1, 1]], np.uint8)
    for cuts in ([], [1], [2], [1, 2, 3]):
        (part,) = vectorize(clusters, cuts)
        assert shapely.is_valid(part.polygon)
        assert [shapely.Polygon(ring).area for ring in part.polygon.interiors] == [1, 1]
        assert part.polygon.area == part.pixels == 11


def test_specks_are_left_out() -> None:
    clusters = np.zeros((20, 20), np.uint8)
    clusters[5:7, 5:7] = 1
    clusters[10:15, 10:15] = 1
    (part,) = vectorize(clusters, [], smallest=5)
    assert part.pixels == 25


def test_no_data_is_no_building_even_if_its_number_is_named() -> None:
    vectorizer = Vectorizer((1, 255))
    planes = np.full((3, 4, 4), 255, np.uint8)
    complete = vectorizer.complete([Strip(Window(0, 0, 4, 4), planes)])
    assert sum(len(each.components()) for each in complete) == 0


def test_what_is_complete_can_go_to_another_process() -> None:
    clusters = np.random.default_rng(0).choice(np.array([0, 1, 3, 255], np.uint8), (40, 30))
    strips = (Strip(Window(0, row, 30, 10), np.stack([clusters[row : row + 10]] * 3)) for row in range(0, 40, 10))
    before = list(Vectorizer(BUILDINGS).complete(strips))
    after = pickle.loads(pickle.dumps(before))
    components = [part for complete in before for part in parts(complete.components())]
    assert len(components) > 20
    assert [part for complete in after for part in parts(complete.components())] == components
