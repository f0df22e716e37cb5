"""What the engine's Python needs, and the command that puts it there."""

from __future__ import annotations

from collections.abc import Sequence

PYTHON = (3, 11)
LIBRARIES = (
    "affine>=3.0",
    "buildingregulariser>=0.2.5",
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

TRAINING = ("lightning-fabric>=2.6", "torch>=2.4")
"""What training, fine-tuning and evaluation need beside these: a gigabyte or more."""


def lacking(error: ImportError, trains: bool = False) -> tuple[str, ...]:
    """What to install after it, all at once; PyTorch alone where that is missing, whichever ONNX Runtime is there.

    Args:
        error: from an import.
        trains: whether PyTorch is needed as well.
    """
    name, _, _ = (error.name or "").partition(".")
    if name in ("torch", "lightning_fabric"):
        return TRAINING
    return LIBRARIES + TRAINING * trains


def install_command(python: str = "python", libraries: Sequence[str] = LIBRARIES) -> str:
    """For the shells of all systems, with the interpreter at the path `python`."""
    quoted = f'"{python}"' if " " in python else python  # PowerShell takes what begins with a quote for a text
    return f"{quoted} -m pip install " + " ".join(f'"{library}"' for library in libraries)
