from __future__ import annotations

import mmap
import subprocess
import sys

import pytest
import torch

from qgis_iic.protocol.errors import JobInvalid, OutOfMemory
from qgis_iic.training.devices import choose, memory_errors

FAULTS = """
import ctypes, resource, sys, torch
from qgis_iic.training.devices import start
if not hasattr(ctypes.CDLL(None), "mallopt"):
    sys.exit()
start()
for step in range(20):
    if step == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone gives blocks back")
def test_freed_blocks_are_not_cleared_again() -> None:
    # Ten blocks of 64 MB have fewer new pages together than a single one has pages.
    # In a process of its own: what other tests left in memory would hide it.
    found = subprocess.run([sys.executable, "-c", FAULTS], check=True, capture_output=True, text=True).stdout
    assert int(found or 0) < (1 << 26) / mmap.PAGESIZE


def test_a_gpu_that_computes_nothing_is_left_alone_and_named_where_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", refuse)
    assert choose("auto").type == "cpu"
    with pytest.raises(JobInvalid, match="no kernel image"):
        choose("cuda")


def test_a_gpu_that_is_too_small_is_named() -> None:
    with pytest.raises(OutOfMemory, match=r"--accelerator cpu.*Tried to allocate 9 GiB"), memory_errors():
        raise torch.cuda.OutOfMemoryError("Tried to allocate 9 GiB")
