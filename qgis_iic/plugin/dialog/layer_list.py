"""The raster layers of the project, each with a check box."""

from __future__ import annotations

from qgis.core import Qgis, QgsMapLayerProxyModel, QgsProject, QgsRasterLayer
from qgis.PyQt.QtCore import Qt, pyqtSignal
from qgis.PyQt.QtWidgets import QAbstractItemView, QListView, QWidget


class RasterLayerList(QListView):
    """Follows the project: layers that are added appear unchecked, layers that are removed go.

    Signals:
        edited: other layers are checked than before.
    """

    edited = pyqtSignal()

    def __init__(self, project: QgsProject, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._layers = QgsMapLayerProxyModel(self)
        self._layers.setProject(project)
        self._layers.setFilters(Qgis.LayerFilter.RasterLayer)
        self._layers.sourceLayerModel().setItemsCheckable(True)
        self.setModel(self._layers)
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setSelectionMode(QAbstractItemView.SelectionMode.NoSelection)
        self._layers.dataChanged.connect(self.edited)
        self._layers.rowsRemoved.connect(self.edited)

    def checked(self) -> list[QgsRasterLayer]:
        """In the order of the list."""
        indexes = [self._layers.index(row, 0) for row in range(self._layers.rowCount())]
        return [
            self._layers.sourceLayerModel().layerFromIndex(self._layers.mapToSource(index))
            for index in indexes
            if Qt.CheckState(self._layers.data(index, Qt.ItemDataRole.CheckStateRole)) == Qt.CheckState.Checked
        ]

    def check(self, layers: list[QgsRasterLayer]) -> None:
        """Checks `layers` and no others."""
        self._layers.sourceLayerModel().checkAll(Qt.CheckState.Unchecked)
        self._layers.sourceLayerModel().setLayersChecked(layers)
        self.edited.emit()
