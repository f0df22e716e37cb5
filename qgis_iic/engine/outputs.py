"""Where outputs are written before they get their name, and what goes wrong there, named."""

from __future__ import annotations

import errno
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyogrio.errors import DataLayerError, DataSourceError
from rasterio.errors import RasterioError

from qgis_iic.protocol.errors import DiskFull, OutputNotWritable
from qgis_iic.protocol.job import Job

_NO_ROOM_ERRNO = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_ROOM_WORDS = ("No space left", "disk is full", "File too large", "quota exceeded")
_NO_ROOM_BYTES = 1 << 20
"""With less than this left on the disk, a write that failed for whatever reason failed for lack of room."""


@contextmanager
def scratch_folder(job: Job) -> Iterator[Path]:
    """The job's scratch folder, beside its output and gone at the end.

    Raises:
        OutputNotWritable, DiskFull: it can't be made.
    """
    output = Path(job.output)
    if not output.parent.is_dir():
        raise OutputNotWritable(f"There is no folder {output.parent}. Make it first, or choose another output.")
    with write_errors(output):
        job.scratch.mkdir()
    try:
        yield job.scratch
    finally:
        shutil.rmtree(job.scratch, ignore_errors=True)


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
        if _is_lack_of_room(error, output):
            raise DiskFull(f"There is not enough room to write {output}: {error}. Nothing was written.") from error
        raise OutputNotWritable(f"{output} can't be written: {error}. Nothing was written.") from error


def _is_lack_of_room(error: Exception, output: Path) -> bool:
    if isinstance(error, OSError) and error.errno in _NO_ROOM_ERRNO:
        return True
    if any(words.casefold() in str(error).casefold() for words in _NO_ROOM_WORDS):
        return True
    return shutil.disk_usage(output.parent).free < _NO_ROOM_BYTES
