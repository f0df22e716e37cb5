"""The jobs: all that the engine has to know for one run, as a JSON file.

The plugin writes it and the engine reads it; the `iic` command makes the same object without the file. Paths are
absolute, areas in square metres on the ground, and windows count pixels of the source.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Union, get_args

from qgis_iic.protocol.errors import JobInvalid
from qgis_iic.protocol.names import folded

VERSION = 1

Task = Literal["extract", "segment"]
Objective = Literal["iou", "accuracy"]
Head = Literal["probe", "clusters"]
Provider = Literal["auto", "cpu", "cuda", "tensorrt", "directml", "coreml", "openvino"]
Precision = Literal["fp32", "fp16", "int8", "auto"]
SmallPrecision = Literal["int8", "fp16"]

Window = tuple[int, int, int, int]

LEAST_MEMORY = 600
"""MB: smallest limit of a run's memory that can be asked for."""

_WEEK = 7 * 24 * 60
"""Minutes."""


@dataclass(frozen=True)
class Source:
    """One raster of a job.

    Attributes:
        path: absolute path, or anything else that GDAL opens (`/vsizip/...`, `GPKG:file:table`).
        layer: name of the polygon layer that is made of it; ignored by the task `segment`.
        bands: 1-based band numbers in the model's order; None takes the model's default order.
        window: (column, row, width, height) in source pixels; None takes the whole raster.
        crs: WKT or `AUTHORITY:CODE` that overrides the raster's own CRS, as a user can set it in QGIS.
    """

    path: str
    layer: str = ""
    bands: tuple[int, ...] | None = None
    window: Window | None = None
    crs: str | None = None


class _JobFile:
    """What jobs of all kinds have in common."""

    output: str
    id: str

    @property
    def scratch(self) -> Path:
        """Folder beside the output in which the engine writes before it renames.

        The engine makes and removes it; whoever kills the engine removes it in its place.
        """
        return Path(self.output).with_name(f".{self.id}.iic-partial")

    def to_json(self) -> str:
        return json.dumps({"version": VERSION, **asdict(self)}, indent=2)  # type: ignore[call-overload]


@dataclass(frozen=True)
class Job(_JobFile):
    """Buildings or classes of rasters.

    Attributes:
        task: `extract` writes building polygons, `segment` the class raster.
        sources: the rasters, at least one; exactly one for `segment`.
        model: path of the ONNX model.
        output: the GeoPackage (`extract`) or the GeoTIFF (`segment`); layers are added to a GeoPackage that exists.
        provider: where the network runs; `auto` takes the fastest that binds.
        precision: which of the model's sibling files to run; `auto` takes the fastest on the machine, and the answer
            may then differ between machines.
        tile_size: largest side of the tiles in working pixels, None for what the memory allows.
        memory: that a run on a CPU may take, in MB; None stands for 1500, and tiles of four times the area of the
            model's own at most. On a GPU it bounds how far the reading runs ahead.
        min_area: smallest building in m2; smaller ones are dropped.
        max_hole_area: largest hole in m2 that is filled.
        regularise: whether outlines are straightened; else they follow the edges of the working pixels.
        building_clusters: clusters that are buildings, None for the model's own decision. Given, they decide even with
            a model that decides by its probability.
        overwrite: whether layers of the same name (`extract`) or the file (`segment`) may be replaced.
        id: names the scratch folder of the run.
    """

    task: Task
    sources: tuple[Source, ...]
    model: str
    output: str
    provider: Provider = "auto"
    precision: Precision = "fp32"
    tile_size: int | None = None
    memory: int | None = None
    min_area: float = 10.0
    max_hole_area: float = 5.0
    regularise: bool = False
    building_clusters: tuple[int, ...] | None = None
    overwrite: bool = False
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        """Raises JobInvalid where a rule is broken."""
        _check(self)


@dataclass(frozen=True)
class _LabelledJob(_JobFile):
    """What is done with labels on a raster.

    Attributes:
        source: the raster that the labels lie on; with a window only what they say in it counts.
        labels: path of polygons or points with a column `building`, of footprints, or of a label raster.
        model: path of the ONNX model.
        output: the file to write.
        area: path of polygons within which all buildings have a footprint; None where the labels say what is none.
        id: names the scratch folder of the run.
    """

    source: Source
    labels: str
    model: str
    output: str
    area: str | None = None
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        """Raises JobInvalid where a rule is broken."""
        _check_labelled(self)


