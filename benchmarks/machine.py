"""The machine that benchmarks/inference.py runs on, and the memory of its processes."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import onnxruntime

from qgis_iic.engine.providers import survey


def machine() -> dict[str, Any]:
    cpuinfo = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in _lines(cpuinfo) if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "system": platform.platform(),
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
        "gpu": gpu(),
        "usable": [name for name, problem in survey().items() if not problem],
    }


def gpu() -> str:
    """Names of NVIDIA's GPUs, empty without their driver."""
    if shutil.which("nvidia-smi") is None:
        return ""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    return ", ".join(done.stdout.splitlines()) if done.returncode == 0 else ""


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def resident_peak(process: int | str | None) -> float:
    """Largest resident set of a process so far, in MB.

    What `resource` says includes that of the process that started this one, before it became a program of its own.
    """
    status = dict(line.split(":", 1) for line in _lines(Path(f"/proc/{process}/status")))
    return int(status.get("VmHWM", "0").split()[0]) * 1024 / 1e6 if status else float("nan")
