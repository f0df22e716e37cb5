"""All that the user sets, as the parameters of `iic:extractbuildings`."""

from __future__ import annotations

import os
from typing import Any, get_args

from qgis.core import QgsProject, QgsReferencedRectangle
from qgis.gui import QgsCollapsibleGroupBox, QgsExtentGroupBox, QgsFileWidget, QgsMapCanvas, QgsScrollArea
from qgis.PyQt.QtWidgets import (
    QCheckBox,
    QComboBox,
    QDoubleSpinBox,
    QFormLayout,
    QGroupBox,
    QLineEdit,
    QSizePolicy,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)

from qgis_iic.plugin import resource_paths, settings
from qgis_iic.plugin.algorithms.engine_algorithm import (
    BANDS,
    EXTENT,
    INPUT,
    MEMORY,
    MODEL,
    OUTPUT,
    PRECISION,
    PROVIDER,
    TILE_SIZE,
)
from qgis_iic.plugin.algorithms.extract_buildings import LAYER_NAME, MAX_HOLE_AREA, MIN_AREA, OVERWRITE, REGULARISE
from qgis_iic.plugin.dialog.layer_list import RasterLayerList
from qgis_iic.plugin.dialog.model_panel import ModelPanel
from qgis_iic.plugin.temporary_files import is_temporary
from qgis_iic.plugin.translation import tr
from qgis_iic.protocol.job import LEAST_MEMORY, Precision, Provider

_MEMORY_STEP = 100


