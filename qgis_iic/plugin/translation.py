"""Texts for the user, in the language of QGIS."""

from __future__ import annotations

from qgis.PyQt.QtCore import QCoreApplication


def tr(text: str) -> str:
    """`text` in the user's language, or as it is where there is no translation."""
    return QCoreApplication.translate("iic", text)
