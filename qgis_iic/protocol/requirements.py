"""What the engine's Python needs, and the command that puts it there."""

from __future__ import annotations

PYTHON = (3, 11)
LIBRARIES = (
    "affine>=3.0",
    "geopandas>=1.0",
    "numpy>=1.26",
    "onnx>=1.17",
    "onnxruntime>=1.20",
    "pyogrio>=0.10",
    "pyproj>=3.6",
    "rasterio>=1.4",
    "scikit-learn>=1.4",
    "scipy>=1.11",
    "shapely>=2.1",
)


def install_command(python: str = "python") -> str:
    """For the shells of all systems, with the interpreter at the path `python`."""
    quoted = f'"{python}"' if " " in python else python  # PowerShell takes what begins with a quote for a text
    return f"{quoted} -m pip install " + " ".join(f'"{library}"' for library in LIBRARIES)
