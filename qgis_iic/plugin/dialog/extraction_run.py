"""One run of `iic:extractbuildings` as a background task of QGIS."""

from __future__ import annotations

from typing import Any

from qgis.core import (
    Qgis,
    QgsApplication,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingUtils,
    QgsProject,
    QgsTask,
)
from qgis.PyQt.QtCore import QObject, pyqtSignal

from qgis_iic.plugin.translation import tr

ALGORITHM = "iic:extractbuildings"
_CANCEL_PATIENCE = 2000
"""Milliseconds that `stop` waits for the engine to be gone; it takes one second at most."""


class RunFeedback(QgsProcessingFeedback):
    """Passes on from the task's thread what the algorithm says.

    Signals:
        said: a text, and a `Qgis.MessageLevel`.
    """

    said = pyqtSignal(str, object)

    def __init__(self) -> None:
        super().__init__(False)

    def reportError(self, error: str, fatalError: bool = False) -> None:  # noqa: N803 - QGIS's name
        self.said.emit(error, Qgis.MessageLevel.Critical)

    def pushWarning(self, warning: str) -> None:
        self.said.emit(warning, Qgis.MessageLevel.Warning)

    def pushInfo(self, info: str) -> None:
        self.said.emit(info, Qgis.MessageLevel.Info)

    def setProgressText(self, text: str) -> None:
        self.said.emit(text, Qgis.MessageLevel.Info)

    def pushDebugInfo(self, info: str) -> None:
        self.said.emit(info, Qgis.MessageLevel.NoLevel)

    def pushConsoleInfo(self, info: str) -> None:
        self.said.emit(info, Qgis.MessageLevel.NoLevel)


class ExtractionTask(QgsTask):
    """Succeeds where the algorithm has results; QGIS's own task drops those that come just before a cancelling.

    Signals:
        executed: the outputs of the algorithm by name, none if it failed or was cancelled.
    """

    executed = pyqtSignal(dict)

    def __init__(
        self, parameters: dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> None:
        super().__init__(tr("Extract buildings"), QgsTask.Flag.CanCancel)
        self._algorithm = QgsApplication.processingRegistry().createAlgorithmById(ALGORITHM)
        self._parameters, self._context, self._feedback = parameters, context, feedback
        self._results: dict[str, Any] = {}
        self._feedback.progressChanged.connect(self.setProgress)

    def prepare(self) -> bool:
        """Reads the layers, on their thread; whether they could be read."""
        return self._algorithm.prepare(self._parameters, self._context, self._feedback)

    def cancel(self) -> None:
        self._feedback.cancel()
        super().cancel()

    def run(self) -> bool:
        try:
            self._results = self._algorithm.runPrepared(self._parameters, self._context, self._feedback)
        except QgsProcessingException as error:
            self._feedback.reportError(str(error), True)
        return bool(self._results)

    def finished(self, result: bool) -> None:
        if result:
            self._algorithm.postProcess(self._context, self._feedback)
        self.executed.emit(self._results)


class ExtractionRun(QObject):
    """Begins with `start`; the result layers are in the project when it says `ended`.

    Signals:
        said: a text, and a `Qgis.MessageLevel`.
        progressed: percent.
        ended: whether it succeeded, and the outputs of the algorithm by name.
    """

    said = pyqtSignal(str, object)
    progressed = pyqtSignal(float)
    ended = pyqtSignal(bool, dict)

    _alive: set[ExtractionRun] = set()
    """QGIS's task manager does not keep a task of Python's from being collected while it runs."""

    def __init__(self, parameters: dict[str, Any], project: QgsProject) -> None:
        super().__init__()
        self._alive.add(self)
        self._context = QgsProcessingContext()
        self._context.setProject(project)
        self._feedback = RunFeedback()
        self._feedback.said.connect(self.said)
        self._feedback.progressChanged.connect(self.progressed)
        self._task = ExtractionTask(parameters, self._context, self._feedback)
        self._task.executed.connect(self._end)

    def start(self) -> None:
        """Reads the layers and leaves the rest to the task manager; connect the signals before."""
        if self._task.prepare():
            QgsApplication.taskManager().addTask(self._task)
        else:
            self._end({})

    def cancel(self) -> None:
        self._task.cancel()

    def stop(self) -> None:
        """Cancels and waits until the engine is gone; a task whose turn has not come has none, and would not end."""
        is_running = self._task.status() == QgsTask.TaskStatus.Running
        self.cancel()
        if is_running:
            self._task.waitForFinished(_CANCEL_PATIENCE)

    def _end(self, results: dict[str, Any]) -> None:
        if results:
            add_to_project(self._context)
        self._alive.discard(self)
        self.ended.emit(bool(results), results)


def add_to_project(context: QgsProcessingContext) -> None:
    """Adds the layers that a run wants loaded, in the group that they name, on top of the layer tree.

    A layer that the project has already, because it was replaced in its GeoPackage, stays where it is.
    """
    project = context.project()
    for uri, details in context.layersToLoadOnCompletion().items():
        layer = QgsProcessingUtils.mapLayerFromString(uri, context)
        owned = context.temporaryLayerStore().takeMapLayer(layer)
        if owned is None:
            continue
        details.setOutputLayerName(owned)
        tree = project.layerTreeRoot()
        group = tree.findGroup(details.groupName) or tree.insertGroup(0, details.groupName)
        project.addMapLayer(owned, False)
        group.addLayer(owned)
