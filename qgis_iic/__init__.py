"""Building polygons from very-high-resolution imagery: a QGIS plugin, its engine and the training behind it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qgis.gui import QgisInterface

    from qgis_iic.plugin.plugin import Plugin

__version__ = "0.1.0"

# ONNX Runtime 1.29 and later reports its use to Microsoft, with the names of model files, from when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def classFactory(iface: QgisInterface | None) -> Plugin:
    """Entry point that QGIS calls; `iface` is None in `qgis_process`."""
    from qgis_iic.plugin.plugin import Plugin

    return Plugin(iface)
