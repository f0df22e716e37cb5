"""What the engine says while it runs: one JSON object a line on its standard output, and nothing else there.

A run is `started`, any number of `progress` and `warning`, then exactly one `result` or `error`. A process that ends
with exit status 0 has said `result`; one that said `error` exits with that error's status.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Union

from qgis_iic.protocol.errors import EventInvalid

VERSION = 1


@dataclass(frozen=True)
class Started:
    """The model is loaded and the first tile comes next.

    Attributes:
        provider: the ONNX Runtime execution provider that really bound, such as `CPUExecutionProvider`; of a training,
            the device.
        model: path of the model file that is run, or made.
        tiles: number of tiles of all sources together, of steps, or of seconds of fine-tuning.
        version: of this protocol.
    """

    kind: ClassVar[str] = "started"
    provider: str
    model: str
    tiles: int
    version: int = VERSION


@dataclass(frozen=True)
class Progress:
    """Tiles or steps that are through.

    Attributes:
        source: path of the raster that is worked on, or of what is trained.
        done, total: tiles of all sources together, steps of a training, or seconds of a fine-tuning.
        remaining: estimate of the seconds to the end of the run.
    """

    kind: ClassVar[str] = "progress"
    source: str
    done: int
    total: int
    remaining: float | None = None


@dataclass(frozen=True)
class Warned:
    """Something that the user should know and that does not stop the run."""

    kind: ClassVar[str] = "warning"
    message: str


@dataclass(frozen=True)
class Layer:
    """A polygon layer that was written.

    Attributes:
        source: path of the raster.
        name: of the layer in the GeoPackage.
        features: number of buildings.
        area: of all of them, in m2.
    """

    source: str
    name: str
    features: int
    area: float


@dataclass(frozen=True)
class Result:
    """The output is complete under its name.

    Attributes:
        output: path of the GeoPackage, the GeoTIFF, the model or the report.
        layers: what was written into the GeoPackage; empty for all but `extract`.
        seconds: wall time of each stage, by its name.
        figures: of a matching or an evaluation, by their name.
    """

    kind: ClassVar[str] = "result"
    output: str
    layers: tuple[Layer, ...]
    seconds: dict[str, float]
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Failed:
    """The run ended with a named error (`protocol.errors`); nothing was written."""

    kind: ClassVar[str] = "error"
    code: str
    message: str


Event = Union[Started, Progress, Warned, Result, Failed]
Emit = Callable[[Event], None]

_KINDS: dict[str, type[Event]] = {kind.kind: kind for kind in (Started, Progress, Warned, Result, Failed)}


def encode(event: Event) -> str:
    """One line, without its end."""
    return json.dumps({"event": event.kind, **asdict(event)}, ensure_ascii=True)


def decode(line: str) -> Event:
    """The event of a line.

    Raises:
        EventInvalid: not JSON, an unknown kind, or missing fields. Unknown fields are passed over.
    """
    try:
        record: dict[str, Any] = json.loads(line)
        kind = _KINDS[record["event"]]
        known = {each.name: record[each.name] for each in fields(kind) if each.name in record}
        if kind is Result:
            known["layers"] = tuple(Layer(**layer) for layer in known["layers"])
        return kind(**known)
    except (ValueError, KeyError, TypeError) as error:
        raise EventInvalid(f"The engine said something that is no event: {line[:200]!r}") from error
