"""The plugin registers what it offers, and takes all of it back."""

from __future__ import annotations

from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
from qgis.core import Qgis, QgsApplication, QgsNotSupportedException, QgsProcessingParameterDefinition
from qgis.PyQt.QtCore import QEvent
from qgis.PyQt.QtWidgets import QAction, QApplication

import qgis_iic
from qgis_iic.plugin import resource_paths
from qgis_iic.plugin.dialog.extraction_dialog import ExtractionDialog
from qgis_iic.plugin.options_page import OptionsPage
from qgis_iic.plugin.plugin import ACTION_NAME, ADAPT_ACTION_NAME, MATCH_ACTION_NAME


@pytest.fixture
def iface(qgis_iface: Any, qgis_processing: None, qgis_new_project: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The interface of pytest-qgis, with lists of what the plugin adds and has not removed."""
    qgis_iface.left = []
    for add, remove in (
        ("addToolBarIcon", "removeToolBarIcon"),
        ("addPluginToRasterMenu", "removePluginRasterMenu"),
        ("registerOptionsWidgetFactory", "unregisterOptionsWidgetFactory"),
    ):
        monkeypatch.setattr(
            qgis_iface, add, lambda *what, kind=add: qgis_iface.left.append((kind, *what)), raising=False
        )
        monkeypatch.setattr(
            qgis_iface, remove, lambda *what, kind=add: qgis_iface.left.remove((kind, *what)), raising=False
        )
    return qgis_iface


def delete_later() -> None:
    QApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)


def test_without_a_desktop_only_the_provider_is_there(qgis_processing: None) -> None:
    plugin = qgis_iic.classFactory(None)
    plugin.initProcessing()
    provider = QgsApplication.processingRegistry().providerById("iic")
    assert sorted(algorithm.id() for algorithm in provider.algorithms()) == [
        "iic:adaptsegmenter",
        "iic:evaluatebuildings",
        "iic:extractbuildings",
        "iic:finetunesegmenter",
        "iic:matchclusters",
        "iic:quantisesegmenter",
        "iic:segmentraster",
        "iic:trainsegmenter",
    ]
    assert not provider.icon().isNull()
    plugin.unload()
    assert QgsApplication.processingRegistry().providerById("iic") is None


def test_unloading_removes_all_that_loading_added(iface: Any) -> None:
    plugin = qgis_iic.classFactory(iface)
    plugin.initGui()
    assert [kind for kind, *_ in iface.left] == [
        "addToolBarIcon",
        "addPluginToRasterMenu",
        "addPluginToRasterMenu",
        "addPluginToRasterMenu",
        "addPluginToRasterMenu",
        "registerOptionsWidgetFactory",
    ]
    iface.mainWindow().findChild(QAction, ACTION_NAME).trigger()
    assert iface.mainWindow().findChild(ExtractionDialog).isVisible()
    plugin.unload()
    delete_later()
    assert iface.left == []
    assert iface.mainWindow().findChild(QAction, ACTION_NAME) is None
    assert iface.mainWindow().findChild(ExtractionDialog) is None
    assert QgsApplication.processingRegistry().providerById("iic") is None


def test_the_dialog_is_made_once(iface: Any) -> None:
    plugin = qgis_iic.classFactory(iface)
    plugin.initGui()
    action = iface.mainWindow().findChild(QAction, ACTION_NAME)
    action.trigger()
    action.trigger()
    assert len(iface.mainWindow().findChildren(ExtractionDialog)) == 1
    plugin.unload()
    delete_later()


@pytest.mark.parametrize(
    ("action", "algorithm"),
    [(MATCH_ACTION_NAME, "iic:matchclusters"), (ADAPT_ACTION_NAME, "iic:adaptsegmenter")],
)
@pytest.mark.parametrize("results", [{"OUTPUT": "/models/mine.onnx"}, {}, None])
def test_the_model_that_was_made_is_used_next(
    iface: Any, monkeypatch: pytest.MonkeyPatch, results: Any, action: str, algorithm: str
) -> None:
    opened = []
    monkeypatch.setattr("qgis.processing.execAlgorithmDialog", lambda name: opened.append(name) or results)
    plugin = qgis_iic.classFactory(iface)
    plugin.initGui()
    iface.mainWindow().findChild(QAction, action).trigger()
    assert opened == [algorithm]
    iface.mainWindow().findChild(QAction, ACTION_NAME).trigger()
    used = iface.mainWindow().findChild(ExtractionDialog).parameters.model.model()
    assert used == (results["OUTPUT"] if results else resource_paths.default_model())
    plugin.unload()
    delete_later()
    assert iface.mainWindow().findChild(QAction, action) is None


def test_matching_without_processing_says_what_is_missing(iface: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise QgsNotSupportedException("Processing plugin has not been loaded")

    said: list[str] = []
    monkeypatch.setattr("qgis.processing.execAlgorithmDialog", missing)
    monkeypatch.setattr(iface.messageBar(), "pushWarning", lambda title, text: said.append(text))
    plugin = qgis_iic.classFactory(iface)
    plugin.initGui()
    plugin._make_model("iic:matchclusters")
    assert "Enable it" in said[0]
    plugin.unload()
    delete_later()


def test_the_options_page_keeps_the_interpreter(engine: Any) -> None:
    path = engine("")
    page = OptionsPage()
    assert page.python.filePath() == str(path)
    page.show_state()
    assert "3.11.2" in page.state.text()
    page.python.setFilePath("/nowhere/python")
    page.show_state()
    assert "does not run" in page.state.text()
    page.apply()
    assert OptionsPage().python.filePath() == "/nowhere/python"


def test_every_parameter_has_a_help_and_no_algorithm_blocks_the_desktop(provider: Any) -> None:
    for algorithm in provider.algorithms():
        assert algorithm.shortHelpString()
        assert not algorithm.flags() & Qgis.ProcessingAlgorithmFlag.NoThreading
        for parameter in algorithm.parameterDefinitions():
            assert isinstance(parameter, QgsProcessingParameterDefinition)
            assert parameter.help(), f"{algorithm.id()} {parameter.name()}"


def test_metadata_has_all_that_the_plugin_repository_asks_for(project_folder: Path) -> None:
    metadata = ConfigParser()
    metadata.read(project_folder / "metadata.txt", encoding="utf-8")
    general = metadata["general"]
    for key in ("name", "description", "version", "qgisMinimumVersion", "author", "email", "about", "tracker"):
        assert general.get(key), key
    assert general["repository"].startswith("https://")
    assert general["hasProcessingProvider"] == "yes"
    assert (project_folder / general["icon"]).is_file()
