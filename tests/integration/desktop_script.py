"""Run by the real QGIS desktop (`qgis --code`): opens the dialog as a user does, runs it, takes pictures, quits.

Expects the environment variables QGIS_IIC_TEST_SAMPLE (folder with scene.tif and model.onnx) and QGIS_IIC_TEST_OUTPUT
(folder for buildings.gpkg, the pictures, and outcome.json).
"""

import json
import os
import traceback
from pathlib import Path

from qgis.core import QgsProject, QgsRasterLayer
from qgis.gui import QgsProcessingAlgorithmDialogBase
from qgis.PyQt.QtCore import QTimer
from qgis.PyQt.QtWidgets import QAction, QApplication, QDialog
from qgis.utils import iface

SAMPLE = Path(os.environ["QGIS_IIC_TEST_SAMPLE"])
OUTPUT = Path(os.environ["QGIS_IIC_TEST_OUTPUT"])
POLL = 200
"""Milliseconds."""


def guarded(step):
    """A step that ends QGIS when it fails, instead of leaving it open for ever."""

    def run():
        try:
            step()
        except Exception:
            end({"failure": traceback.format_exc()})

    return run


def after(milliseconds, step):
    QTimer.singleShot(milliseconds, guarded(step))


def end(outcome):
    (OUTPUT / "outcome.json").write_text(json.dumps(outcome))
    QgsProject.instance().clear()  # or QGIS asks what to do about layers in a temporary folder
    iface.actionExit().trigger()


def dialog():
    return iface.mainWindow().findChild(QDialog, "iicExtractionDialog")


def open_dialog():
    iface.mainWindow().resize(1300, 850)
    layer = QgsRasterLayer(str(SAMPLE / "scene.tif"), "scene")
    QgsProject.instance().addMapLayer(layer)
    iface.setActiveLayer(layer)
    iface.zoomToActiveLayer()
    button = iface.mainWindow().findChild(QAction, "iicExtractBuildings")
    button.trigger()
    after(POLL, start_run)


def start_run():
    panel = dialog().parameters
    panel.model.file.setFilePath(str(SAMPLE / "model.onnx"))
    panel.output.setFilePath(str(OUTPUT / "buildings.gpkg"))
    after(POLL, press_run)


def press_run():
    dialog().grab().save(str(OUTPUT / "dialog.png"))
    dialog().run_button.click()
    after(POLL, await_result)


def await_result():
    if not dialog().run_button.isEnabled():
        after(POLL, await_result)
        return
    dialog().grab().save(str(OUTPUT / "log.png"))
    dialog().close()
    after(2000, take_picture)


def take_picture():
    iface.mainWindow().grab().save(str(OUTPUT / "desktop.png"))
    root = QgsProject.instance().layerTreeRoot()
    groups = {group.name(): [node.name() for node in group.findLayers()] for group in root.findGroups()}
    outcome = {"groups": groups, "log": dialog().log.toPlainText()}
    after(1000, lambda: look_at_matching(outcome))
    iface.mainWindow().findChild(QAction, "iicMatchClusters").trigger()  # returns once the dialog is closed
    end(outcome)


def look_at_matching(outcome):
    """It is Processing's own dialog, with whatever QGIS puts into it."""
    widgets = QApplication.topLevelWidgets()
    (matching,) = (widget for widget in widgets if isinstance(widget, QgsProcessingAlgorithmDialogBase))
    matching.grab().save(str(OUTPUT / "matching.png"))
    outcome["matching"] = matching.algorithm().id() if matching.isVisible() else ""
    matching.close()


after(1000, open_dialog)
