#!/usr/bin/env python3
"""Builds dist/qgis_iic.zip, the plugin as QGIS installs it: the same sources make the same bytes.

The zip has one top folder, `qgis_iic`, with the parts that run in QGIS and in the engine's process, matching among
them. The `iic` command is left out: it comes with the Python package.
"""

from __future__ import annotations

import argparse
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOP = "qgis_iic"
LIMIT = 25_000_000
"""Bytes; the plugin repository takes no larger upload."""

MODULES = ("__init__.py", "engine_main.py")
PARTS = ("protocol", "engine", "training", "plugin")
RESOURCES = ("*.svg", "*.qml", "*.qm", "*.html")
MODELS = ("iic_*.onnx", "iic_*.md", "iic_*.toml")
LEFT_OUT = ("*.fp16.onnx",)
"""For the limit's sake: a GPU is nearly as fast with a model's fp32 file, see docs/benchmarks_gpu.md."""

_TIME = (1980, 1, 1, 0, 0, 0)
_MODE = 0o100644 << 16


def contents(root: Path) -> dict[str, Path]:
    """Path inside the zip to file, in the order of the zip.

    Raises:
        FileNotFoundError: a file that the plugin can't do without is missing.
    """
    files = {f"{TOP}/{name}": root / name for name in ("LICENSE", "metadata.txt")}
    files |= {f"{TOP}/{name}": root / "qgis_iic" / name for name in MODULES}
    for part in PARTS:
        files |= _below(root / "qgis_iic", root / "qgis_iic" / part, ("*.py",))
    files |= _below(root, root / "resources", RESOURCES)
    files |= _below(root, root / "models", MODELS)
    missing = [str(path) for path in files.values() if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"missing: {', '.join(missing)}")
    return dict(sorted(files.items()))


def build(root: Path, target: Path) -> int:
    """Writes the zip and returns its size in bytes."""
    files = contents(root)
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, path in files.items():
            entry = zipfile.ZipInfo(name, _TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3  # Unix, on every system
            entry.external_attr = _MODE
            archive.writestr(entry, path.read_bytes())
    return target.stat().st_size


def _below(base: Path, folder: Path, patterns: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    for pattern in patterns:
        for path in folder.rglob(pattern):
            if any(path.match(other) for other in LEFT_OUT):
                continue
            yield f"{TOP}/{path.relative_to(base).as_posix()}", path


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the plugin zip.")
    parser.add_argument("--output", type=Path, default=ROOT / "dist" / "qgis_iic.zip", help="default: %(default)s")
    target = parser.parse_args().output
    size = build(ROOT, target)
    if size > LIMIT:
        target.unlink()
        print(f"{size / 1e6:.1f} MB, and the plugin repository takes {LIMIT / 1e6:.0f} MB at most", file=sys.stderr)
        return 1
    print(f"{target}: {size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
