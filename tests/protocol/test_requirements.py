from __future__ import annotations

from qgis_iic.protocol.requirements import LIBRARIES, install_command


def test_the_command_is_for_any_shell() -> None:
    assert install_command().startswith('python -m pip install "')
    command = install_command("C:/my envs/python.exe")
    assert command.startswith('"C:/my envs/python.exe" -m pip install "')
    assert all(f'"{library}"' in command for library in LIBRARIES)  # > would write to a file
