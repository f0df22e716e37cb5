"""Building polygons from very-high-resolution imagery: a QGIS plugin, its engine and the training behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qgis.gui import QgisInterface

    from qgis_iic.plugin.plugin import Plugin

__version__ = "0.1.0"


def classFactory(iface: QgisInterface | None) -> Plugin:
    """Entry point that QGIS calls; `iface` is None in `qgis_process`."""
    from qgis_iic.plugin.plugin import Plugin

    return Plugin(iface)
