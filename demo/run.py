"""The main job from end to end, as a user of QGIS would run it without a screen.

    .venv/engine/bin/python demo/run.py [SCENE]

installs the packaged plugin into a scratch QGIS profile and lets `qgis_process` extract the buildings of a raster.
Without SCENE the raster is the made-up town of `town.py`, a fifth of which serves to match the model; what
is found in the rest is scored. Leaves `demo/out/buildings.gpkg` and `demo/out/buildings.png`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import geopandas as gpd
import town
from score import Score, score
from scratch_qgis import QgisFailed, ScratchQgis, scratch_qgis

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "demo" / "out"
BUILDINGS, PICTURE = OUT / "buildings.gpkg", OUT / "buildings.png"
TOWN, FOOTPRINTS, LABELLED_AREA = OUT / "scene.tif", OUT / "footprints.gpkg", OUT / "labelled_area.gpkg"
MATCHED_MODEL = OUT / "model.onnx"
MODEL = ROOT / "models" / "iic_rgb.onnx"
PACKAGE = ROOT / "dist" / "qgis_iic.zip"
# Not resolved: a virtual environment's interpreter is known by the path that it is started by.
ENGINE_PYTHON = ROOT / ".venv" / "engine" / "bin" / "python"
QGIS_PYTHON = Path("/usr/bin/python3")
TOWN_SEED = 7


class StageFailed(Exception):
    """A stage can't be done; the message says why and what to do."""


class Stages:
    """Announces the stages and keeps how long each took."""

    def __init__(self) -> None:
        self._seconds: list[tuple[str, float]] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        print(f"== {name}", flush=True)
        start = time.perf_counter()
        yield
        self._seconds.append((name, time.perf_counter() - start))

    def __str__(self) -> str:
        rows = [*self._seconds, ("all together", sum(seconds for _, seconds in self._seconds))]
        return "\n".join(f"  {name:<44}{seconds:7.1f} s" for name, seconds in rows)


def main() -> int:
    parser = argparse.ArgumentParser(description="Extracts buildings with the packaged plugin in a scratch QGIS.")
    parser.add_argument("scene", nargs="?", type=Path, help="your own raster (default: a made-up town, with a score)")
    scene: Path | None = parser.parse_args().scene
    try:
        demonstrate(None if scene is None else scene.absolute())
    except (StageFailed, QgisFailed) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: cancelled", file=sys.stderr)
        return 130
    return 0


def demonstrate(own_scene: Path | None) -> None:
    """All stages in their order.

    Raises:
        StageFailed, QgisFailed: a stage can't be done.
    """
    check_inputs(own_scene)
    OUT.mkdir(parents=True, exist_ok=True)
    remove_outputs(own_scene is None)
    stages = Stages()
    if own_scene is None:
        with stages.stage("make a town"):
            count = town.make(OUT, TOWN_SEED)
            print(f"{count} buildings in {TOWN}")
        with stages.stage("match the model on a corner"):
            match_model()
    scene, model = (TOWN, MATCHED_MODEL) if own_scene is None else (own_scene, MODEL)
    with scratch_qgis() as qgis, no_statistics_left(scene):
        with stages.stage("install the plugin into a scratch profile"):
            qgis.install(PACKAGE, "qgis_iic")
        with stages.stage("extract buildings with qgis_process"):
            extract(qgis, scene, model)
        with stages.stage("count and score"):
            result = None if own_scene else score(TOWN, FOOTPRINTS, LABELLED_AREA, BUILDINGS)
            found = describe(scene)
        with stages.stage("draw the picture with QGIS"):
            draw(qgis, scene, found, result)
    report(stages, found, result)


def check_inputs(own_scene: Path | None) -> None:
    """Raises StageFailed where something is missing that `make` or the user has to provide."""
    if own_scene is not None and not own_scene.is_file():
        raise StageFailed(f"There is no file {own_scene}.")
    needed = {
        PACKAGE: "Run `make package`.",
        MODEL: "It comes with the project; get it back from the repository.",
        ENGINE_PYTHON: "Run `make setup`.",
        QGIS_PYTHON: "QGIS's own Python is expected there.",
    }
    for path, remedy in needed.items():
        if not path.exists():
            raise StageFailed(f"{path} is missing. {remedy}")


def remove_outputs(town_too: bool) -> None:
    """Removes what an earlier run left; the town stays if it may be the raster of this run."""
    made = (TOWN, FOOTPRINTS, LABELLED_AREA, MATCHED_MODEL) if town_too else ()
    for path in (BUILDINGS, PICTURE, *made):
        path.unlink(missing_ok=True)


@contextmanager
def no_statistics_left(scene: Path) -> Iterator[None]:
    """QGIS keeps the statistics of a raster that it opens in a file beside it; here a new one is removed at the end."""
    statistics = scene.with_name(f"{scene.name}.aux.xml")
    existed = statistics.exists()
    try:
        yield
    finally:
        if not existed:
            statistics.unlink(missing_ok=True)


def match_model() -> None:
    """Writes the shipped model with a building head that is fitted on the labelled corner of the town."""
    iic = ENGINE_PYTHON.with_name("iic")
    places = ["--imagery", TOWN, "--labels", FOOTPRINTS, "--area", LABELLED_AREA]
    command = [iic, "match", MODEL, *places, "--head", "probe", "--output", MATCHED_MODEL]
    status = subprocess.run(command, check=False).returncode
    if status or not MATCHED_MODEL.exists():
        raise StageFailed(f"`iic match` ended with status {status}; its output above says why.")


def extract(qgis: ScratchQgis, scene: Path, model: Path) -> None:
    """Runs the plugin's algorithm, its engine in the project's own environment."""
    parameters = {"INPUT": scene, "MODEL": model, "LAYER_NAME": "buildings", "OUTPUT": BUILDINGS}
    qgis.process("iic:extractbuildings", parameters, {"QGIS_IIC_ENGINE_PYTHON": str(ENGINE_PYTHON)})
    if not BUILDINGS.exists():
        raise StageFailed(f"`qgis_process` reported success, yet {BUILDINGS} is not there.")


def describe(scene: Path) -> str:
    """What was found, in words."""
    buildings = gpd.read_file(BUILDINGS)
    area = f"{buildings['area_m2'].sum():,.0f}".replace(",", " ")
    return f"{len(buildings)} buildings with {area} m² in {scene.name}"


def draw(qgis: ScratchQgis, scene: Path, found: str, result: Score | None) -> None:
    """The imagery with the outlines over it; for the town also with the labelled corner and the score."""
    options = ["--title", found]
    if result is not None:
        options += ["--labelled-area", str(LABELLED_AREA)]
        options += ["--subtitle", f"Outside the labelled corner: {str(result).splitlines()[0]}"]
    script = ROOT / "demo" / "render.py"
    qgis.python(QGIS_PYTHON, script, str(scene), str(BUILDINGS), str(PICTURE), *options)


def report(stages: Stages, found: str, result: Score | None) -> None:
    print(f"\nFound {found}.")
    if result is not None:
        print(f"Outside the labelled corner: {result}.")
    print(f"\nTime taken:\n{stages}\n\n{BUILDINGS}\n{PICTURE}")


if __name__ == "__main__":
    sys.exit(main())
