"""Which band of a raster is which band of a model, where nobody says so."""

from __future__ import annotations

from collections.abc import Sequence

ALPHA = "alpha"
_SAYS_NOTHING = ("undefined", "gray")
"""What GDAL calls a band of which it does not know what it shows; a raster's first band is often gray without being."""


def default_bands(names: Sequence[str], colours: Sequence[str]) -> tuple[int, ...] | None:
    """Band numbers, from 1, for a model that takes the bands of these names; None where they can't be told.

    What the raster says of its bands decides. Where it says nothing of them, a raster with just as many bands, alpha
    not counted, is taken in file order; where it leaves a single one open, that one is the missing band.

    Args:
        names: such as `red` and `nir`.
        colours: of each band of the raster, as GDAL names its colour interpretation, in lower case.
    """
    bands = [number for number, colour in enumerate(colours, start=1) if colour != ALPHA]
    by_colour = {colours[number - 1]: number for number in bands}
    in_order = all(colours[number - 1] in (name, *_SAYS_NOTHING) for name, number in zip(names, bands))
    if len(bands) == len(names) and in_order:
        return tuple(bands)
    missing = [name for name in names if name not in by_colour]
    open_bands = [number for number in bands if colours[number - 1] in _SAYS_NOTHING]
    if len(missing) == len(open_bands) == 1:
        by_colour[missing[0]] = open_bands[0]
    elif missing:
        return None
    return tuple(by_colour[name] for name in names)