class ParametersPanel(QgsScrollArea):
    """Widgets only; checking and computing is the algorithm's."""

    def __init__(self, project: QgsProject, canvas: QgsMapCanvas, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._canvas = canvas
        self.layers = RasterLayerList(project)
        self.model = ModelPanel()
        self._make_extent()
        self._make_output()
        self._make_limits()
        self._lay_out()
        self.layers.edited.connect(self._show_layer)
        self._restore()

    def parameters(self) -> dict[str, Any]:
        """Values for the algorithm; parameters left empty are not in it."""
        values = {
            INPUT: [layer.id() for layer in self.layers.checked()],
            MODEL: self.model.model(),
            BANDS: self.model.bands(),
            MIN_AREA: self.min_area.value(),
            MAX_HOLE_AREA: self.max_hole_area.value(),
            REGULARISE: self.regularise.isChecked(),
            LAYER_NAME: self.layer_name.text().strip(),
            OVERWRITE: self.overwrite.isChecked(),
            PROVIDER: self.provider.currentText(),
            PRECISION: self.precision.currentText(),
            TILE_SIZE: _chosen(self.tile_size),
            MEMORY: _chosen(self.memory),
            OUTPUT: self.output.filePath().strip(),
            EXTENT: self._extent(),
        }
        return {name: value for name, value in values.items() if value not in (None, "")}

    def remember(self) -> None:
        """Keeps for the next time what does not depend on the project and replaces no data."""
        model = self.model.model()
        settings.remember(
            {
                # The plugin's own lies elsewhere after the next update or in another profile, a temporary one nowhere.
                MODEL: "" if model == resource_paths.default_model() or is_temporary(model) else model,
                MIN_AREA: self.min_area.value(),
                MAX_HOLE_AREA: self.max_hole_area.value(),
                REGULARISE: self.regularise.isChecked(),
                LAYER_NAME: self.layer_name.text(),
                PROVIDER: self.provider.currentText(),
                PRECISION: self.precision.currentText(),
                TILE_SIZE: self.tile_size.value(),
                MEMORY: self.memory.value(),
                OUTPUT: self.output.filePath(),
            }
        )

    def show_map_extent(self) -> None:
        """Takes over the CRS and the extent of the map, unless the user set an extent."""
        if self.extent.isChecked():
            return
        crs = self._canvas.mapSettings().destinationCrs()
        self.extent.setOutputCrs(crs)
        self.extent.setCurrentExtent(self._canvas.extent(), crs)
        self.extent.setOutputExtentFromCurrent()
        self.extent.setChecked(False)

    def _extent(self) -> QgsReferencedRectangle | None:
        if not self.extent.isChecked():
            return None
        return QgsReferencedRectangle(self.extent.outputExtent(), self.extent.outputCrs())

    def _show_layer(self) -> None:
        """Band names come from the first checked layer."""
        self.model.set_layer(next(iter(self.layers.checked()), None))

    def _restore(self) -> None:
        model = settings.last_used(MODEL, "")
        self.model.set_model(model if model and os.path.exists(model) else resource_paths.default_model())  # noqa: PTH110 - pathlib's may raise
        self.min_area.setValue(settings.last_used(MIN_AREA, 10.0))
        self.max_hole_area.setValue(settings.last_used(MAX_HOLE_AREA, 5.0))
        self.regularise.setChecked(settings.last_used(REGULARISE, False))
        self.layer_name.setText(settings.last_used(LAYER_NAME, ""))
        self.provider.setCurrentText(settings.last_used(PROVIDER, "auto"))
        self.precision.setCurrentText(settings.last_used(PRECISION, "auto"))
        self.tile_size.setValue(settings.last_used(TILE_SIZE, 0))
        self.memory.setValue(settings.last_used(MEMORY, 0))
        self.output.setFilePath(settings.last_used(OUTPUT, ""))

    def _make_extent(self) -> None:
        self.extent = QgsExtentGroupBox()
        self.extent.setTitleBase(tr("Only a part of the rasters"))
        self.extent.setMapCanvas(self._canvas)
        self.extent.setCheckable(True)
        self.extent.setChecked(False)
        self.extent.setCollapsed(True)
        self._canvas.extentsChanged.connect(self.show_map_extent)
        self._canvas.destinationCrsChanged.connect(self.show_map_extent)

    def _make_output(self) -> None:
        self.output = QgsFileWidget()
        self.output.setStorageMode(QgsFileWidget.StorageMode.SaveFile)
        self.output.setFilter(tr("GeoPackage files (*.gpkg)"))
        self.output.setDialogTitle(tr("GeoPackage for the buildings"))
        self.output.setConfirmOverwrite(False)
        self.layer_name = QLineEdit()
        self.layer_name.setPlaceholderText(tr("Name of the raster"))
        self.overwrite = QCheckBox(tr("Replace layers of the same name"))

    def _make_limits(self) -> None:
        self.min_area = _area_box(10.0)
        self.regularise = QCheckBox(tr("Straighten outlines"))
        self.max_hole_area = _area_box(5.0)
        self.provider = QComboBox()
        self.provider.addItems(get_args(Provider))
        self.precision = QComboBox()
        self.precision.addItems(get_args(Precision))
        self.tile_size = _optional_number(0, 8192, tr(" px"))
        self.memory = _optional_number(LEAST_MEMORY - _MEMORY_STEP, 1_000_000, tr(" MB"))
        self.memory.setSingleStep(_MEMORY_STEP)

    def _lay_out(self) -> None:
        content = QWidget()
        layout = QVBoxLayout(content)
        layout.addWidget(self._imagery_group())
        layout.addWidget(self.model)
        layout.addWidget(self._output_group())
        layout.addWidget(self._advanced_group())
        layout.addStretch()
        # Never squeezed below what its texts need; the rest scrolls.
        content.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Minimum)
        self.setWidget(content)
        self.setWidgetResizable(True)
        self.setFrameShape(QgsScrollArea.Shape.NoFrame)

    def _imagery_group(self) -> QGroupBox:
        self.layers.setFixedHeight(90)
        group = QGroupBox(tr("Raster layers"))
        layout = QVBoxLayout(group)
        layout.addWidget(self.layers)
        layout.addWidget(self.extent)
        return group

    def _output_group(self) -> QGroupBox:
        group = QGroupBox(tr("Buildings"))
        form = QFormLayout(group)
        form.addRow(tr("Minimum area"), self.min_area)
        form.addRow("", self.regularise)
        form.addRow(tr("GeoPackage"), self.output)
        form.addRow(tr("Layer name"), self.layer_name)
        form.addRow("", self.overwrite)
        return group

    def _advanced_group(self) -> QGroupBox:
        group = QgsCollapsibleGroupBox(tr("Advanced"))
        form = QFormLayout(group)
        form.addRow(tr("Fill holes up to"), self.max_hole_area)
        form.addRow(tr("Device"), self.provider)
        form.addRow(tr("Precision"), self.precision)
        form.addRow(tr("Tile size"), self.tile_size)
        form.addRow(tr("Memory"), self.memory)
        group.setCollapsed(True)
        return group


def _optional_number(nothing: int, largest: int, unit: str) -> QSpinBox:
    """The least value, `nothing`, leaves the choice to the engine."""
    box = QSpinBox()
    box.setRange(nothing, largest)
    box.setSuffix(unit)
    box.setSpecialValueText(tr("Chosen for you"))
    return box


def _chosen(box: QSpinBox) -> int | None:
    return None if box.value() == box.minimum() else box.value()


def _area_box(value: float) -> QDoubleSpinBox:
    box = QDoubleSpinBox()
    box.setRange(0.0, 1_000_000.0)
    box.setDecimals(1)
    box.setSuffix(tr(" m²"))
    box.setValue(value)
    return box
