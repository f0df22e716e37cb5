"""A model adapted to other imagery, without labels: its layers are normalised half by that imagery's own moments.

Light, season, sensor and roofing change what the layers of a network answer. Half-way between the moments of training
and those of the new imagery, clusters and heads keep more of their meaning: the mapping of one place finds more in
another. All the way would be too far: how much of the ground is roofs is in the moments, too. For the same reason they
should be those of the place as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from qgis_iic.engine.planning import Plan, plan, warnings_of
from qgis_iic.engine.raster import open_raster
from qgis_iic.engine.tiling import Window
from qgis_iic.protocol.errors import ModelInvalid, SourceUnsuitable
from qgis_iic.protocol.job import Source
from qgis_iic.protocol.model_metadata import ModelMetadata
from qgis_iic.protocol.names import raster_name
from qgis_iic.training.export import LAYER_MOMENTS
from qgis_iic.training.graph_network import GraphNetwork, check_parity
from qgis_iic.training.model_file import (
    ADAPTATION,
    MATCHED_BEFORE,
    check_target,
    read_model,
    weights_checksum,
    write_model,
)
from qgis_iic.training.regions import Advance, ignore

SHARE = 0.5
"""Of the new imagery's moments. Chosen on the ground of models/settings.toml, where 0 and a quarter found less."""
CHIPS = 24
CHIP_SIZE = 128
LEAST_DEVIATION = 1e-6
"""Of a band that hardly changes; in the units of the imagery."""
LEAST_VALID = 0.5
"""Share of a chip's pixels with data. The rest counts as ground in the moments, and so full chips come first."""
FULL = 0.995
"""Share of a chip's pixels with data from which it counts as full: the shadow of a roof may be black, too."""
ATTEMPTS = 40
"""Per chip, at finding a full one."""

Warn = Callable[[str], None]
Floats = NDArray[np.float32]
Chip = tuple[Floats, NDArray[np.bool_]]
"""Raw values, [bands, S, S], and where they are valid, [S, S]."""


def pass_over(_: str) -> None:
    """The `Warn` of those who don't care."""


def adapt_file(
    model: Path, sources: Sequence[Source], output: Path, advance: Advance = ignore, warn: Warn = pass_over
) -> ModelMetadata:
    """Writes `model` adapted to rasters; what it takes for buildings it still does, and nothing is measured yet.

    Args:
        model: fp32 file that knows the moments of its training.
        sources: rasters of the place.
        output: file to write.
        advance: is told of the chips that are found, and of 0 after each that is not one.
        warn: is told what extraction warns of, too.

    Raises:
        ModelInvalid: the model does not know them, or see `graph_network.GraphNetwork`.
        SourceUnsuitable: see `draw_chips`.
        IicError: see `engine.raster` and `model_file.write_model`.
    """
    check_target(output)
    proto, metadata = read_model(model)
    _known_moments(metadata)
    made = adapted(proto, metadata, chips_of(metadata, sources, advance, warn))
    # The order of the facts is that of what was done.
    facts = {name: fact for name, fact in metadata.training.items() if name not in (LAYER_MOMENTS, ADAPTATION)}
    record = {
        "from_weights_sha256": metadata.weights_sha256,
        "imagery": [raster_name(source.path) for source in sources],
        "bands": None if sources[0].bands is None else list(sources[0].bands),
        "share": SHARE,
    }
    matching = {**metadata.matching, MATCHED_BEFORE: True} if metadata.matching else {}
    metadata = replace(
        metadata,
        training={**facts, ADAPTATION: record},
        matching=matching,
        metrics={},
        weights_sha256=weights_checksum(made),
    )
    write_model(made, metadata, output)
    return metadata


def adapted(model: onnx.ModelProto, metadata: ModelMetadata, chips: Sequence[Chip]) -> onnx.ModelProto:
    """The graph with layers normalised half by what they answer to squares of a place.

    Raises:
        ModelInvalid: as `adapt_file`.
    """
    moments = (metadata.mean, metadata.std)
    network = GraphNetwork(model, moments)
    mean, std = (np.asarray(moment, np.float32)[:, None, None] for moment in moments)
    image = np.stack([np.where(valid, (values - mean) / std, 0) for values, valid in chips]).astype(np.float32)
    network.adapt(torch.from_numpy(image), _known_moments(metadata), SHARE)
    made = network.written_into(model)
    check_parity(made, network, moments)
    return made


