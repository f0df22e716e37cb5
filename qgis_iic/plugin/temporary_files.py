"""Files among Processing's temporary ones, which go when QGIS ends."""

from __future__ import annotations

import re
from pathlib import Path

from qgis.core import QgsProcessingUtils


def temporary_file(layer: str, suffix: str) -> str:
    """Path of a file that is not there yet, named after a layer: errors and the records of models say its name.

    It lies in a folder of its own.
    """
    name = re.sub(r"[^\w -]", "_", layer)[:80].strip() or "layer"
    return QgsProcessingUtils.generateTempFilename(name + suffix)


def is_temporary(path: str) -> bool:
    """Whether a file goes when QGIS ends."""
    return Path(QgsProcessingUtils.tempFolder()).absolute() in Path(path).absolute().parents
