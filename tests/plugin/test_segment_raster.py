"""`iic:segmentraster`: parameters become a job, the engine's GeoTIFF becomes a layer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from qgis.core import (
    QgsApplication,
    QgsProcessingFeedback,
    QgsProcessingOutputLayerDefinition,
    QgsProcessingUtils,
    QgsProject,
    QgsRasterLayer,
    QgsSettings,
    QgsSingleBandPseudoColorRenderer,
)

from qgis_iic.plugin.algorithms.engine_algorithm import refresh
from qgis_iic.plugin.algorithms.segment_raster import SegmentRaster
from qgis_iic.protocol.job import Job, Source


@pytest.fixture
def algorithm(provider: Any) -> Any:
    return QgsApplication.processingRegistry().createAlgorithmById("iic:segmentraster")


def test_every_parameter_reaches_the_job(provider: Any, context: Any, raster: Any) -> None:
    path = raster()
    parameters = {
        "INPUT": str(path),
        "MODEL": "/models/other.onnx",
        "EXTENT": "500005,500010,2999990,2999995",
        "BANDS": "1 2 3",
        "PROVIDER": "cuda",
        "PRECISION": "fp16",
        "TILE_SIZE": 128,
        "MEMORY": 4000,
        "OUTPUT": "/out/classes.tif",
    }
    algorithm = SegmentRaster()
    algorithm.initAlgorithm()
    assert algorithm.prepareAlgorithm(parameters, context, QgsProcessingFeedback())
    assert replace(algorithm.job(parameters, context, algorithm._readings), id="0") == Job(
        task="segment",
        sources=(Source(path=str(path), bands=(1, 2, 3), window=(10, 10, 10, 10)),),
        model="/models/other.onnx",
        output="/out/classes.tif",
        provider="cuda",
        precision="fp16",
        tile_size=128,
        memory=4000,
        overwrite=True,
        id="0",
    )


def test_an_output_of_another_kind_is_refused(algorithm: Any, context: Any, raster: Any) -> None:
    valid, message = algorithm.checkParameterValues({"INPUT": str(raster()), "OUTPUT": "/out/classes.img"}, context)
    assert not valid
    assert ".tif" in message
    assert context.layersToLoadOnCompletion() == {}


def test_a_temporary_output_is_a_geotiff_whatever_processing_prefers(algorithm: Any, context: Any, raster: Any) -> None:
    key = "qgis/configuration/default-output-raster-ext"
    QgsSettings().setValue(key, "img")
    try:
        assert QgsProcessingUtils.defaultRasterExtension() == "img"
        assert algorithm.checkParameterValues({"INPUT": str(raster()), "OUTPUT": "TEMPORARY_OUTPUT"}, context)[0]
    finally:
        QgsSettings().remove(key)


@pytest.mark.parametrize("name", ["classes.tif", "CLASSES.TIF", "classes.Tiff"])
def test_a_geotiff_may_be_spelled_in_capitals(algorithm: Any, context: Any, raster: Any, name: str) -> None:
    assert algorithm.checkParameterValues({"INPUT": str(raster()), "OUTPUT": f"/out/{name}"}, context) == (True, "")


def test_what_qgis_can_t_load_as_a_raster_ends_the_algorithm(algorithm: Any, context: Any, tmp_path: Path) -> None:
    (tmp_path / "roads.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    feedback = QgsProcessingFeedback(False)
    parameters = {"INPUT": str(tmp_path / "roads.geojson"), "OUTPUT": str(tmp_path / "classes.tif")}
    assert algorithm.run(parameters, context, feedback)[1] is False
    assert "is not a raster" in feedback.textLog()
    assert "Error: source-not-raster" in feedback.textLog()


@pytest.mark.parametrize("spelling", ["/classes.tif", "//classes.tif"])
def test_the_real_engine_writes_a_geotiff_that_is_loaded_with_its_style(
    algorithm: Any, context: Any, sample: Path, tmp_path: Path, spelling: str
) -> None:
    output = f"{tmp_path}{spelling}"  # of Windows, too, QGIS has another than Python
    feedback = QgsProcessingFeedback(False)
    parameters = {
        "INPUT": str(sample / "scene.tif"),
        "MODEL": str(sample / "model.onnx"),
        "OUTPUT": QgsProcessingOutputLayerDefinition(output, QgsProject.instance()),
    }
    results, succeeded = algorithm.run(parameters, context, feedback)
    assert succeeded, feedback.textLog()
    assert results == {"OUTPUT": str(Path(output))}
    assert list(context.layersToLoadOnCompletion()) == [output]
    (layer,) = (layer for layer in context.temporaryLayerStore().mapLayers().values() if layer.source() == output)
    assert isinstance(layer.renderer(), QgsSingleBandPseudoColorRenderer)
    assert (layer.renderer().inputBand(), layer.bandCount()) == (3, 3)


def test_a_raster_that_is_replaced_by_one_of_other_ground_is_shown_there(context: Any, raster: Any) -> None:
    layer = QgsRasterLayer(str(raster()), "classes")
    QgsProject.instance().addMapLayer(layer)
    layer.renderer().setOpacity(0.5)
    raster(geotransform=(600000, 0.5, 0, 3000000, 0, -0.5))
    refresh(layer)
    assert layer.isValid()
    assert layer.extent().xMinimum() == 600000
    assert layer.renderer().opacity() == 0.5
