"""Page of QGIS's options dialog on which the user chooses the engine's interpreter."""

from __future__ import annotations

from qgis.gui import QgisInterface, QgsFileWidget, QgsOptionsPageWidget, QgsOptionsWidgetFactory
from qgis.PyQt.QtCore import Qt
from qgis.PyQt.QtGui import QIcon
from qgis.PyQt.QtWidgets import QFormLayout, QLabel, QPushButton, QSizePolicy, QVBoxLayout, QWidget

from qgis_iic.plugin import engine_environment, resource_paths, settings
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
        self.check = QPushButton(tr("Check"))
        self.check.setSizePolicy(QSizePolicy.Policy.Fixed, QSizePolicy.Policy.Fixed)
        self.check.clicked.connect(self.show_state)
        self.state = QLabel()
        self.state.setWordWrap(True)
        self._lay_out()

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

    def _lay_out(self) -> None:
        about = QLabel(
            tr(
                "The engine that finds the buildings runs in a Python environment of its own, apart from QGIS's: "
                "a Python {version} or newer, best a virtual environment, in which this was run:\n\n{command}\n\n"
                "Choose the Python executable of that environment."
            ).format(version=".".join(map(str, requirements.PYTHON)), command=requirements.install_command())
        )
        about.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        about.setWordWrap(True)
        form = QFormLayout()
        form.addRow(tr("Engine's Python"), self.python)
        form.addRow("", self.check)
        form.addRow("", self.state)
        layout = QVBoxLayout(self)
        layout.addWidget(about)
        layout.addLayout(form)
        layout.addStretch()


def show_options(iface: QgisInterface) -> None:
    iface.showOptionsDialog(iface.mainWindow(), KEY)
