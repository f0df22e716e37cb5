"""Files that QGIS writes for the engine to read."""

from __future__ import annotations

import re

from qgis.core import QgsProcessingUtils


def temporary_file(layer: str, suffix: str) -> str:
    """Path of a file that is not there yet, named after a layer: errors and the records of models say its name.

    It lies in a folder of its own among Processing's temporary ones, which go when QGIS ends.
    """
    name = re.sub(r"[^\w -]", "_", layer)[:80].strip() or "layer"
    return QgsProcessingUtils.generateTempFilename(name + suffix)