@dataclass(frozen=True)
class MatchJob(_LabelledJob):
    """Saying which clusters of a model are buildings; the output is an ONNX file, which may be the model itself.

    Attributes:
        objective: what the mapping maximises.
        head: what decides in the result: the clusters, or a probe that is fitted to the labels as well.
        task: which kind of job this is.
    """

    objective: Objective = "iou"
    head: Head = "probe"
    task: Literal["match"] = "match"

    def __post_init__(self) -> None:
        """Raises JobInvalid where a rule is broken."""
        super().__post_init__()
        _check_choice("objective", self.objective, Objective)
        _check_choice("head", self.head, Head)


@dataclass(frozen=True)
class FineTuneJob(_LabelledJob):
    """Training a model on with labels; the output is an ONNX file, which may be the model itself.

    Attributes:
        minutes: of training; reading and matching come on top.
        task: which kind of job this is.
    """

    minutes: float = 5.0
    task: Literal["finetune"] = "finetune"

    def __post_init__(self) -> None:
        """Raises JobInvalid where a rule is broken."""
        super().__post_init__()
        allowed = _is_number(self.minutes) and 0 < self.minutes <= _WEEK
        _require(allowed, f"`minutes` must be a positive number, {_WEEK} at most")


@dataclass(frozen=True)
class EvaluateJob(_LabelledJob):
    """Scoring a model; the output is an HTML file.

    Attributes:
        task: which kind of job this is.
    """

    task: Literal["evaluate"] = "evaluate"


@dataclass(frozen=True)
class TrainJob(_JobFile):
    """Training of a model without labels, and its export.

    Attributes:
        sources: the rasters, at least one.
        recipe: path of a training configuration (TOML), whose imagery is replaced by the sources.
        output: the ONNX file to write.
        gsd: ground sampling distance to train at, in metres; None for the recipe's.
        steps: None for the recipe's.
        task: which kind of job this is.
        id: names the scratch folder of the run.
    """

    sources: tuple[Source, ...]
    recipe: str
    output: str
    gsd: float | None = None
    steps: int | None = None
    task: Literal["train"] = "train"
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        """Raises JobInvalid where a rule is broken."""
        _check_train(self)


@dataclass(frozen=True)
class AdaptJob(_JobFile):
    """Adapting a model to other imagery, without labels.

    Attributes:
        sources: the rasters, at least one.
        model: path of the ONNX file to adapt.
        output: the ONNX file to write.
        task: which kind of job this is.
        id: names the scratch folder of the run.
    """

    sources: tuple[Source, ...]
    model: str
    output: str
    task: Literal["adapt"] = "adapt"
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        """Raises JobInvalid where a rule is broken."""
        _check_texts(self, "model", "output", "id")
        _check_sources(self.sources)


@dataclass(frozen=True)
class QuantiseJob(_JobFile):
    """Making a model's copy in a smaller precision.

    Attributes:
        sources: the rasters to calibrate and to compare on, at least one.
        model: path of the ONNX file in fp32.
        output: its sibling of that precision, see `engine.session.sibling`.
        precision: of the copy.
        task: which kind of job this is.
        id: names the scratch folder of the run.
    """

    sources: tuple[Source, ...]
    model: str
    output: str
    precision: SmallPrecision
    task: Literal["quantise"] = "quantise"
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        """Raises JobInvalid where a rule is broken."""
        _check_texts(self, "model", "output", "id")
        _check_choice("precision", self.precision, SmallPrecision)
        _check_sources(self.sources)


LabelledJob = Union[MatchJob, FineTuneJob, EvaluateJob]
AnyJob = Union[Job, TrainJob, AdaptJob, QuantiseJob, LabelledJob]

_KINDS: dict[object, type[AnyJob]] = {
    "match": MatchJob,
    "finetune": FineTuneJob,
    "train": TrainJob,
    "adapt": AdaptJob,
    "quantise": QuantiseJob,
    "evaluate": EvaluateJob,
}
"""By task; all others are a `Job`."""


def read_job(text: str) -> AnyJob:
    """Parses and validates a job of any kind.

    Raises:
        JobInvalid: not a JSON object, another version, unknown, missing or ill-typed fields, a broken rule.
    """
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise JobInvalid(f"The job file is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise JobInvalid("The job file does not hold a JSON object.")
    version = record.pop("version", None)
    if version != VERSION:
        raise JobInvalid(
            f"The job file has version {version}, this engine reads version {VERSION}: "
            "the plugin and the engine must come from the same release."
        )
    if "source" in record:
        record["source"] = _construct(Source, record["source"])
    if "sources" in record:
        if not isinstance(record["sources"], list):
            raise JobInvalid("The job's `sources` is not a list.")
        record["sources"] = tuple(_construct(Source, source) for source in record["sources"])
    task = record.get("task")
    job: AnyJob = _construct(_KINDS.get(task, Job) if isinstance(task, str) else Job, record)
    return job


def _construct(kind: type[Any], record: Any) -> Any:
    """A job or `Source` of a JSON object, arrays made tuples; JobInvalid names what does not fit."""
    if not isinstance(record, dict):
        raise JobInvalid(f"A {kind.__name__.lower()} of the job is not a JSON object.")
    unknown = sorted(record.keys() - {field.name for field in fields(kind)})
    if unknown:
        raise JobInvalid(f"The job has unknown fields: {', '.join(unknown)}.")
    try:
        return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in record.items()})
    except TypeError as error:
        raise JobInvalid(f"The job file is incomplete or has a value of the wrong type: {error}") from error


