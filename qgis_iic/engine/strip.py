"""The answer for some rows of a raster, on its way from the network to what is made of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qgis_iic.engine.tiling import Window

Planes = NDArray[np.uint8]


@dataclass(frozen=True)
class Strip:
    """The answer for one row of tiles, as wide as the window that was asked for.

    Attributes:
        window: in working pixels.
        planes: uint8 [3, height, width]: cluster, class, building probability (0 to 254); 255 where there is no data.
    """

    window: Window
    planes: Planes
