"""Outlines of labelled pixels from their corners, without a loop over pixels, rings or polygons.

Outlines turn at corners: vertices of the pixel grid around which one or three of four pixels are of a component, or two
that touch there only. Between its corners an outline is straight: reading them by rows pairs the ends of all its
horizontal edges, and sorting them by columns those of its vertical ones.
"""

from __future__ import annotations

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import breadth_first_order, connected_components

Ints = NDArray[np.int64]
Labels = NDArray[np.int32]

_ROW_BIT, _COLUMN_BIT = 32, 4
"""A corner is one int64: from these bits up row and column of the vertex, in working pixels of the whole raster, below
them which of the four pixels around it are of its component. So corners rise by rows, and in these by columns."""

_NORTH_WEST, _SOUTH_WEST, _NORTH_EAST, _SOUTH_EAST = 1, 2, 4, 8
"""Bits of the four pixels around a vertex. Of two that touch there, the one with the lower bit is on the left."""

_PIXELS = np.arange(16)
_LOWEST = np.argmax(_PIXELS[:, None] >> np.arange(4) & 1, axis=1)
"""Number of the lowest bit that is set."""
_TOUCHES = np.isin(_PIXELS, [_NORTH_WEST | _SOUTH_EAST, _NORTH_EAST | _SOUTH_WEST])
_CORNER = np.isin(_PIXELS, [1, 2, 4, 8, 7, 11, 13, 14]) | _TOUCHES
_DOWN = np.isin(_PIXELS, [_SOUTH_WEST, _SOUTH_EAST, 15 - _SOUTH_WEST, 15 - _SOUTH_EAST])
"""Whether the vertical edge that ends at a corner lies below."""
_ACROSS = np.isin(_PIXELS, [_NORTH_WEST, _SOUTH_EAST, 15 - _NORTH_EAST, 15 - _SOUTH_WEST])
"""Whether the outline, which has its inside on the right, goes on by the horizontal edge."""


def corners_of(inside: NDArray[np.uint8], labels: Labels, col: int, row: int) -> tuple[Ints, Labels]:
    """Corners at the vertices between rows, see `_ROW_BIT`, and the label that each is of.

    Args:
        inside: 1 in buildings, else 0; [height + 1, width + 2], a column of 0 at each side.
        labels: of its components.
        col, row: of the vertex at the left end of the first row of vertices.
    """
    stride = inside.shape[1]
    # Vertices by the place of their north-west pixel; those at the ends of the rows have no building around.
    flat = inside.ravel()
    to = (0, stride, 1, stride + 1)  # from there to the other pixels, in the order of their bits
    length = flat.size - stride - 1
    around = flat[:length].copy()
    for bit in (1, 2, 3):
        around |= flat[to[bit] : to[bit] + length] << bit
    places = np.flatnonzero(_CORNER.take(around))
    pixels = around[places]
    touches = _TOUCHES[pixels]
    # Where two pixels touch, each has a corner of its own.
    first = np.flatnonzero(touches) + np.arange(np.count_nonzero(touches))
    places, pixels = np.repeat(places, touches + 1), np.repeat(pixels, touches + 1)
    pixels[first] &= -pixels[first]  # the lowest bit
    pixels[first + 1] ^= pixels[first]
    y, x = np.divmod(places, stride)
    corners = (y + row) << _ROW_BIT | (x + col) << _COLUMN_BIT | pixels
    return corners, labels.ravel()[places + np.array(to)[_LOWEST[pixels]]]


def outlines(corners: Ints, labels: Labels, smallest: float) -> tuple[NDArray[np.object_], Ints]:
    """Polygons of whole components of at least `smallest` pixels, holes counted, and their labels, rising."""
    if len(corners) == 0:
        return np.zeros(0, np.object_), np.zeros(0, np.int64)
    y, x = corners >> _ROW_BIT, corners >> _COLUMN_BIT & (1 << _ROW_BIT - _COLUMN_BIT) - 1
    left, top = x.min(), y[0]
    x, y = x - left, y - top
    onward = _next_corner(corners, labels, x, y)
    ring, order = _rings(onward)
    x, y = x.astype(np.float64), y.astype(np.float64)
    area = np.bincount(ring, x * y[onward] - x[onward] * y) / 2  # of shells positive, of holes negative
    label = np.zeros(len(area), np.int64)
    label[ring] = labels
    is_shell = area > 0
    is_kept = np.zeros(label.max() + 1, np.bool_)
    is_kept[label[is_shell & (area >= smallest)]] = True
    kept_rings = is_kept[label]

    order = order[kept_rings[ring[order]]]
    rank = np.cumsum(kept_rings) - 1
    vertices = np.stack([x[order] + left, y[order] + top], axis=1)
    rings = shapely.linearrings(vertices, indices=rank[ring[order]])
    label, is_shell = label[kept_rings], is_shell[kept_rings]
    shell_first = np.lexsort([~is_shell, label])
    numbers, polygon = np.unique(label[shell_first], return_inverse=True)
    if len(numbers) == 0:
        return np.zeros(0, np.object_), numbers
    return shapely.polygons(rings[shell_first], indices=polygon), numbers


def _next_corner(corners: Ints, labels: Labels, x: Ints, y: Ints) -> Ints:
    """Index of the corner that follows each along its outline, inside on the right.

    Where pixels of one component touch at a vertex, the outline goes over from one to the other: the ground that they
    close in is then a hole that meets the shell in a point, as a valid polygon has it, and not a shell that meets
    itself.
    """
    pixels = corners & 15
    goes_over = np.zeros(len(corners), np.bool_)
    vertex = corners >> _COLUMN_BIT
    first = np.flatnonzero((vertex[1:] == vertex[:-1]) & (labels[1:] == labels[:-1]))
    goes_over[first] = goes_over[first + 1] = True
    down = _DOWN[pixels] ^ goes_over
    by_columns = np.argsort((x * (y[-1] + 1) + y) * 2 + down)
    # The ends of the edges, in the order of their places, are first and last ones by turns.
    partners = np.arange(len(corners)) ^ 1
    vertical = np.empty_like(partners)
    vertical[by_columns] = by_columns[partners]
    return np.where(_ACROSS[pixels], partners, vertical)


def _rings(onward: Ints) -> tuple[Labels, Ints]:
    """The cycles of a permutation: number of each element's cycle, and all elements, cycle by cycle in their order."""
    count = len(onward)
    everyone = np.arange(count)

    def graph(successors: Ints) -> sparse.csr_array:
        return sparse.csr_array((np.ones(count, np.int8), successors, np.arange(count + 1)), shape=(count, count))

    number, ring = connected_components(graph(onward), directed=True, connection="weak")
    first = np.zeros(number, np.int64)
    first[ring[::-1]] = everyone[::-1]
    before = np.empty_like(onward)
    before[onward] = everyone
    # Each cycle's end led on to the next cycle's begin, one walk passes through all of them.
    chained = onward.copy()
    chained[before[first]] = np.roll(first, -1)
    order: Ints = breadth_first_order(graph(chained), first[0], return_predecessors=False)
    return ring, order
