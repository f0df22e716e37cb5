"""The dialog's widgets become parameters, and a run's messages, progress and layers come back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from osgeo import gdal
from qgis.core import (
    Qgis,
    QgsCoordinateReferenceSystem,
    QgsFeature,
    QgsProject,
    QgsRasterLayer,
    QgsRectangle,
    QgsVectorLayer,
)
from qgis.PyQt.QtCore import QEvent
from qgis.PyQt.QtWidgets import QApplication

from qgis_iic.plugin import settings
from qgis_iic.plugin.dialog.extraction_dialog import ExtractionDialog
from qgis_iic.plugin.dialog.extraction_run import ExtractionRun
from qgis_iic.plugin.dialog.model_panel import ModelPanel
from qgis_iic.plugin.dialog.parameters_panel import ParametersPanel
from qgis_iic.plugin.model_file import read_metadata
from qgis_iic.plugin.resource_paths import default_model
from qgis_iic.plugin.temporary_files import temporary_file


@pytest.fixture
def layers(qgis_new_project: None, raster: Any) -> list[QgsRasterLayer]:
    layers = [QgsRasterLayer(str(raster(f"{name}.tif")), name) for name in ("a", "b")]
    QgsProject.instance().addMapLayers(layers)
    return layers


@pytest.fixture
def dialog(layers: list[QgsRasterLayer], qgis_iface: Any, provider: Any) -> Iterator[ExtractionDialog]:
    dialog = ExtractionDialog(qgis_iface)
    dialog.show()
    yield dialog
    dialog.discard()
    QApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)


@pytest.fixture
def ready(dialog: ExtractionDialog, layers: list[QgsRasterLayer], tmp_path: Path) -> ExtractionDialog:
    """All that a run needs is filled in."""
    dialog.parameters.layers.check(layers[:1])
    dialog.parameters.output.setFilePath(str(tmp_path / "out.gpkg"))
    return dialog


def texts(bar: Any) -> list[str]:
    return [item.text() for item in bar.items()]


def finished(dialog: ExtractionDialog) -> Callable[[], bool]:
    return dialog.run_button.isEnabled


def set_extent(dialog: ExtractionDialog, rectangle: QgsRectangle) -> None:
    crs = QgsCoordinateReferenceSystem("EPSG:32645")
    dialog.parameters.extent.setOutputCrs(crs)
    dialog.parameters.extent.setOutputExtentFromUser(rectangle, crs)
    dialog.parameters.extent.setChecked(True)


def test_untouched_widgets_become_the_defaults_of_the_algorithm(
    ready: ExtractionDialog, provider: Any, layers: Any
) -> None:
    parameters = ready.parameters.parameters()
    definitions = {each.name(): each for each in provider.algorithm("extractbuildings").parameterDefinitions()}
    assert parameters.pop("INPUT") == [layers[0].id()]
    assert parameters.pop("OUTPUT").endswith("out.gpkg")
    assert parameters == {name: definitions[name].defaultValue() for name in parameters}
    assert parameters.keys() == {
        "MODEL",
        "MIN_AREA",
        "MAX_HOLE_AREA",
        "REGULARISE",
        "OVERWRITE",
        "PROVIDER",
        "PRECISION",
    }


def test_every_widget_reaches_its_parameter(ready: ExtractionDialog, layers: Any, model: Path) -> None:
    panel = ready.parameters
    panel.layers.check(layers)
    panel.model.file.setFilePath(str(model))
    panel.model.combos[0].setBand(3)
    panel.min_area.setValue(20)
    panel.max_hole_area.setValue(1)
    panel.regularise.setChecked(True)
    panel.layer_name.setText(" roofs ")
    panel.overwrite.setChecked(True)
    panel.provider.setCurrentText("cpu")
    panel.precision.setCurrentText("int8")
    panel.tile_size.setValue(256)
    panel.memory.setValue(2000)
    set_extent(ready, QgsRectangle(1, 2, 3, 4))
    parameters = panel.parameters()
    extent = parameters.pop("EXTENT")
    assert (QgsRectangle(extent), extent.crs().authid()) == (QgsRectangle(1, 2, 3, 4), "EPSG:32645")
    assert parameters == {
        "INPUT": [layer.id() for layer in layers],
        "MODEL": str(model),
        "BANDS": "3,2,3",
        "MIN_AREA": 20.0,
        "MAX_HOLE_AREA": 1.0,
        "REGULARISE": True,
        "LAYER_NAME": "roofs",
        "OVERWRITE": True,
        "PROVIDER": "cpu",
        "PRECISION": "int8",
        "TILE_SIZE": 256,
        "MEMORY": 2000,
        "OUTPUT": panel.output.filePath(),
    }


GREY, RED, GREEN, BLUE, ALPHA = (
    gdal.GCI_GrayIndex,
    gdal.GCI_RedBand,
    gdal.GCI_GreenBand,
    gdal.GCI_BlueBand,
    gdal.GCI_AlphaBand,
)
OPEN = -1


@pytest.fixture
def show_bands(dialog: ExtractionDialog, model: Path, tmp_path: Path) -> Callable[[list[int]], ModelPanel]:
    """Checks a raster whose bands have the given colour interpretations, with a model of red, green and blue."""

    def show(colours: list[int]) -> ModelPanel:
        path = str(tmp_path / "coloured.tif")
        dataset = gdal.GetDriverByName("GTiff").Create(path, 4, 4, len(colours), options=["PHOTOMETRIC=MINISBLACK"])
        for band, colour in enumerate(colours, start=1):
            dataset.GetRasterBand(band).SetColorInterpretation(colour)
        dataset = None
        layer = QgsRasterLayer(path, "coloured")
        QgsProject.instance().addMapLayer(layer)
        dialog.parameters.model.file.setFilePath(str(model))
        dialog.parameters.layers.check([layer])
        return dialog.parameters.model

    return show


@pytest.mark.parametrize(
    ("colours", "shown"),
    [
        ([BLUE, GREEN, RED], [3, 2, 1]),
        ([GREY, RED, GREEN, BLUE], [2, 3, 4]),  # more bands than the model takes
        ([GREY, GREY, GREY], [1, 2, 3]),  # file order, as no colours are named
        ([ALPHA, RED, GREY, GREY], [2, 3, 4]),  # file order, as one colour is not enough
        ([GREY, GREY, GREY, GREY], [OPEN, OPEN, OPEN]),
        ([GREY], [OPEN, OPEN, OPEN]),
    ],
)
def test_the_engine_s_choice_of_bands_is_shown_and_left_to_it(
    show_bands: Any, colours: list[int], shown: list[int]
) -> None:
    panel = show_bands(colours)
    assert [combo.currentBand() for combo in panel.combos] == shown
    assert panel.bands() == ""


def test_bands_that_the_user_changed_are_all_named_until_changed_back(show_bands: Any) -> None:
    panel = show_bands([BLUE, GREEN, RED])
    panel.combos[0].setBand(1)
    assert panel.bands() == "1,2,1"
    panel.combos[0].setBand(3)
    assert panel.bands() == ""


def test_bands_that_are_chosen_by_halves_are_asked_for(ready: ExtractionDialog, show_bands: Any) -> None:
    show_bands([GREY]).combos[0].setBand(1)
    ready.start()
    assert "such as 1,2,3" in texts(ready.messages)[0]


@pytest.mark.parametrize(("decision", "asks"), [("clusters", True), ("probability", False)])
def test_only_a_model_that_decides_by_its_clusters_asks_for_matching(
    dialog: ExtractionDialog, model: Path, monkeypatch: pytest.MonkeyPatch, decision: str, asks: bool
) -> None:
    metadata = replace(read_metadata(str(model)), building_clusters=None, decision=decision)  # type: ignore[arg-type]
    monkeypatch.setattr("qgis_iic.plugin.dialog.model_panel.read_metadata", lambda path: metadata)
    dialog.parameters.model.set_model(str(model))
    assert ("Match clusters" in dialog.parameters.model.facts.text()) == asks


def test_the_model_says_what_it_is_or_what_is_wrong(dialog: ExtractionDialog, model: Path, tmp_path: Path) -> None:
    panel = dialog.parameters.model
    panel.file.setFilePath(str(model))
    assert panel.facts.text() == "town: red, green, blue; made for 0.3 m to 0.6 m a pixel."
    panel.file.setFilePath(str(tmp_path / "missing.onnx"))
    assert "can't be read" in panel.facts.text()
    assert panel.bands() == ""


def test_layers_that_leave_the_project_leave_the_list(ready: ExtractionDialog, layers: Any) -> None:
    QgsProject.instance().removeMapLayer(layers[0].id())
    assert ready.parameters.layers.checked() == []
    assert ready.parameters.model.combos == []


def test_what_is_missing_is_asked_for(dialog: ExtractionDialog, layers: Any) -> None:
    dialog.start()
    assert "Check at least one" in texts(dialog.messages)[0]
    dialog.parameters.layers.check(layers)
    dialog.start()
    assert "Name the GeoPackage" in texts(dialog.messages)[0]
    dialog.parameters.output.setFilePath("/out/town.shp")
    dialog.start()
    assert ".gpkg" in texts(dialog.messages)[0]
    dialog.parameters.output.setFilePath("town.gpkg")  # QGIS's own folder is nowhere that a user looks
    dialog.start()
    assert "Name the folder, too" in texts(dialog.messages)[0]
    assert dialog.run_button.isEnabled()


def test_only_a_part_means_the_part_that_the_map_shows_when_it_is_ticked(
    ready: ExtractionDialog, qgis_iface: Any
) -> None:
    canvas = qgis_iface.mapCanvas()
    canvas.setDestinationCrs(QgsCoordinateReferenceSystem("EPSG:32645"))
    canvas.setExtent(QgsRectangle(510000, 2999000, 510100, 2999100))
    panel = ready.parameters
    panel.extent.setChecked(True)
    assert canvas.extent() == QgsRectangle(panel.parameters()["EXTENT"])
    canvas.setExtent(QgsRectangle(520000, 2999000, 520100, 2999100))
    assert canvas.extent() != QgsRectangle(panel.parameters()["EXTENT"])


def test_the_plugin_s_own_model_is_not_remembered_by_its_path(
    ready: ExtractionDialog, model: Path, qgis_iface: Any
) -> None:
    ready.parameters.remember()
    assert settings.last_used("MODEL", "?") == ""
    ready.parameters.model.set_model(str(model))
    ready.parameters.remember()
    again = ParametersPanel(QgsProject.instance(), qgis_iface.mapCanvas())
    assert again.model.model() == str(model)
    model.unlink()
    assert ParametersPanel(QgsProject.instance(), qgis_iface.mapCanvas()).model.model() == default_model()
    ready.parameters.model.set_model(temporary_file("matched", ".onnx"))
    ready.parameters.remember()
    assert settings.last_used("MODEL", "?") == ""


def test_values_are_remembered_from_run_to_run(
    ready: ExtractionDialog, engine: Any, wait: Any, qgis_iface: Any
) -> None:
    engine("finish()")
    ready.parameters.min_area.setValue(33)
    ready.parameters.memory.setValue(2000)
    ready.parameters.overwrite.setChecked(True)
    ready.start()
    wait(finished(ready))
    again = ParametersPanel(QgsProject.instance(), qgis_iface.mapCanvas())
    assert again.min_area.value() == 33.0
    assert again.memory.value() == 2000
    assert not again.overwrite.isChecked()  # replacing data is decided anew in each session
    assert again.output.filePath() == ready.parameters.output.filePath()


def test_a_remembered_value_that_is_damaged_is_the_default(ready: ExtractionDialog, qgis_iface: Any) -> None:
    settings.remember({"MIN_AREA": "10,5", "MEMORY": "much"})
    again = ParametersPanel(QgsProject.instance(), qgis_iface.mapCanvas())
    assert again.min_area.value() == 10.0


def test_where_nothing_was_found_the_log_says_what_helps(ready: ExtractionDialog, engine: Any, wait: Any) -> None:
    engine(
        """open(job["output"], "a").close()
