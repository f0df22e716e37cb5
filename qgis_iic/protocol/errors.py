"""Every failure that a user can see: one named error each, with the exit status that a process ends with.

The engine raises them, the event stream carries their `code` and message, and the plugin raises the same class again.
The message is the sentence that the user reads: it says what is wrong and what to do.
"""

from __future__ import annotations


class IicError(Exception):
    """Base of the named errors.

    Attributes:
        code: name of the error in the event stream and in the documentation, in kebab-case.
        exit_status: what `iic` and `engine_main.py` exit with.
    """

    code = "internal"
    exit_status = 1

    @property
    def message(self) -> str:
        return str(self)


class JobInvalid(IicError):
    """The job file is missing, is no JSON, has another version, or breaks a rule of the job."""

    code = "job-invalid"
    exit_status = 10


class SourceNotFound(IicError):
    """There is no file at the path of the source."""

    code = "source-not-found"
    exit_status = 11


class SourceNotRaster(IicError):
    """The source exists, but GDAL does not open it as a raster."""

    code = "source-not-raster"
    exit_status = 12


class SourceCorrupt(IicError):
    """A block of the source can't be read or decoded."""

    code = "source-corrupt"
    exit_status = 13


class SourceUnsuitable(IicError):
    """The raster opens but can't be used: complex values, no ground sampling distance, a band that is not there."""

    code = "source-unsuitable"
    exit_status = 14


class WindowOutside(IicError):
    """The window has no pixel in common with the raster."""

    code = "window-outside"
    exit_status = 15


class ModelNotFound(IicError):
    """There is no model file at the path, or no sibling of the asked-for precision beside it."""

    code = "model-not-found"
    exit_status = 20


class ModelInvalid(IicError):
    """The file is no ONNX model, or lacks what the engine needs of it."""

    code = "model-invalid"
    exit_status = 21


class ModelBandsMismatch(IicError):
    """The model takes another number of bands than the raster or the band mapping gives."""

    code = "model-bands-mismatch"
    exit_status = 22


class ModelNotMatched(IicError):
    """The model does not say which of its clusters are buildings, and neither does the job."""

    code = "model-not-matched"
    exit_status = 23


class ProviderUnavailable(IicError):
    """The asked-for execution provider did not bind."""

    code = "provider-unavailable"
    exit_status = 30


class OutOfMemory(IicError):
    """Not even one tile fits into the memory of the device, or a process has been ended for want of memory."""

    code = "out-of-memory"
    exit_status = 31


class OutputNotWritable(IicError):
    """The folder of the output is missing or can't be written to."""

    code = "output-not-writable"
    exit_status = 40


class OutputIsOtherKind(IicError):
    """The output path is taken by, or ends like, something else than what is to be written; a source is that too."""

    code = "output-is-other-kind"
    exit_status = 41


class LayerExists(IicError):
    """The GeoPackage has a layer of that name already."""

    code = "layer-exists"
    exit_status = 42


class DiskFull(IicError):
    """The disk, a quota or a file-size limit left no room for the output."""

    code = "disk-full"
    exit_status = 43


class OutputExists(IicError):
    """The output exists and may not be overwritten."""

    code = "output-exists"
    exit_status = 44


class LabelsInvalid(IicError):
    """The labels can't be read, or hold no building or no background where they are needed."""

    code = "labels-invalid"
    exit_status = 50


class TrainingCollapsed(IicError):
    """The clusters collapsed in training; no model was written."""

    code = "training-collapsed"
    exit_status = 51


class PrecisionInexact(IicError):
    """A model in another precision finds other buildings than in fp32; it was not written."""

    code = "precision-inexact"
    exit_status = 52


class EngineNotStarted(IicError):
    """The engine's interpreter is missing, can't be run, or lacks a library."""

    code = "engine-not-started"
    exit_status = 60


class EngineCrashed(IicError):
    """The engine ended without a result and without a named error."""

    code = "engine-crashed"
    exit_status = 61


class EngineKilled(IicError):
    """The engine was killed from outside, as happens when memory runs out."""

    code = "engine-killed"
    exit_status = 62


class EventInvalid(IicError):
    """A line of the engine's output is no event of the protocol."""

    code = "event-invalid"
    exit_status = 63


class Cancelled(IicError):
    """The user ended the run; nothing was written."""

    code = "cancelled"
    exit_status = 130


ERRORS: dict[str, type[IicError]] = {error.code: error for error in IicError.__subclasses__()}
"""The named errors by their code."""


def error_of(code: str, message: str) -> IicError:
    """The error that an event of the engine names; an unknown code (a newer engine) becomes the base class."""
    return ERRORS.get(code, IicError)(message)