def _check(job: Job) -> None:
    _check_choice("task", job.task, Task)
    _check_choice("provider", job.provider, Provider)
    _check_choice("precision", job.precision, Precision)
    _check_texts(job, "model", "output", "id")
    _check_sources(job.sources)
    _require(job.task == "extract" or len(job.sources) == 1, "the task `segment` takes one raster")
    _require(job.tile_size is None or _is_count(job.tile_size), "`tile_size` must be a positive whole number")
    _require(
        job.memory is None or _is_count(job.memory, least=LEAST_MEMORY),
        f"`memory` must be a whole number of MB from {LEAST_MEMORY} up",
    )
    for name in ("min_area", "max_hole_area"):
        value = getattr(job, name)
        _require(_is_number(value) and 0 <= value < float("inf"), f"`{name}` must be a number of m2, zero or more")
    if job.building_clusters is not None:
        counts = all(_is_count(cluster, least=0) for cluster in job.building_clusters)
        _require(counts, "`building_clusters` must be cluster numbers")
    for name in ("regularise", "overwrite"):
        _require(isinstance(getattr(job, name), bool), f"`{name}` must be true or false")
    for source in job.sources:
        _require(job.task == "segment" or source.layer != "", "each source needs a `layer` name")
    layers = [folded(source.layer) for source in job.sources]
    _require(job.task == "segment" or len(set(layers)) == len(layers), "layer names must differ")


def _check_labelled(job: _LabelledJob) -> None:
    _check_texts(job, "labels", "model", "output", "id")
    _require(job.area is None or (isinstance(job.area, str) and job.area != ""), "`area` must be a text")
    _check_source(job.source)


def _check_train(job: TrainJob) -> None:
    _check_texts(job, "recipe", "output", "id")
    _check_sources(job.sources)
    _require(
        job.gsd is None or (_is_number(job.gsd) and 0 < job.gsd < float("inf")), "`gsd` must be a number of metres"
    )
    _require(job.steps is None or _is_count(job.steps), "`steps` must be a positive whole number")


def _check_texts(job: _JobFile, *names: str) -> None:
    for name in names:
        value = getattr(job, name)
        _require(isinstance(value, str) and value != "", f"`{name}` must be a text that is not empty")
        _check_text(value, f"`{name}`")
    _require(job.id.isalnum(), "`id` must consist of letters and digits")
    _require(Path(job.output).is_absolute(), f"`output` must be an absolute path, not {job.output}")


def _check_text(value: str, name: str) -> None:
    _require("\0" not in value, f"{name} must not hold a null character")
    # Python keeps bytes of a file's name that are none as halves of pairs.
    plain = not any("\ud800" <= character <= "\udfff" for character in value)
    _require(plain, f"{name} must be UTF-8, and {value!r} is not: rename the file")


def _check_sources(sources: tuple[Source, ...]) -> None:
    _require(len(sources) > 0, "`sources` must name at least one raster")
    for source in sources:
        _check_source(source)


def _check_source(source: Source) -> None:
    _require(isinstance(source.path, str) and source.path != "", "a source's `path` must be a text that is not empty")
    _require(isinstance(source.layer, str), "a source's `layer` must be a text")
    _check_text(source.path, "a source's `path`")
    _check_text(source.layer, "a source's `layer`")
    if source.bands is not None:
        _require(len(source.bands) > 0 and all(map(_is_count, source.bands)), "`bands` must be numbers from 1 up")
    if source.window is not None:
        _require(
            len(source.window) == 4
            and all(isinstance(value, int) and not isinstance(value, bool) for value in source.window)
            and min(source.window[2:]) > 0,
            "`window` must be four whole numbers: column, row, width, height, the last two positive",
        )
    _require(source.crs is None or (isinstance(source.crs, str) and source.crs != ""), "`crs` must be a text")


def _check_choice(name: str, value: object, choices: Any) -> None:
    allowed = get_args(choices)
    _require(value in allowed, f"`{name}` must be one of {', '.join(allowed)}, not {value!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_count(value: object, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _require(condition: bool, rule: str) -> None:
    if not condition:
        raise JobInvalid(f"The job breaks a rule: {rule}.")
