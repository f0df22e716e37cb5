from __future__ import annotations

import mmap
import subprocess
import sys

import pytest

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
