"""Page of QGIS's options dialog on which the engine's environment is made, or its interpreter chosen."""

from __future__ import annotations

from qgis.gui import QgisInterface, QgsFileWidget, QgsOptionsPageWidget, QgsOptionsWidgetFactory
from qgis.PyQt.QtCore import Qt
from qgis.PyQt.QtGui import QIcon
from qgis.PyQt.QtWidgets import (
    QCheckBox,
    QFormLayout,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from qgis_iic.plugin import engine_environment, resource_paths, settings
from qgis_iic.plugin.environment_setup import SetupTask, has_training
from qgis_iic.plugin.translation import tr
from qgis_iic.protocol import requirements
from qgis_iic.protocol.errors import EngineNotStarted

KEY = "iicOptions"


class OptionsPageFactory(QgsOptionsWidgetFactory):
    """Makes the page each time that the options are opened."""

    def __init__(self) -> None:
        super().__init__(tr("Building extraction"), QIcon(resource_paths.icon()), KEY)

    def createWidget(self, parent: QWidget | None = None) -> OptionsPage:
        return OptionsPage(parent)


class OptionsPage(QgsOptionsPageWidget):
    """The interpreter, and whether it can run the engine."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName(KEY)
        self.python = QgsFileWidget()
        self.python.setDialogTitle(tr("Python of the engine's environment"))
        self.python.setFilePath(settings.engine_python())
        self.python.lineEdit().setPlaceholderText(tr("Found automatically"))
        self.training = QCheckBox(tr("With PyTorch, for training and evaluation: a gigabyte or more"))
        self.training.setChecked(has_training(settings.engine_python()))
        self.wheels = QgsFileWidget()
        self.wheels.setDialogTitle(tr("Folder of wheels"))
        self.wheels.setStorageMode(QgsFileWidget.StorageMode.GetDirectory)
        self.make = QPushButton(tr("Set up"))
        self.make.clicked.connect(self.set_up)
        self.stop = QPushButton(tr("Cancel"))
        self.stop.clicked.connect(self.cancel)
        self.check = QPushButton(tr("Check"))
        self.check.setSizePolicy(QSizePolicy.Policy.Fixed, QSizePolicy.Policy.Fixed)
        self.check.clicked.connect(self.show_state)
        self.state = QLabel()
        self.state.setWordWrap(True)
        self._lay_out()
        self._show_running(False)
        if SetupTask.running is not None:
            self._follow(SetupTask.running)

    def apply(self) -> None:
        settings.set_engine_python(self.python.filePath().strip())

    def show_state(self) -> None:
        """Says whether the interpreter in the field, or the one found automatically, can run the engine."""
        chosen = self.python.filePath().strip()
        try:
            interpreter = engine_environment.check(chosen) if chosen else engine_environment.automatic()
        except EngineNotStarted as error:
            self.state.setText(error.message)
            return
        self.state.setText(
            tr("{path} is Python {version} and has all that the engine needs.").format(
                path=interpreter.path, version=".".join(map(str, interpreter.version))
            )
        )

    def set_up(self) -> None:
        """Makes an environment in the background; it goes on when the page is closed."""
        self._follow(SetupTask.start(self.training.isChecked(), self.wheels.filePath().strip()))

    def cancel(self) -> None:
        if SetupTask.running is not None:
            SetupTask.running.cancel()

    def _follow(self, task: SetupTask) -> None:
        task.said.connect(self.state.setText)
        task.ended.connect(self._show_ending)
        self._show_running(True)

    def _show_running(self, running: bool) -> None:
        self.make.setEnabled(not running)
        self.stop.setEnabled(running)

    def _show_ending(self, succeeded: bool, problem: str) -> None:
        self._show_running(False)
        if succeeded:
            self.python.setFilePath(settings.engine_python())
            self.show_state()
        else:
            self.state.setText(problem)

    def _lay_out(self) -> None:
        about = QLabel(
            tr(
                "The engine that finds the buildings runs in a Python environment of its own, apart from QGIS's. It "
                "can be made here: some hundred MB are fetched from the Python package index, and a GB or more with an "
                "NVIDIA GPU. Or choose the Python executable ({version} or newer) of an environment in which this was "
                "run:\n\n{command}"
            ).format(version=".".join(map(str, requirements.PYTHON)), command=requirements.install_command())
        )
        about.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        about.setWordWrap(True)
        buttons = QHBoxLayout()
        buttons.addWidget(self.make)
        buttons.addWidget(self.stop)
        buttons.addStretch()
        form = QFormLayout()
        form.addRow("", self.training)
        form.addRow(tr("Folder of wheels, without internet"), self.wheels)
        form.addRow("", buttons)
        form.addRow(tr("Engine's Python"), self.python)
        form.addRow("", self.check)
        form.addRow("", self.state)
        layout = QVBoxLayout(self)
        layout.addWidget(about)
        layout.addLayout(form)
        layout.addStretch()


def show_options(iface: QgisInterface) -> None:
    iface.showOptionsDialog(iface.mainWindow(), KEY)