layer = {"source": job["sources"][0]["path"], "name": "a", "features": 0, "area": 0}
say("result", output=job["output"], layers=[layer], seconds={})"""
    )
    ready.start()
    wait(finished(ready))
    assert "0 buildings" in texts(ready.messages)[0]
    assert "Raster > Building extraction has ways" in ready.log.toPlainText()


def test_a_run_puts_styled_layers_into_a_group(
    dialog: ExtractionDialog, wait: Any, sample: Path, tmp_path: Path
) -> None:
    layers = [QgsRasterLayer(str(sample / f"{name}.tif"), name) for name in ("scene", "scene2")]
    QgsProject.instance().addMapLayers(layers)
    dialog.parameters.layers.check(layers)
    dialog.parameters.model.file.setFilePath(str(sample / "model.onnx"))
    dialog.parameters.output.setFilePath(str(tmp_path / "out.gpkg"))
    dialog.start()
    assert not dialog.run_button.isEnabled()
    wait(finished(dialog), 30)
    assert "10 buildings" in texts(dialog.messages)[0]
    assert dialog.progress.value() == 100
    (group,) = QgsProject.instance().layerTreeRoot().findGroups()
    assert group.name().startswith("Buildings 20")
    found = [node.layer() for node in group.findLayers()]
    assert [layer.name() for layer in found] == ["scene", "scene2"]
    assert [layer.featureCount() for layer in found] == [5, 5]
    assert {layer.renderer().symbol().color().name() for layer in found} == {"#e2572b"}


def extracted(dialog: ExtractionDialog, wait: Any, sample: Path, tmp_path: Path) -> QgsVectorLayer:
    """The layer of a run over the sample, as the project shows it."""
    layer = QgsRasterLayer(str(sample / "scene.tif"), "scene")
    QgsProject.instance().addMapLayer(layer)
    dialog.parameters.layers.check([layer])
    dialog.parameters.model.file.setFilePath(str(sample / "model.onnx"))
    dialog.parameters.output.setFilePath(str(tmp_path / "out.gpkg"))
    dialog.start()
    wait(finished(dialog), 30)
    (shown,) = (node.layer() for node in QgsProject.instance().layerTreeRoot().findGroups()[0].findLayers())
    return shown


def test_a_layer_that_is_replaced_is_refreshed_where_it_is(
    dialog: ExtractionDialog, wait: Any, sample: Path, tmp_path: Path
) -> None:
    shown = extracted(dialog, wait, sample, tmp_path)
    assert shown.featureCount() == 5
    dialog.parameters.overwrite.setChecked(True)
    dialog.parameters.min_area.setValue(140)
    dialog.start()
    wait(finished(dialog), 30)
    assert len(QgsProject.instance().layerTreeRoot().findGroups()) == 1
    assert shown.featureCount() == len(list(shown.getFeatures())) < 5


def test_no_layer_is_replaced_under_edits(dialog: ExtractionDialog, wait: Any, sample: Path, tmp_path: Path) -> None:
    shown = extracted(dialog, wait, sample, tmp_path)
    shown.startEditing()
    shown.deleteFeature(next(shown.getFeatures()).id())
    dialog.parameters.overwrite.setChecked(True)
    dialog.start()
    wait(finished(dialog), 30)
    assert "edits that are not saved" in texts(dialog.messages)[0]
    assert shown.commitChanges()
    assert shown.featureCount() == 4
    dialog.start()
    wait(finished(dialog), 30)
    assert shown.featureCount() == 5


def test_another_spelling_of_a_layer_is_the_same_layer(
    dialog: ExtractionDialog, wait: Any, sample: Path, tmp_path: Path
) -> None:
    shown = extracted(dialog, wait, sample, tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    dialog.parameters.output.setFilePath(str(tmp_path / "link" / "out.gpkg"))
    dialog.parameters.layer_name.setText("SCENE")
    dialog.parameters.overwrite.setChecked(True)
    shown.startEditing()
    shown.deleteFeature(next(shown.getFeatures()).id())
    dialog.start()
    wait(finished(dialog), 30)
    assert "edits that are not saved" in texts(dialog.messages)[0]
    assert shown.rollBack()
    dialog.parameters.min_area.setValue(140)
    dialog.start()
    wait(finished(dialog), 30)
    assert len(QgsProject.instance().layerTreeRoot().findGroups()) == 1
    assert len(list(shown.getFeatures())) < 5


@pytest.fixture
def still_map(qgis_iface: Any) -> Iterator[None]:
    """Nothing is drawn while the test runs, nor when its layers leave the project.

    QGIS counts a layer whose file comes later under two names in its pool of connections, and so may
    close the connection of another layer of that file that is being drawn: a crash, in QGIS itself.
    """
    qgis_iface.mapCanvas().setRenderFlag(False)
    yield
    QgsProject.instance().removeAllMapLayers()
    qgis_iface.mapCanvas().setRenderFlag(True)


@pytest.mark.parametrize("kind", ["dead", "filtered"])
def test_a_layer_that_does_not_show_the_result_does_not_stand_for_it(
    dialog: ExtractionDialog, still_map: None, wait: Any, sample: Path, tmp_path: Path, kind: str
) -> None:
    if kind == "filtered":
        shown = extracted(dialog, wait, sample, tmp_path)
        shown.setSubsetString("fid > 100")
        dialog.parameters.overwrite.setChecked(True)
        dialog.start()
        wait(finished(dialog), 30)
    else:
        dead = QgsVectorLayer(f"{tmp_path / 'out.gpkg'}|layername=scene", "scene", "ogr")
        QgsProject.instance().addMapLayer(dead)
        extracted(dialog, wait, sample, tmp_path)
    found = [layer for layer in QgsProject.instance().mapLayers().values() if isinstance(layer, QgsVectorLayer)]
    assert sorted(layer.featureCount() for layer in found if layer.isValid())[-1] == 5


def test_edits_begun_during_a_run_do_not_end_up_in_other_buildings(
    dialog: ExtractionDialog, wait: Any, sample: Path, tmp_path: Path
) -> None:
    shown = extracted(dialog, wait, sample, tmp_path)
    other = QgsVectorLayer("Point?crs=EPSG:4326", "other", "memory")
    QgsProject.instance().addMapLayer(other)
    other.startEditing()
    other.addFeature(QgsFeature(other.fields()))
    dialog.parameters.overwrite.setChecked(True)
    dialog.parameters.min_area.setValue(140)
    dialog.start()
    shown.startEditing()
    shown.deleteFeature(next(shown.getFeatures()).id())
    wait(finished(dialog), 30)
    assert "that were not saved are gone" in dialog.log.toPlainText()
    assert not shown.isModified()
    assert 0 < len(list(shown.getFeatures())) < 5
    assert other.isModified()


def test_a_layer_whose_file_is_gone_is_named(ready: ExtractionDialog, tmp_path: Path) -> None:
    lost = QgsRasterLayer(str(tmp_path / "nowhere.tif"), "lost")
    QgsProject.instance().addMapLayer(lost)
    ready.parameters.layers.check([*ready.parameters.layers.checked(), lost])
    ready.start()
    assert texts(ready.messages)[0].startswith("lost can't be read")


def test_an_error_appears_in_the_log_and_in_the_message_bar(ready: ExtractionDialog, engine: Any, wait: Any) -> None:
    engine('start()\nsay("error", code="disk-full", message="Make <room>.")\nsys.exit(43)')
    ready.start()
    wait(finished(ready))
    assert "Make <room>." in ready.log.toPlainText()
    assert texts(ready.messages) == ["Make <room>."]
    assert ready.messages.currentItem().level() == Qgis.MessageLevel.Critical


def test_a_missing_environment_appears_with_its_remedy(ready: ExtractionDialog, engine: Any, wait: Any) -> None:
    engine("").unlink()
    ready.start()
    wait(finished(ready))
    assert "Options" in texts(ready.messages)[0]


def test_an_extent_beside_the_raster_ends_the_run_with_its_message(
    ready: ExtractionDialog, engine: Any, wait: Any
) -> None:
    engine("finish()")
    set_extent(ready, QgsRectangle(1, 2, 3, 4))
    ready.start()
    wait(finished(ready))
    assert "nothing in common with a" in texts(ready.messages)[0]


def test_cancelling_ends_the_run_within_a_second(
    ready: ExtractionDialog, engine: Any, wait: Any, tmp_path: Path
) -> None:
    engine("start()\ntime.sleep(30)")
    ready.start()
    wait(lambda: "CPUExecutionProvider" in ready.log.toPlainText())
    begin = time.monotonic()
    ready.cancel_button.click()
    wait(finished(ready))
    assert time.monotonic() - begin < 1.5
    assert "cancelled" in texts(ready.messages)[0]
    assert not (tmp_path / "out.gpkg").exists()
    assert QgsProject.instance().layerTreeRoot().findGroups() == []


def test_a_result_that_comes_before_the_cancelling_is_kept(
    ready: ExtractionDialog, engine: Any, wait: Any, tmp_path: Path
) -> None:
    written = gdal.GetDriverByName("GPKG").Create(str(tmp_path / "written.gpkg"), 0, 0, 0)
    written.CreateLayer("a")
    written = None
    engine(
        f'import shutil\nstart()\nshutil.copy({str(tmp_path / "written.gpkg")!r}, job["output"])\nfinish()\n'
        'say("warning", message="All is written.")\ntime.sleep(1)'
    )
    ready.start()
    wait(lambda: "All is written." in ready.log.toPlainText())
    ready.cancel_button.click()
    wait(finished(ready))
    assert "3 buildings" in texts(ready.messages)[0]
    (group,) = QgsProject.instance().layerTreeRoot().findGroups()
    assert [node.name() for node in group.findLayers()] == ["a"]


def test_closing_the_dialog_leaves_the_run_to_qgis(
    ready: ExtractionDialog, engine: Any, wait: Any, qgis_iface: Any
) -> None:
    engine("start()\ntime.sleep(0.5)\nfinish()")
    ready.start()
    ready.close()
    assert not ready.isVisible()
    assert "in the background" in qgis_iface.messageBar().get_messages(Qgis.MessageLevel.Info)[-1]
    wait(finished(ready))
    assert "3 buildings" in qgis_iface.messageBar().get_messages(Qgis.MessageLevel.Success)[-1]


def test_discarding_the_dialog_ends_the_run(ready: ExtractionDialog, engine: Any, wait: Any) -> None:
    engine("start()\ntime.sleep(30)")
    ready.start()
    wait(lambda: "CPUExecutionProvider" in ready.log.toPlainText())
    begin = time.monotonic()
    ready.discard()
    assert time.monotonic() - begin < 1.5
    wait(lambda: not ExtractionRun._alive)
