"""What the plugin remembers from one start of QGIS to the next, in QGIS's own settings below `iic/`."""

from __future__ import annotations

from typing import Any

from qgis.core import QgsSettings

ENGINE_PYTHON = "iic/engine_python"
_DIALOG = "iic/dialog/"


def engine_python() -> str:
    """Path of the engine's interpreter as the user chose it, empty for the automatic choice."""
    return QgsSettings().value(ENGINE_PYTHON, "", str)


def set_engine_python(path: str) -> None:
    QgsSettings().setValue(ENGINE_PYTHON, path)


def last_used(name: str, default: Any) -> Any:
    """The value that the dialog had for `name` when it last ran, of the type of `default`, or that if it is damaged."""
    try:
        return QgsSettings().value(_DIALOG + name, default, type(default))
    except TypeError:
        return default


def remember(values: dict[str, Any]) -> None:
    """Keeps the values of the dialog for the next time, by their names."""
    for name, value in values.items():
        QgsSettings().setValue(_DIALOG + name, value)
