"""Runs a benchmark protocol: reads each region once, evaluates every setting, and takes pictures of some tiles."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import onnx

from qgis_iic.protocol.errors import SourceUnsuitable
from qgis_iic.protocol.job import Source
from qgis_iic.protocol.model_metadata import ModelMetadata
from qgis_iic.training.adaptation import adapted, adapted_values, chips_of, is_adaptable
from qgis_iic.training.baselines import Features, trunk_features
from qgis_iic.training.evaluation import Setting, decided, evaluate, prediction
from qgis_iic.training.labels import UNLABELLED
from qgis_iic.training.model_file import COARSE_LOGITS, open_inner, read_model
from qgis_iic.training.pictures import Example, choose_examples
from qgis_iic.training.places import Place, Protocol
from qgis_iic.training.regions import Advance, Region, RegionReader, RegionSource, ignore, labelled_plan, read_shares
from qgis_iic.training.supervised import Supervised, train_supervised

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Benchmark:
    """What a model was found to be worth.

    Attributes:
        figures: plain data: `draws`, `note`, `supervised_steps` (None without such a network), and `settings` as
            `evaluation.evaluate` gives them. Each also says its `kind`: `own` where a place is matched on its own
            ground, `cross` where on another's.
        examples: pictures of the settings of kind `own`, by name: of the mapping for IoU from all labels, or of the
            file's own where there are none to match on.
    """

    figures: dict[str, Any]
    examples: dict[str, list[Example]]


def run_benchmark(
    model: Path,
    protocol: Protocol,
    tell: Tell = lambda text: None,
    baselines: bool = True,
    adapt: bool = True,
    supervised_steps: int | None = None,
    advance: Advance = ignore,
) -> Benchmark:
    """Scores a model file by a protocol, beside the baselines or, where models are compared, for itself.

    Args:
        model: file.
        protocol: what is matched on and scored on.
        tell: told what is being done.
        baselines: whether they are scored as well.
        adapt: whether the model adapted to each place is, too, where it can be and there is something to match on.
        supervised_steps: of the supervised network, which is trained for each draw and is slow; None leaves it out.
        advance: is told of the tiles that the network is through with.

    Raises:
        IicError: see `model_file.read_model`, `regions.RegionReader`, `evaluation.evaluate` and
            `supervised.train_supervised`.
    """
    proto, metadata = read_model(model)
    trunk = trunk_features(proto, metadata) if baselines else None
    reader, regions = RegionReader(model), dict[RegionSource, Region]()
    for place in protocol.places:
        for source in (*place.match, *place.score):
            tell(f"Network on {source.imagery}")
            regions[source] = reader.read(source, advance)

    of_adapted = dict[Place, Mapping[RegionSource, Region]]()
    adapted_trunks = dict[RegionSource, Features]()
    if adapt and is_adaptable(metadata) and any(place.match for place in protocol.places):
        for place in protocol.places:
            tell(f"Network adapted to {place.name}")
            sources = (*place.match, *place.score)
            try:
                graph, of_adapted[place] = _adapted(proto, metadata, [regions[each] for each in sources])
            except SourceUnsuitable as error:
                tell(f"{place.name} has no row of the adapted model: {error.message}")
            else:
                if baselines and (features := trunk_features(graph, metadata)) is not None:
                    adapted_trunks |= dict.fromkeys(sources, features)

    @cache  # the settings that match on the same place share its networks
    def supervised(place: Place) -> Supervised | None:
        if supervised_steps is None or not place.match:
            return None
        match = [regions[source] for source in place.match]
        return train_supervised(proto, metadata, match, protocol.draws, supervised_steps, tell)

    settings = []
    examples: dict[str, list[Example]] = {}
    for name, origin, target in protocol.settings():
        tell(name)
        kind = "own" if origin is target else "cross"
        setting = _setting(name, origin, target, regions, regions)
        if kind == "cross" and setting.scores_what_it_matches:  # as of halves that are matched and scored in turn
            tell(f"{name} is left out: it is no other ground than what is matched on")
            continue
        if origin in of_adapted and target in of_adapted:
            adapted_setting = _setting(name, origin, target, of_adapted[origin], of_adapted[target])
            setting = replace(setting, adapted=adapted_setting, adapted_trunks=adapted_trunks)
        # The file's own mapping and head may have seen labels of what is scored: no business of a cross setting.
        known = metadata if kind == "own" else replace(metadata, building_clusters=None, matching={})
        found = evaluate(setting, known, protocol.draws, tell, trunk, baselines, supervised(origin))
        settings.append({**found, "kind": kind})
        if kind == "own":
            if setting.match:
                chosen = tuple(found["mappings"]["iou"]["building_clusters"])
                masks = prediction(setting.score, metadata, "iou", chosen)
            else:
                masks = decided(setting.score, metadata)
            examples[name] = choose_examples(setting.score, masks)
    figures = {
        "draws": asdict(protocol.draws),
        "note": protocol.note,
        "protocol": protocol.file,
        "supervised_steps": supervised_steps,
        "settings": settings,
    }
    return Benchmark(figures, examples)


def _setting(
    name: str,
    origin: Place,
    target: Place,
    match: Mapping[RegionSource, Region],
    score: Mapping[RegionSource, Region],
) -> Setting:
    return Setting(name, [match[source] for source in origin.match], [score[source] for source in target.score])


def _adapted(
    proto: onnx.ModelProto, metadata: ModelMetadata, regions: Sequence[Region]
) -> tuple[onnx.ModelProto, dict[RegionSource, Region]]:
    """The model adapted to the whole of a place's rasters, and the regions of the place with its shares.

    Their values are brought to the place as the model is, for the classifiers that go by these.
    """
    rasters = dict.fromkeys(
        Source(str(each.imagery), bands=each.bands, crs=each.crs) for each in (region.source for region in regions)
    )
    chips = chips_of(metadata, list(rasters))
    graph = adapted(proto, metadata, chips)
    logits = open_inner(graph, COARSE_LOGITS)
    found = {}
    for region in regions:
        with labelled_plan(region.source, metadata) as (made, _):
            shares = read_shares(logits, metadata, made, region.labels != UNLABELLED)
        values = adapted_values(region.values, region.valid, metadata, chips)
        found[region.source] = replace(region, values=values, shares=shares)
    return graph, found
