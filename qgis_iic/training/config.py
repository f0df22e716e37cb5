"""The training configuration: a TOML file, checked before anything is read or computed.

Every checkpoint holds its configuration, and so does the model that is exported from it.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from qgis_iic.protocol.errors import JobInvalid, SourceNotFound
from qgis_iic.protocol.model_metadata import NODATA
from qgis_iic.protocol.names import names_a_file
from qgis_iic.training.network import CHANNELS, STRIDE, TILE_SIZE, halo
from qgis_iic.training.smoothness import Difference

Section = TypeVar("Section")

FRONT_SIDES = {"none": 1, "sobel": 3, "zca": 1, "zca_patches": 7}
"""Sides in pixels of the fixed kernels in front of the network."""


@dataclass(frozen=True)
class NetworkConfig:
    """See `network.IICNetwork`.

    Attributes:
        preprocessing: `sobel` adds the derivatives of the grey image; `zca` whitens the bands of each pixel, and
            `zca_patches` patches of 7x7; see `preprocessing`.
    """

    width: float = 0.25
    dilations: tuple[int, ...] = (1, 1, 2, 2, 2, 2)
    clusters: int = 96
    classes: int = 3
    multi_layer: bool = False
    preprocessing: str = "none"

    def __post_init__(self) -> None:
        _require(0 < self.width <= 4, "network.width must be above 0 and at most 4")
        _require(len(self.dilations) == len(CHANNELS), f"network.dilations must be {len(CHANNELS)} numbers")
        _require(all(d >= 1 for d in self.dilations), "network.dilations must be 1 or more")
        _require(2 <= self.clusters <= NODATA, f"network.clusters must be 2 to {NODATA}")
        _require(2 <= self.classes <= NODATA, f"network.classes must be 2 to {NODATA}")
        _require(self.preprocessing in FRONT_SIDES, f"network.preprocessing must be one of {', '.join(FRONT_SIDES)}")
        _require(2 * self.halo < TILE_SIZE, f"network.dilations must see less than a tile of {TILE_SIZE} pixels")

    @property
    def halo(self) -> int:
        """See `network.halo`."""
        return halo(self.dilations, self.multi_layer, FRONT_SIDES[self.preprocessing])


@dataclass(frozen=True)
class ObjectiveConfig:
    """See `iic_loss`, `network.Decoder`, and for the weights that are 0 unless asked for, the modules they name.

    Attributes:
        displacement: half-width d of the square of displacements, in pixels of the features: the loss is taken at
            half resolution, so that d = 4 reaches 8 pixels of the chip, at a quarter of the cost.
        displacements_per_step: how many of them each step draws, (0, 0) always among them.
        lambda_clusters, lambda_classes: weight of the marginal entropies in the loss of either head.
        main_head_trains_trunk: as published. Its few classes have no use for most of what tells clusters apart, and
            the trunk lets go of that; without it the main head only reads what the over-clustering head has taught.
        cluster_head: `iic` is the over-clustering head as it was trained; `k_means` replaces it after the last step,
            see `prototypes`.
        reconstruction_weight: of the mean squared error of the rebuilt normalised chip; 0 trains the plain objective.
        class_map_weight: of the same error, rebuilt from the over-clustering head's map alone, see `reconstruction`.
        normalised_cut_weight, normalised_cut_sigma: of the soft normalised cut of that map, and its sigma_I in
            deviations, see `normalised_cut`.
        smoothness_weight, smoothness_difference, smoothness_sigma: of the adjacent-pixel loss of that map, `squared` or
            `absolute`, and how much the image, in deviations, may differ for it to count; 0 counts all pixels alike.
    """

    displacement: int = 4
    displacements_per_step: int = 12
    lambda_clusters: float = 1.5
    lambda_classes: float = 1.5
    main_head_trains_trunk: bool = False
    cluster_head: str = "iic"
    reconstruction_weight: float = 3.0
    class_map_weight: float = 0.0
    normalised_cut_weight: float = 0.0
    normalised_cut_sigma: float = 0.2
    smoothness_weight: float = 0.0
    smoothness_difference: Difference = "squared"
    smoothness_sigma: float = 0.0

    def __post_init__(self) -> None:
        _require(self.displacement >= 0, "objective.displacement must be 0 or more")
        _require(self.displacements_per_step >= 1, "objective.displacements_per_step must be 1 or more")
        for name in ("lambda_clusters", "lambda_classes"):
            _require(getattr(self, name) >= 1, f"objective.{name} must be 1 or more")
        for name in ("reconstruction", "class_map", "normalised_cut", "smoothness"):
            _require(getattr(self, f"{name}_weight") >= 0, f"objective.{name}_weight must be 0 or more")
        _require(self.normalised_cut_sigma > 0, "objective.normalised_cut_sigma must be positive")
        _require(self.smoothness_sigma >= 0, "objective.smoothness_sigma must be 0 or more")
        differences = ("squared", "absolute")
        _require(
            self.smoothness_difference in differences, "objective.smoothness_difference must be squared or absolute"
        )
        _require(self.cluster_head in ("iic", "k_means"), "objective.cluster_head must be iic or k_means")


@dataclass(frozen=True)
class OptimisationConfig:
    """How long and how fast.

    Attributes:
        steps: in all; training also ends with the minutes given on the command line.
        learning_rate: of Adam.
        chips: per step; the joint is a statistic of all of them together.
        chip_size: side of a chip in pixels.
        jitter: strength of the photometric jitter, see `pairs.jitter_colours`.
        least_usable: share of a chip's pixels that must be usable for it to be drawn.
        checkpoint_minutes: time between checkpoints.
        collapse_patience: steps in a row without information that end the training; the runs of models/ablations.toml
            begin with 46 at most.
    """

    steps: int = 1500
    learning_rate: float = 7e-4
    chips: int = 12
    chip_size: int = 128
    jitter: float = 0.1
    least_usable: float = 0.25
    checkpoint_minutes: float = 3.0
    collapse_patience: int = 75

    def __post_init__(self) -> None:
        for name in ("steps", "chips", "learning_rate", "collapse_patience", "checkpoint_minutes"):
            _require(getattr(self, name) > 0, f"optimisation.{name} must be positive")
        _require(self.chip_size >= 16, "optimisation.chip_size must be 16 or more")
        _require(self.chip_size % (2 * STRIDE) == 0, f"optimisation.chip_size must be a multiple of {2 * STRIDE}")
        _require(0 <= self.jitter < 1, "optimisation.jitter must be 0 or more and below 1")
        _require(0 < self.least_usable <= 1, "optimisation.least_usable must be above 0 and at most 1")


@dataclass(frozen=True)
class HeldOutConfig:
    """Ground that no step draws from, and what is decided by it, without a label.

    Attributes:
        share: of each raster's ground, in blocks of a chip; 0 holds nothing out and decides nothing.
        criterion: what is to be small, `loss` or `rank`: the objective, which goes on falling when the clusters have
            begun to forget what tells roofs from ground, or the effective rank of the features, which rises then.
        chips: fixed ones that are evaluated, of all rasters by their share.
        evaluation_steps: steps between two evaluations.
        patience: evaluations in a row without improvement that end the training.
        seed_steps: after which the best of several seeds is chosen, that then goes on alone.
        picture_steps: steps between two picture sheets, see `sheets`; 0 makes none.
    """

    share: float = 0.05
    criterion: str = "loss"
    chips: int = 32
    evaluation_steps: int = 100
    patience: int = 5
    seed_steps: int = 150
    picture_steps: int = 200

    def __post_init__(self) -> None:
        _require(0 <= self.share < 0.5, "held_out.share must be 0 or more and below 0.5")
        _require(self.criterion in ("loss", "rank"), "held_out.criterion must be loss or rank")
        for name in ("chips", "evaluation_steps", "patience", "seed_steps"):
            _require(getattr(self, name) > 0, f"held_out.{name} must be positive")
        _require(self.picture_steps >= 0, "held_out.picture_steps must be 0 or more")


@dataclass(frozen=True)
class ImagerySource:
    """Rasters of one place.

    Attributes:
        path: below the data folder, where `*` and `?` name several rasters; or absolute, or anything else that GDAL
            opens.
        bands: 1-based, in the order of the configuration's band names.
        share: of the chips that come from here, relative to the other sources.
        place, licence, attribution: for the model's card.
        window: column, row, width and height of the part that is used, in pixels of the raster; all of it without.
        crs: WKT or `AUTHORITY:CODE` that overrides the raster's own.
    """

    path: str
    bands: tuple[int, ...]
    share: float = 1.0
    place: str = ""
    licence: str = ""
    attribution: str = ""
    window: tuple[int, ...] | None = None
    crs: str | None = None

    def __post_init__(self) -> None:
        sides = self.window is None or (len(self.window) == 4 and min(self.window[2:]) > 0)
        _require(sides, "imagery.window must be column, row, width, height")
        deep = self.path.replace("\\", "/").split("/")
        _require(all("**" not in part or part == "**" for part in deep), f"imagery.path {self.path} has ** in a name")
        _require(bool(self.path.strip()), "imagery.path must not be empty")

    @property
    def is_elsewhere(self) -> bool:
        """Whether the path does not depend on the data folder."""
        return Path(self.path).is_absolute() or not names_a_file(self.path)

    def files(self, data: Path) -> list[str]:
        """Raises SourceNotFound where the folder holds no such raster."""
        if self.is_elsewhere:
            return [self.path]
        # Brackets are part of a name, as QGIS and browsers number copies.
        found = sorted(data.glob(self.path.replace("[", "[[]")))
        if not found:
            raise SourceNotFound(f"There is no imagery {self.path} in {data}. Name the folder that holds it: --data.")
        return list(map(str, found))


@dataclass(frozen=True)
class TrainingConfig:
    """All of it.

    Attributes:
        name: of the model.
        seeds: of the weights' first values, the chips, the views and the displacements; of several, each trains for
            `held_out.seed_steps`, and the one that is best on the held-out ground goes on.
        data: folder of the imagery, relative to the configuration file.
        bands: names, in input order.
        gsd: ground sampling distance that all imagery is brought to, in metres.
        gsd_range: ground sampling distances, in metres, at which the model takes rasters as they are.
        note: for the model's card: what a user should know of this training.
    """

    name: str
    data: str
    bands: tuple[str, ...]
    imagery: tuple[ImagerySource, ...]
    seeds: tuple[int, ...] = (0,)
    gsd: float = 0.3
    gsd_range: tuple[float, float] = (0.2, 0.45)
    note: str = ""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimisation: OptimisationConfig = field(default_factory=OptimisationConfig)
    held_out: HeldOutConfig = field(default_factory=HeldOutConfig)

    def __post_init__(self) -> None:
        _require(1 <= len(self.bands) <= 8, "bands must name 1 to 8 bands")
        _require(all(0 <= seed < 2**32 for seed in self.seeds), "seeds must be 0 or more, and below 2^32")
        _require(len(set(self.seeds)) == len(self.seeds) > 0, "seeds must name at least one, and none twice")
        _require(len(self.seeds) == 1 or self.held_out.share > 0, "several seeds need held_out.share above 0")
        shorter = len(self.seeds) == 1 or self.held_out.seed_steps <= self.optimisation.steps
        _require(shorter, "held_out.seed_steps must be at most optimisation.steps")
        _require(len(self.gsd_range) == 2, "gsd_range must be two numbers")
        _require(0 < self.gsd_range[0] <= self.gsd <= self.gsd_range[1], "gsd must lie in gsd_range")
        _require(len(self.imagery) > 0, "there must be at least one [[imagery]]")
        for source in self.imagery:
            _require(len(source.bands) == len(self.bands), f"{source.path} must name {len(self.bands)} bands")
            _require(source.share > 0, f"the share of {source.path} must be positive")
        _require(
            self.objective.displacement * STRIDE < self.optimisation.chip_size // 2,
            "objective.displacement must stay below a quarter of the chip",
        )

    @property
    def total_steps(self) -> int:
        """Of all seeds together."""
        return self.optimisation.steps + (len(self.seeds) - 1) * self.held_out.seed_steps

    def to_record(self) -> dict[str, Any]:
        """Plain data that `from_record` reads back."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> TrainingConfig:
        """Raises JobInvalid for unknown, missing or ill-typed entries and for broken rules."""
        sections: dict[str, Any] = dict(record)
        for name, kind in (
            ("network", NetworkConfig),
            ("objective", ObjectiveConfig),
            ("optimisation", OptimisationConfig),
            ("held_out", HeldOutConfig),
        ):
            sections[name] = _section(kind, sections.get(name, {}), f"{name}.")
        sources = sections.get("imagery", ())
        _require(isinstance(sources, list | tuple), "imagery must be written as [[imagery]]")
        sections["imagery"] = tuple(_section(ImagerySource, source, "imagery.") for source in sources)
        return _section(cls, sections, "")


