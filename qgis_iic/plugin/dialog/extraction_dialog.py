"""The dialog: parameters on one tab, the log on the other, progress and buttons below."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from qgis.core import Qgis, QgsApplication, QgsProcessingContext, QgsProject, QgsRasterLayer
from qgis.gui import QgisInterface, QgsMessageBar
from qgis.PyQt.QtCore import Qt
from qgis.PyQt.QtGui import QIcon, QShowEvent
from qgis.PyQt.QtWidgets import (
    QDialog,
    QDialogButtonBox,
    QHBoxLayout,
    QProgressBar,
    QPushButton,
    QTabWidget,
    QTextBrowser,
    QVBoxLayout,
)

from qgis_iic.plugin import resource_paths
from qgis_iic.plugin.algorithms.engine_algorithm import INPUT, OUTPUT
from qgis_iic.plugin.algorithms.extract_buildings import AREA, BUILDINGS
from qgis_iic.plugin.dialog.extraction_run import ALGORITHM, ExtractionRun
from qgis_iic.plugin.dialog.parameters_panel import ParametersPanel
from qgis_iic.plugin.options_page import show_options
from qgis_iic.plugin.translation import tr

_COLOURS = {
    Qgis.MessageLevel.Critical: "#c0392b",
    Qgis.MessageLevel.Warning: "#b9770e",
    Qgis.MessageLevel.NoLevel: "gray",
}


class ExtractionDialog(QDialog):
    """Stays usable beside QGIS; closing it while a run goes on leaves the run to QGIS's task manager."""

    def __init__(self, iface: QgisInterface) -> None:
        super().__init__(iface.mainWindow())
        self._iface = iface
        self._run: ExtractionRun | None = None
        self._last_error = ""
        self.setObjectName("iicExtractionDialog")
        self.setWindowTitle(tr("Extract Buildings"))
        self.setWindowIcon(QIcon(resource_paths.icon()))
        self._make_widgets()
        self._lay_out()
        self._show_running(False)

    def start(self) -> None:
        """Runs the algorithm, unless it finds something wrong with the parameters."""
        parameters = self.parameters.parameters()
        problem = _problem(parameters)
        self.messages.clearWidgets()
        if problem:
            self.messages.pushMessage(problem, Qgis.MessageLevel.Warning)
            return
        self.parameters.remember()
        self.log.clear()
        self.progress.setValue(0)
        self.tabs.setCurrentWidget(self.log)
        self._last_error = ""
        self._run = ExtractionRun(parameters, QgsProject.instance())
        self._run.said.connect(self._write)
        self._run.progressed.connect(self._show_progress)
        self._run.ended.connect(self._finish)
        self._show_running(True)
        self._run.start()

    def cancel(self) -> None:
        if self._run is not None:
            self._write(tr("Cancelling…"), Qgis.MessageLevel.Info)
            self.cancel_button.setEnabled(False)
            self._run.cancel()

    def discard(self) -> None:
        """Ends the run, if there is one, and the dialog."""
        if self._run is not None:
            self._run.ended.disconnect(self._finish)
            self._run.stop()
            self._run = None
        self.close()
        self.deleteLater()

    def showEvent(self, event: QShowEvent) -> None:
        self.parameters.show_map_extent()
        active = self._iface.activeLayer()
        if isinstance(active, QgsRasterLayer) and not self.parameters.layers.checked():
            self.parameters.layers.check([active])
        super().showEvent(event)

    def reject(self) -> None:
        """Where Escape, the button Close and closing the window all end."""
        if self._run is not None:
            self._iface.messageBar().pushMessage(
                tr("The extraction goes on in the background. Open the dialog again to follow or to cancel it."),
                Qgis.MessageLevel.Info,
            )
        super().reject()

    def _finish(self, succeeded: bool, results: dict[str, Any]) -> None:
        if succeeded:
            text = tr("{count} buildings, {area:,.0f} m² in all, are in {path}.").format(
                count=results[BUILDINGS], area=results[AREA], path=results[OUTPUT]
            )
            level = Qgis.MessageLevel.Success
        elif self._last_error:
            text, level = self._last_error, Qgis.MessageLevel.Critical
        else:
            text, level = tr("The run was cancelled."), Qgis.MessageLevel.Info
        self._run = None
        self._show_running(False)
        self.progress.setValue(100 if succeeded else 0)
        if level != Qgis.MessageLevel.Critical:
            self._write(text, level)
        if succeeded and results[BUILDINGS] == 0:
            hint = tr("Where there are buildings, the model does not know their like. {menu} has ways to help it.")
            self._write(hint.format(menu=tr("Raster > Building extraction")), Qgis.MessageLevel.Warning)
        bar = self.messages if self.isVisible() else self._iface.messageBar()
        bar.pushMessage(text.splitlines()[0], level)

    def _show_progress(self, percent: float) -> None:
        self.progress.setValue(round(percent))

    def _write(self, text: str, level: Qgis.MessageLevel) -> None:
        if level == Qgis.MessageLevel.Critical:
            self._last_error = text
        lines = escape(text).replace("\n", "<br>")
        colour = _COLOURS.get(level)
        self.log.append(f'<span style="color:{colour}">{lines}</span>' if colour else lines)

    def _show_running(self, running: bool) -> None:
        self.parameters.setEnabled(not running)
        self.run_button.setEnabled(not running)
        self.cancel_button.setEnabled(running)

    def _make_widgets(self) -> None:
        self.messages = QgsMessageBar()
        self.parameters = ParametersPanel(QgsProject.instance(), self._iface.mapCanvas())
        self.log = QTextBrowser()
        self.tabs = QTabWidget()
        self.tabs.addTab(self.parameters, tr("Parameters"))
        self.tabs.addTab(self.log, tr("Log"))
        self.progress = QProgressBar()
        self.settings_button = QPushButton(QgsApplication.getThemeIcon("/mActionOptions.svg"), tr("Settings…"))
        self.settings_button.clicked.connect(lambda: show_options(self._iface))
        self.cancel_button = QPushButton(tr("Cancel"))
        self.cancel_button.clicked.connect(self.cancel)
        self.run_button = QPushButton(tr("Run"))
        self.run_button.setDefault(True)
        self.run_button.clicked.connect(self.start)

    def _lay_out(self) -> None:
        buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Close)
        buttons.rejected.connect(self.reject)
        buttons.addButton(self.run_button, QDialogButtonBox.ButtonRole.ActionRole)
        buttons.addButton(self.settings_button, QDialogButtonBox.ButtonRole.ResetRole)
        progress = QHBoxLayout()
        progress.addWidget(self.progress)
        progress.addWidget(self.cancel_button)
        layout = QVBoxLayout(self)
        layout.addWidget(self.messages, alignment=Qt.AlignmentFlag.AlignTop)
        layout.addWidget(self.tabs, stretch=1)
        layout.addLayout(progress)
        layout.addWidget(buttons)
        self.resize(620, 720)


def _problem(parameters: dict[str, Any]) -> str:
    """What is wrong with the parameters in the eyes of the algorithm; empty where nothing is."""
    if not parameters[INPUT]:
        return tr("Check at least one raster layer.")
    layers = [QgsProject.instance().mapLayer(number) for number in parameters[INPUT]]
    lost = next((layer.name() for layer in layers if layer is not None and not layer.isValid()), None)
    if lost is not None:
        return tr("{name} can't be read: QGIS does not find its file. Leave it out, or repair it.").format(name=lost)
    if OUTPUT not in parameters:
        return tr("Name the GeoPackage for the buildings.")
    if not Path(parameters[OUTPUT]).is_absolute():
        return tr("Name the folder, too, in which {name} is to be.").format(name=parameters[OUTPUT])
    context = QgsProcessingContext()
    context.setProject(QgsProject.instance())
    algorithm = QgsApplication.processingRegistry().createAlgorithmById(ALGORITHM)
    return algorithm.checkParameterValues(parameters, context)[1]
