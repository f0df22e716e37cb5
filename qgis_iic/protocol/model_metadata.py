"""What a model file says of itself, and the names of its graph's inputs and outputs.

An .onnx of this project holds one JSON object under the metadata key `qgis_iic` (`ModelMetadata`), and beside it the
keys that the Deepness plugin reads, derived from the same facts. The graph has

- the input `image`, float32 [N, bands, H, W]: raw pixel values, H and W multiples of `stride`;
- the overridable initializer `building_clusters`, float32 [clusters]: 1 for a cluster that is a building, else 0.
  Matching again therefore changes metadata only: the engine feeds the mapping of the metadata, or of the job;
- the outputs `cluster` (over-clustering head), `class` (main head) and `building_probability` (0 to 254 for 0 to 1),
  each uint8 [N, H, W].

What is a building is decided by the clusters, or by the probability where the graph has a building head of its own:
its probability is then that head's and does not depend on the mapping, which the engine need not feed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

from qgis_iic.protocol.errors import ModelInvalid

VERSION = 1
KEY = "qgis_iic"

IMAGE_INPUT = "image"
BUILDING_CLUSTERS_INPUT = "building_clusters"
CLUSTER_OUTPUT = "cluster"
CLASS_OUTPUT = "class"
PROBABILITY_OUTPUT = "building_probability"
OUTPUTS = (CLUSTER_OUTPUT, CLASS_OUTPUT, PROBABILITY_OUTPUT)

Decision = Literal["clusters", "probability"]

PROBABILITY_SCALE = 254
NODATA = 255
"""No-data value of every output raster; hence at most 255 clusters and a probability scale of 254."""
LEAST_BUILDING_PROBABILITY = PROBABILITY_SCALE // 2
"""Where the probability decides, a building is where it is at least one half: from this byte on."""


@dataclass(frozen=True)
class ModelMetadata:
    """The facts that inference needs, and where they come from.

    Attributes:
        name: of the model.
        bands: names of the bands in input order, such as ("red", "green", "blue").
        gsd: ground sampling distance of the training chips, in metres.
        gsd_range: smallest and largest ground sampling distance, in metres, that the network takes without resampling.
        dtype: of the rasters whose raw values the network takes; values of other types are first brought to the same
            mean and deviation, band by band.
        mean, std: of the training imagery per band, in raw values; `mean` also stands in for pixels without data.
        tile_size: side of the tiles in pixels, halo included.
        halo: pixels at the rim of a tile whose answer depends on what lies outside; at least half the receptive field.
        stride: tile origins and sizes are multiples of it.
        clusters: number of clusters of the over-clustering head.
        classes: number of classes of the main head.
        building_clusters: clusters that are buildings; None before matching.
        decision: what says where a building is: each pixel's largest cluster, or a probability of at least one half.
            That is the sum of the building clusters' shares in the softmax, or what a building head in the graph says.
        matching: how they were matched: objective, labels, and support per cluster.
        training: imagery with licence and attribution, configuration, steps, seed.
        metrics: what was measured where, with the baselines.
        versions: of the programs that made the file.
        weights_sha256: checksum of the graph without its metadata.
        precision: of a file in another precision than fp32: its `kind`, `of_weights_sha256`, the checksum of the fp32
            graph that it was made from, and how far their answers agree. Empty in an fp32 file.
    """

    name: str
    bands: tuple[str, ...]
    gsd: float
    gsd_range: tuple[float, float]
    dtype: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    tile_size: int
    halo: int
    stride: int
    clusters: int
    classes: int
    building_clusters: tuple[int, ...] | None = None
    decision: Decision = "clusters"
    matching: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    weights_sha256: str = ""
    precision: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises ModelInvalid where the facts contradict each other."""
        _require(len(self.bands) > 0, "it names no band")
        _require(len(self.mean) == len(self.std) == len(self.bands), "mean and deviation do not fit its bands")
        _require(min(self.std) > 0, "a standard deviation is not positive")
        smallest, largest = self.gsd_range
        _require(0 < smallest <= self.gsd <= largest, "its ground sampling distance is outside its range")
        _require(self.stride > 0 and self.halo >= 0, "its stride or halo is out of range")
        _require(self.halo % self.stride == 0, "its halo is no multiple of its stride")
        _require(self.tile_size % self.stride == 0, "its tile size is no multiple of its stride")
        _require(self.tile_size > 2 * self.halo, "its tiles have no core")
        _require(0 < self.clusters <= NODATA and 0 < self.classes <= NODATA, "it has more clusters than a byte holds")
        _require(self.decision in get_args(Decision), f"it decides by {self.decision!r}, which is not known here")
        if self.building_clusters is not None:
            check_building_clusters(self.building_clusters, self.clusters)

    def matched(self, building_clusters: tuple[int, ...], matching: dict[str, Any]) -> ModelMetadata:
        """The same model with another mapping, not yet measured, by which each pixel's largest cluster then decides."""
        return replace(self, building_clusters=building_clusters, decision="clusters", matching=matching, metrics={})

    def is_made_from(self, original: ModelMetadata) -> bool:
        """Whether this is another precision of that very model, its decision included."""
        same = self.precision.get("of_weights_sha256") == original.weights_sha256
        mine, its = ((each.decision, each.building_clusters) for each in (self, original))
        return same and mine == its

    def to_properties(self) -> dict[str, str]:
        """Key to text, as ONNX stores metadata."""
        return {KEY: json.dumps({"version": VERSION, **asdict(self)})} | self._deepness_properties()

    def _deepness_properties(self) -> dict[str, str]:
        """The keys of the Deepness plugin, JSON-encoded as it reads them; lengths in cm a pixel, overlap in percent."""
        overlap = 100 * 2 * self.halo / self.tile_size
        return {
            "model_type": json.dumps("Segmentor"),
            "class_names": json.dumps({str(cluster): f"cluster {cluster}" for cluster in range(self.clusters)}),
            "resolution": json.dumps(100 * self.gsd),
            "tiles_size": json.dumps(self.tile_size),
            "tiles_overlap": json.dumps(round(overlap)),
        }

    @classmethod
    def from_properties(cls, properties: Mapping[str, str]) -> ModelMetadata:
        """Parses and validates.

        Raises:
            ModelInvalid: the key is missing, has another version, or its facts are incomplete or contradict each other.
        """
        if KEY not in properties:
            raise ModelInvalid(
                f"The model has no metadata under the key `{KEY}`: it was not exported by `iic export`, "
                "and its bands, ground sampling distance and clusters are unknown."
            )
        try:
            record = json.loads(properties[KEY])
            version = record.pop("version")
            if version != VERSION:
                raise ModelInvalid(f"The model's metadata has version {version}; this release reads version {VERSION}.")
            names = {field.name for field in fields(cls)} & record.keys()
            facts: dict[str, Any] = {
                name: tuple(record[name]) if isinstance(record[name], list) else record[name] for name in names
            }
            return cls(**facts)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelInvalid(f"The model's metadata is damaged: {error!r}.") from error


def check_building_clusters(building_clusters: tuple[int, ...], clusters: int) -> None:
    """Raises ModelInvalid where a cluster number is not one of the `clusters` of the model."""
    outside = [cluster for cluster in building_clusters if not 0 <= cluster < clusters]
    if outside:
        raise ModelInvalid(
            f"The model has no building cluster {', '.join(map(str, outside))}: not one of its {clusters} clusters, "
            f"which are 0 to {clusters - 1}."
        )


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise ModelInvalid(f"The model is unusable: {problem}.")