def load_config(path: Path, data: Path | None = None) -> TrainingConfig:
    """Reads and checks a configuration file.

    Args:
        path: of the TOML file; the folder that it names is relative to it.
        data: folder of the imagery, instead of that one.

    Raises:
        JobInvalid: see `read_toml`; also where a rule is broken.
        SourceNotFound: see `read_toml`.
    """
    record = read_toml(path)
    _require(data is not None or "data" in record, "it must name the folder `data`")
    record["data"] = str((data or path.parent / str(record["data"])).resolve())
    return TrainingConfig.from_record(record)


def read_toml(path: Path) -> dict[str, Any]:
    """What a configuration file says, unchecked.

    Raises:
        JobInvalid: not TOML.
        SourceNotFound: there is no such file.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SourceNotFound(f"There is no training configuration at {path}.") from error
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise JobInvalid(f"{path} can't be read as a TOML file: {error}.") from error


def _section(kind: type[Section], record: Any, prefix: str) -> Section:
    """A dataclass of plain data: arrays become tuples, and numbers must be numbers."""
    _require(isinstance(record, Mapping), f"`{prefix or 'the file'}` must be a table")
    declared: dict[str, Any] = {entry.name: entry for entry in fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(record.keys() - declared.keys())
    _require(not unknown, f"it has unknown entries: {', '.join(prefix + name for name in unknown)}")
    missing = [
        prefix + name
        for name, entry in declared.items()
        if name not in record and entry.default is MISSING and entry.default_factory is MISSING
    ]
    _require(not missing, f"it lacks {', '.join(missing)}")
    for name, value in record.items():
        check = _TYPES.get(str(declared[name].type))
        _require(check is None or check(value), f"{prefix}{name} has a value of the wrong type: {value!r}")
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in record.items()})


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _all(check: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list | tuple) and all(map(check, value))


_TYPES: dict[str, Callable[[object], bool]] = {
    "bool": lambda value: isinstance(value, bool),
    "int": _is_whole,
    "float": _is_number,
    "str": lambda value: isinstance(value, str),
    "tuple[int, ...]": _all(_is_whole),
    "tuple[int, ...] | None": lambda value: value is None or _all(_is_whole)(value),
    "str | None": lambda value: value is None or isinstance(value, str),
    "tuple[float, float]": _all(_is_number),
    "tuple[str, ...]": _all(lambda value: isinstance(value, str)),
}


def _require(condition: bool, rule: str) -> None:
    if not condition:
        raise JobInvalid(f"The training configuration breaks a rule: {rule}.")
