"""What QGIS loads: the Processing provider, a toolbar button, a Raster menu entry and an options page."""

from __future__ import annotations

from qgis.core import QgsApplication, QgsNotSupportedException
from qgis.gui import QgisInterface
from qgis.PyQt.QtGui import QIcon
from qgis.PyQt.QtWidgets import QAction

from qgis_iic.plugin import resource_paths
from qgis_iic.plugin.algorithms.engine_algorithm import OUTPUT
from qgis_iic.plugin.dialog.extraction_dialog import ExtractionDialog
from qgis_iic.plugin.environment_setup import SetupTask, remove_unused
from qgis_iic.plugin.options_page import OptionsPageFactory, show_options
from qgis_iic.plugin.provider import Provider
from qgis_iic.plugin.translation import tr

ACTION_NAME = "iicExtractBuildings"
ADAPT_ACTION_NAME = "iicAdaptSegmenter"
MATCH_ACTION_NAME = "iicMatchClusters"


class Plugin:
    """Unloading undoes loading, in reverse order."""

    def __init__(self, iface: QgisInterface | None) -> None:
        self._iface: QgisInterface = iface  # None in `qgis_process`, where there is no GUI to make or to remove
        self._provider: Provider | None = None
        self._dialog: ExtractionDialog | None = None

    def initProcessing(self) -> None:
        """All that `qgis_process` loads, which has no `iface`."""
        self._provider = Provider()
        QgsApplication.processingRegistry().addProvider(self._provider)

    def initGui(self) -> None:
        remove_unused()
        self.initProcessing()
        window = self._iface.mainWindow()
        self._menu = tr("Building extraction")
        self._run = QAction(QIcon(resource_paths.icon()), tr("Extract buildings…"), window)
        self._run.setObjectName(ACTION_NAME)
        self._run.triggered.connect(self._show_dialog)
        adapt = QAction(tr("Adapt segmenter to imagery…"), window)
        adapt.setObjectName(ADAPT_ACTION_NAME)
        adapt.triggered.connect(lambda: self._make_model("iic:adaptsegmenter"))
        match = QAction(tr("Match clusters to buildings…"), window)
        match.setObjectName(MATCH_ACTION_NAME)
        match.triggered.connect(lambda: self._make_model("iic:matchclusters"))
        configure = QAction(tr("Settings…"), window)
        configure.triggered.connect(lambda: show_options(self._iface))
        self._actions = (self._run, adapt, match, configure)
        self._iface.addToolBarIcon(self._run)
        for action in self._actions:
            self._iface.addPluginToRasterMenu(self._menu, action)
        self._options = OptionsPageFactory()
        self._iface.registerOptionsWidgetFactory(self._options)

    def unload(self) -> None:
        if self._iface is not None:
            self._unload_gui()
        QgsApplication.processingRegistry().removeProvider(self._provider)
        self._provider = None

    def _unload_gui(self) -> None:
        if SetupTask.running is not None:
            SetupTask.running.cancel()
        if self._dialog is not None:
            self._dialog.discard()
            self._dialog = None
        self._iface.unregisterOptionsWidgetFactory(self._options)
        for action in reversed(self._actions):
            self._iface.removePluginRasterMenu(self._menu, action)
        self._iface.removeToolBarIcon(self._run)
        for action in reversed(self._actions):
            action.deleteLater()

    def _make_model(self, algorithm: str) -> None:
        """In Processing's own dialog; what it makes is the model of the next extraction."""
        from qgis import processing

        try:
            results = processing.execAlgorithmDialog(algorithm)
        except QgsNotSupportedException:
            self._iface.messageBar().pushWarning(
                self._menu, tr("This needs the plugin Processing. Enable it in the plugin manager.")
            )
            return
        if results and OUTPUT in results:
            self._made_dialog().parameters.model.set_model(results[OUTPUT])

    def _show_dialog(self) -> None:
        dialog = self._made_dialog()
        dialog.show()
        dialog.raise_()
        dialog.activateWindow()

    def _made_dialog(self) -> ExtractionDialog:
        """One dialog for the whole time, so that a run can go on while it is closed."""
        if self._dialog is None:
            self._dialog = ExtractionDialog(self._iface)
        return self._dialog
