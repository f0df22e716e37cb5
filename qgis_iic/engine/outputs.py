"""Where outputs are written before they get their name, and what goes wrong there, named."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pyogrio.errors import DataLayerError, DataSourceError
from pyogrio.util import vsi_path
from rasterio.errors import RasterioError

from qgis_iic.protocol.errors import DiskFull, OutputIsOtherKind, OutputNotWritable
from qgis_iic.protocol.job import AnyJob

_NO_ROOM_ERRNO = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PROBE_BYTES = 1 << 20
_MOST_FILES = 10_240
"""That are asked for; macOS says that there is no limit, and grants no more."""


@contextmanager
def scratch_folder(job: AnyJob) -> Iterator[Path]:
    """The job's scratch folder, beside its output and gone at the end.

    Raises:
        OutputNotWritable, DiskFull: it can't be made; see `check_folder`.
    """
    output = Path(job.output)
    check_folder(output)
    with write_errors(output):
        job.scratch.mkdir()
    try:
        yield job.scratch
    finally:
        shutil.rmtree(job.scratch, ignore_errors=True)


def allow_many_files() -> None:
    """Raises the number of files that this process may have open, as far as it may: all sources of a job are."""
    if sys.platform == "win32":  # has no such limit
        return
    import resource

    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if most == resource.RLIM_INFINITY else min(most, _MOST_FILES)
    if now != resource.RLIM_INFINITY and now < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def check_folder(output: Path) -> None:
    """Raises OutputNotWritable where the folder of an output is missing or can't be written to."""
    if not os.path.isdir(output.parent):  # noqa: PTH112 - pathlib's raises where a folder above can't be entered
        raise OutputNotWritable(f"There is no folder {output.parent}. Make it first, or choose another output.")
    if not os.access(output.parent, os.W_OK):
        raise OutputNotWritable(f"The folder {output.parent} can't be written to. Choose another output.")


def write_whole(output: Path, content: bytes) -> None:
    """Writes under a temporary name, then renames, so that what was there stays unless all could be written.

    Raises:
        OutputNotWritable, DiskFull: see `write_errors`.
    """
    temporary = output.with_name(f".{output.name}.partial")
    with write_errors(output):
        try:
            temporary.write_bytes(content)
            temporary.replace(output)
        finally:
            temporary.unlink(missing_ok=True)


def check_is_no_source(output: str, files: Iterable[str]) -> None:
    """Raises OutputIsOtherKind where the output is one of the files that are read, which replacing it would destroy."""
    for file in files:
        if os.path.exists(file) and os.path.exists(output) and os.path.samefile(file, output):  # noqa: PTH110, PTH121 - as above
            raise OutputIsOtherKind(
                f"The output {output} is one of the files that are read, or part of one. Choose another name."
            )


def is_taken_as_it_is(path: Path) -> bool:
    """Whether pyogrio opens just this file: it reads ! ; and ? in paths as those of archives and addresses."""
    taken: str = vsi_path(str(path))
    return taken.endswith(str(path))


@contextmanager
def write_errors(output: Path) -> Iterator[None]:
    """Gives failures of the libraries that write `output` their names.

    Raises:
        DiskFull: no room is left, or a quota or size limit is reached.
        OutputNotWritable: anything else, such as missing rights.
    """
    try:
        yield
    except (OSError, RasterioError, DataSourceError, DataLayerError, sqlite3.Error) as error:
        if _lacks_room(output.parent):
            raise DiskFull(f"There is not enough room to write {output}: {error}. Nothing was written.") from error
        raise OutputNotWritable(f"{output} can't be written: {error}. Nothing was written.") from error


def _lacks_room(folder: Path) -> bool:
    """Whether a small file finds no room: the libraries report a full disk in too many ways, or as something else."""
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(_PROBE_BYTES))
    except OSError as error:
        return error.errno in _NO_ROOM_ERRNO
    return False
