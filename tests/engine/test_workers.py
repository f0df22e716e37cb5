"""Processes say what failed, and end, whatever happens to them or to the one that began them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from qgis_iic.engine.overlap import mapped
from qgis_iic.engine.workers import processes
from qgis_iic.protocol.errors import OutOfMemory


@pytest.mark.parametrize("end", ["at work", "a little later"])
def test_a_process_that_is_killed_has_a_name(end: str) -> None:
    """With more than a pipe holds on the way to the others and back."""
    work = kill_this_process if end == "at work" else kill_this_process_soon
    with pytest.raises(OutOfMemory), processes(2) as workers:
        list(mapped(work, (bytes(3_000_000) for _ in range(200)), workers))


def kill_this_process(_: bytes) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_this_process_soon(_: bytes) -> bytes:
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGKILL)).start()
    return bytes(30_000_000)


def test_what_can_not_be_imported_is_told() -> None:
    with pytest.raises(RuntimeError, match="no_such_module"), processes(2, "no_such_module") as workers:
        list(mapped(abs, (number for number in range(4)), workers))


def test_what_can_not_be_sent_back_is_told() -> None:
    with pytest.raises(RuntimeError, match="pickle"), processes(2) as workers:
        list(mapped(lock, (number for number in range(4)), workers))


def lock(_: int) -> object:
    return threading.Lock()


def test_processes_end_with_the_one_that_began_them() -> None:
    """Even where that is killed: in QGIS each would hold memory until the computer is shut down."""
    program = (
        "import multiprocessing, os, signal\n"
        "from qgis_iic.engine.workers import processes\n"
        "with processes(2):\n"
        "    print(*(child.pid for child in multiprocessing.active_children()), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    # Their streams are those of the first: these are at their end once all are gone.
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(done.stdout.split()) == 2
    assert done.stderr == ""


def test_an_interrupt_is_not_their_business() -> None:
    """In a terminal it goes to all processes, and the first decides what comes of it."""
    program = (
        "import multiprocessing, os, signal\n"
        "from qgis_iic.engine.overlap import mapped\n"
        "from qgis_iic.engine.workers import processes\n"
        "with processes(2) as workers:\n"
        "    for child in multiprocessing.active_children():\n"
        "        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):\n"
        "            os.kill(child.pid, number)\n"
        "    print(*mapped(abs, (number for number in (-1, 2, -3)), workers))\n"
        "print(multiprocessing.active_children())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "1 2 3\n[]\n"
    assert done.stderr == ""