def adapted_values(values: Floats, valid: NDArray[np.bool_], metadata: ModelMetadata, chips: Sequence[Chip]) -> Floats:
    """Imagery normalised half by the moments of its place, as layers are: what a simpler way can have of adaptation.

    Args:
        values: raw, float32 [bands, H, W].
        valid: bool [H, W].
        metadata: of the model whose moments are the other half.
        chips: of the place.

    Returns:
        float32 [bands, H, W] in the units of `values`, 0 where not valid.
    """
    of_place = np.concatenate([chip[:, known] for chip, known in chips], axis=1)
    mean, std = (np.asarray(moment, np.float32) for moment in (metadata.mean, metadata.std))
    new_mean = SHARE * of_place.mean(axis=1) + (1 - SHARE) * mean
    gain = (std / np.maximum(of_place.std(axis=1), LEAST_DEVIATION)) ** SHARE
    brought = (values - new_mean[:, None, None]) * gain[:, None, None] + mean[:, None, None]
    return np.where(valid, brought, 0).astype(np.float32)


def chips_of(
    metadata: ModelMetadata, sources: Sequence[Source], advance: Advance = ignore, warn: Warn = pass_over
) -> list[Chip]:
    """Squares of rasters as the network of a model gets them, see `draw_chips`.

    Raises:
        SourceUnsuitable: see `draw_chips`.
        IicError: see `engine.raster`.
    """
    with ExitStack() as rasters:
        plans = [
            plan(rasters.enter_context(open_raster(source.path, source.crs)), source, metadata, metadata.tile_size)
            for source in sources
        ]
        for warning in dict.fromkeys(warning for made in plans for warning in warnings_of(made, metadata)):
            warn(warning)
        return draw_chips(plans, advance)


def is_adaptable(metadata: ModelMetadata) -> bool:
    """Whether a model knows the moments of its training."""
    return LAYER_MOMENTS in metadata.training


def _known_moments(metadata: ModelMetadata) -> Sequence[Sequence[Sequence[float]]]:
    if not is_adaptable(metadata):
        raise ModelInvalid(
            "The model can't be adapted: it is adapted already, or of an export that did not keep the moments of its "
            "layers. Adapt the model that it was made from."
        )
    found: Sequence[Sequence[Sequence[float]]] = metadata.training[LAYER_MOMENTS]
    return found


def draw_chips(plans: Sequence[Plan], advance: Advance = ignore) -> list[Chip]:
    """Squares of `CHIP_SIZE` at `CHIPS` random places, the same ones every time; rasters by their size.

    Those that are full of data come first; where there are too few, the next fullest are taken.

    Raises:
        SourceUnsuitable: hardly any place has enough data.
    """
    generator = np.random.default_rng(0)
    sizes = np.array([made.window.width * made.window.height for made in plans], np.float64)
    full: list[Chip] = []
    partial: list[Chip] = []
    for _ in range(CHIPS * ATTEMPTS):
        made = plans[generator.choice(len(plans), p=sizes / sizes.sum())]
        values, valid = made.reader.read(_random_window(made.window, generator))
        black = np.asarray(made.reader.offset, np.float32)[:, None, None]  # what the raw value 0 has become
        valid &= (values != black).any(axis=0)  # rims of it are often left undeclared
        if valid.mean() >= FULL:
            full.append((values, valid))
            advance(1)
            if len(full) == CHIPS:
                return full
            continue
        advance(0)
        if valid.mean() >= LEAST_VALID:
            partial = sorted([*partial, (values, valid)], key=lambda chip: float(-chip[1].mean()))[:CHIPS]
    chips = [*full, *partial][:CHIPS]
    if len(chips) < CHIPS / 2:
        raise SourceUnsuitable(
            f"Hardly any squares of {CHIP_SIZE} pixels of which half has data were found in the imagery, too few to "
            "know the place by. Cut out the part with data, or take a larger raster."
        )
    advance(len(chips) - len(full))
    return chips


def _random_window(whole: Window, generator: np.random.Generator) -> Window:
    """A square in `whole`, or in its middle where that is too narrow."""
    col, row = (
        start + (int(generator.integers(room + 1)) if room >= 0 else room // 2)
        for start, room in ((whole.col, whole.width - CHIP_SIZE), (whole.row, whole.height - CHIP_SIZE))
    )
    return Window(col, row, CHIP_SIZE, CHIP_SIZE)
