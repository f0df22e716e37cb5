from __future__ import annotations

import mmap
import subprocess
import sys

import pytest
import torch

from qgis_iic.protocol.errors import JobInvalid, OutOfMemory
from qgis_iic.training.devices import choose, gpu_memory

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


@pytest.mark.parametrize("said", ["CUDA out of memory. Tried to allocate 9 GiB", "CUBLAS_STATUS_ALLOC_FAILED"])
def test_a_gpu_that_is_too_small_is_named(said: str) -> None:
    with pytest.raises(OutOfMemory, match=rf"--accelerator cpu.*{said}"), gpu_memory():
        raise RuntimeError(said)


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes differ"), gpu_memory():
        raise RuntimeError("shapes differ")
