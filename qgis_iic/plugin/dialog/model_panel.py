"""The model, what it says of itself, and which band of the raster is which band of the model."""

from __future__ import annotations

from qgis.core import Qgis, QgsRasterLayer
from qgis.gui import QgsFileWidget, QgsRasterBandComboBox
from qgis.PyQt.QtCore import QSignalBlocker
from qgis.PyQt.QtWidgets import QFormLayout, QGroupBox, QLabel, QWidget

from qgis_iic.plugin import resource_paths
from qgis_iic.plugin.model_file import read_metadata
from qgis_iic.plugin.translation import tr
from qgis_iic.protocol.bands import default_bands
from qgis_iic.protocol.errors import IicError
from qgis_iic.protocol.model_metadata import ModelMetadata

_FIXED_ROWS = 2
_OPEN = -1
"""What a combo box without a choice gives as its band; the algorithm refuses it as a band number."""


class ModelPanel(QGroupBox):
    """The bands are offered for the raster that `set_layer` names, a file; services have no bands to choose from."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(tr("Model"), parent)
        self.file = QgsFileWidget()
        self.file.setDialogTitle(tr("Model"))
        self.file.setFilter(tr("ONNX models (*.onnx)"))
        self.facts = QLabel()
        self.facts.setWordWrap(True)
        self.combos: list[QgsRasterBandComboBox] = []
        self._default_bands: list[int] = []
        self._layer: QgsRasterLayer | None = None
        self._form = QFormLayout(self)
        self._form.addRow(tr("Model file"), self.file)
        self._form.addRow("", self.facts)
        self.file.fileChanged.connect(self._show_model)
        self.set_model(resource_paths.default_model())

    def model(self) -> str:
        return self.file.filePath()

    def set_model(self, path: str) -> None:
        with QSignalBlocker(self.file):
            self.file.setFilePath(path)
        self._show_model()

    def bands(self) -> str:
        """The band numbers in the model's order, such as `1,2,3`.

        Empty where the user changed none of them, for then the engine chooses in each raster by itself.
        """
        bands = [combo.currentBand() for combo in self.combos]
        return "" if bands == self._default_bands else ",".join(map(str, bands))

    def set_layer(self, layer: QgsRasterLayer | None) -> None:
        """Offers the bands of `layer`; keeps what the user chose while it stays the same."""
        if layer is not self._layer:
            self._layer = layer
            self._show_model()

    def _show_model(self) -> None:
        while self._form.rowCount() > _FIXED_ROWS:
            self._form.removeRow(_FIXED_ROWS)
        self.combos, self._default_bands = [], []
        try:
            metadata = read_metadata(self.model())
        except IicError as error:
            self.facts.setText(error.message)
            return
        self.facts.setText(_facts(metadata))
        if self._layer is not None and self._layer.providerType() == "gdal":
            self._offer_bands(metadata, self._layer)

    def _offer_bands(self, metadata: ModelMetadata, layer: QgsRasterLayer) -> None:
        self._default_bands = _shown_bands(metadata.bands, layer)
        for name, band in zip(metadata.bands, self._default_bands):
            combo = QgsRasterBandComboBox()
            combo.setLayer(layer)
            combo.setBand(band)
            combo.setToolTip(
                tr(
                    "Shown is what is chosen for the first checked layer, and left so each raster gets a choice of its "
                    "own. Bands that you change hold for all rasters."
                )
            )
            self.combos.append(combo)
            self._form.addRow(tr("Band for {name}").format(name=name), combo)


def _shown_bands(names: tuple[str, ...], layer: QgsRasterLayer) -> list[int]:
    """What the engine chooses for the bands of these names; open where it can't tell."""
    provider = layer.dataProvider()
    colours = [_colour(provider.colorInterpretation(band)) for band in range(1, layer.bandCount() + 1)]
    return list(default_bands(names, colours) or [_OPEN] * len(names))


def _colour(interpretation: Qgis.RasterColorInterpretation) -> str:
    """As GDAL names it: `red` of RedBand, `gray` of GrayIndex."""
    return str(interpretation.name).removesuffix("Band").removesuffix("Index").lower()


def _facts(metadata: ModelMetadata) -> str:
    smallest, largest = metadata.gsd_range
    text = tr("{name}: {bands}; made for {smallest:g} m to {largest:g} m a pixel.").format(
        name=metadata.name, bands=", ".join(metadata.bands), smallest=smallest, largest=largest
    )
    if metadata.building_clusters is None and metadata.decision == "clusters":
        text += " " + tr(
            "It does not say which of its clusters are buildings. Tell it by a few examples first: Raster > Building "
            "extraction > Match clusters to buildings."
        )
    return text
