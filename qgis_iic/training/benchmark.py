"""Runs a benchmark protocol: reads each region once, and evaluates every setting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from qgis_iic.training.baselines import trunk_features
from qgis_iic.training.evaluation import Setting, evaluate
from qgis_iic.training.model_file import read_model
from qgis_iic.training.places import Protocol
from qgis_iic.training.regions import Region, RegionSource, read_region

Tell = Callable[[str], None]


def run_benchmark(model: Path, protocol: Protocol, tell: Tell = lambda text: None) -> dict[str, Any]:
    """The figures of a model, as plain data: `draws`, `note`, and `settings` as `evaluation.evaluate` gives them.

    Each setting also says its `kind`: `own` where a place is matched on its own ground, `cross` where on another's.

    Raises:
        IicError: see `model_file.read_model`, `regions.read_region` and `evaluation.evaluate`.
    """
    proto, metadata = read_model(model)
    trunk = trunk_features(proto, metadata)
    regions: dict[RegionSource, Region] = {}
    for place in protocol.places:
        for source in (*place.match, *place.score):
            tell(f"Network on {source.imagery}")
            regions[source] = read_region(source, model, metadata)
    settings = []
    for name, origin, target in protocol.settings():
        tell(name)
        setting = Setting(name, [regions[source] for source in origin.match], [regions[s] for s in target.score])
        kind = "own" if origin is target else "cross"
        # The file's own mapping may have seen labels of the place that is scored: no business of a cross setting.
        known = metadata if kind == "own" else replace(metadata, building_clusters=None)
        settings.append({**evaluate(setting, known, protocol.draws, tell, trunk), "kind": kind})
    return {"draws": asdict(protocol.draws), "note": protocol.note, "settings": settings}
