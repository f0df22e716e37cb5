from __future__ import annotations

import pytest

from qgis_iic.protocol.bands import default_bands

RGB = ("red", "green", "blue")
RGBN = (*RGB, "nir")


@pytest.mark.parametrize(
    ("names", "colours", "expected"),
    [
        (RGB, ["red", "green", "blue"], (1, 2, 3)),
        (RGB, ["blue", "green", "red", "alpha"], (3, 2, 1)),
        (RGBN, ["blue", "green", "red", "nir"], (3, 2, 1, 4)),
        (RGBN, ["red", "green", "blue", "undefined"], (1, 2, 3, 4)),
        (RGBN, ["blue", "green", "red", "undefined"], (3, 2, 1, 4)),  # the one that is open is the one that is missing
        (RGB, ["gray", "undefined", "undefined"], (1, 2, 3)),
        (RGB, ["red", "undefined", "undefined"], (1, 2, 3)),
        (RGB, ["undefined", "red", "undefined"], None),
        (RGB, ["nir", "red", "green"], None),  # colour infrared has no blue
        (RGB, ["gray", "undefined", "undefined", "undefined"], None),
        (RGB, ["gray", "alpha"], None),
        (("gray",), ["gray", "alpha"], (1,)),
    ],
)
def test_the_raster_says_which_band_is_which(
    names: tuple[str, ...], colours: list[str], expected: tuple[int, ...] | None
) -> None:
    assert default_bands(names, colours) == expected
