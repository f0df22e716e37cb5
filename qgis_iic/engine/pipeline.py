"""The order of the steps, and nowhere else: sources, tiles, network, strips, class raster or footprints, output."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing
from dataclasses import astuple
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import geopandas
import numpy as np
import rasterio

from qgis_iic import __version__
from qgis_iic.engine import class_raster, geopackage
from qgis_iic.engine.cancellation import Cancellation
from qgis_iic.engine.clock import Clock, timed
from qgis_iic.engine.footprints import FootprintFile, complete_footprints
from qgis_iic.engine.geopackage import BuildingLayer
from qgis_iic.engine.outputs import allow_many_files, check_is_no_source, scratch_folder, write_errors
from qgis_iic.engine.overlap import made_ahead, mapped
from qgis_iic.engine.planning import Plan, batches_ahead, cache_size, memory_for_tiles, plan, warnings_of
from qgis_iic.engine.progress import RunProgress
from qgis_iic.engine.providers import reserve_memory
from qgis_iic.engine.raster import open_raster
from qgis_iic.engine.session import Session
from qgis_iic.engine.stitching import strips
from qgis_iic.engine.strip import Planes, Strip
from qgis_iic.engine.vectorization import Complete, Vectorizer
from qgis_iic.engine.workers import Workers, processes
from qgis_iic.protocol.errors import ModelNotMatched, OutOfMemory
from qgis_iic.protocol.events import Emit, Layer, Result, Started, Warned
from qgis_iic.protocol.job import Job
from qgis_iic.protocol.model_metadata import NODATA
from qgis_iic.protocol.names import without_secrets

_SPECK = 0.5
"""Share of the minimum area below which a component is not even traced. The area of a pixel is that at the raster's
centre here; elsewhere it differs by much less than this leaves room for, and the exact minimum is applied later."""


_MOST_WORKERS = 8
"""Threads beside a GPU that read tiles, and as many processes that trace outlines and make footprints."""

_PIXELS_OF_PROCESS = 4_000_000
"""Of a source, for each process: tracing so many takes half as long as a process takes to begin."""


def run(job: Job, emit: Emit, cancellation: Cancellation) -> Result:
    """Does the job; the output is under its name when this returns, and untouched when it raises.

    Args:
        job: what to do.
        emit: takes the events, the result not among them.
        cancellation: looked at between tiles.

    Raises:
        IicError: one of the named errors.
    """
    clock = Clock()
    _check_output(job)
    session = _session(job, clock)
    cancellation.reach(session.cancel)
    # On a GPU the network takes none of this memory.
    tile_size = job.tile_size or (None if session.on_cpu else session.metadata.tile_size)
    allow_many_files()
    with scratch_folder(job) as scratch, ExitStack() as resources:
        plans = [
            plan(
                resources.enter_context(open_raster(source.path, source.crs)),
                source,
                session.metadata,
                tile_size,
                job.memory,
                session.bytes_per_pixel,
            )
            for source in job.sources
        ]
        if job.task == "segment":  # takes the place of the file; a layer is put beside what a GeoPackage holds
            check_is_no_source(job.output, (file for each in plans for file in each.raster.files))
        else:
            for each in plans:
                geopackage.check_crs(each.raster)
        resources.enter_context(rasterio.Env(GDAL_CACHEMAX=int(cache_size(plans, job.memory))))
        emit(Started(session.provider, str(session.path), sum(each.tiles for each in plans)))
        for warning in (text for each in plans for text in warnings_of(each, session.metadata)):
            emit(Warned(warning))
        progress = RunProgress(sum(each.tiles for each in plans), clock, emit, cancellation)
        if job.task == "segment":
            layers = _segment(job, session, plans, scratch, clock, progress)
        else:
            tracers = resources.enter_context(processes(_tracers(session, plans), complete_footprints.__module__))
            try:
                layers = _extract(job, session, plans, scratch, clock, progress, tracers)
            except OutOfMemory:
                progress.check()  # what ends the run may have ended a process first
                raise
    return Result(job.output, layers, {**clock.seconds, "total": clock.elapsed})


def _session(job: Job, clock: Clock) -> Session:
    reserve_memory(int(memory_for_tiles(job.memory)))
    with clock.stage("model"):
        session = Session(Path(job.model), job.provider, job.building_clusters, job.precision, job.tile_size)
    if job.task == "extract" and session.decision == "clusters" and session.building_clusters is None:
        raise ModelNotMatched(
            f"{job.model} does not know yet which of its {session.metadata.clusters} clusters are buildings. "
            "Match them with a few examples first: `iic match`, or Match clusters to buildings in Processing."
        )
    return session


def _workers(session: Session) -> int:
    """Of a stage that can use several. On a CPU the network has all cores busy as it is."""
    return 1 if session.on_cpu else min(_MOST_WORKERS, os.cpu_count() or 1)


def _tracers(session: Session, plans: list[Plan]) -> int:
    """Processes for what comes after the network."""
    pixels = max(made.window.width * made.window.height for made in plans)
    return max(1, min(_workers(session), pixels // _PIXELS_OF_PROCESS))


def answer(session: Session, made: Plan, advance: Callable[[int], None] = lambda _: None) -> Planes:
    """The network's answer for a plan whose raster is open, uint8 [3, height, width], in memory.

    `advance` is told how many tiles have come through.
    """
    answered = strips(session, made.reader, made.rows, Clock(), advance)
    return np.concatenate([strip.planes for strip in answered], axis=1)


def _check_output(job: Job) -> None:
    output = Path(job.output)
    check_is_no_source(job.output, (source.path for source in job.sources))
    if job.task == "extract":
        geopackage.check_target(output, [source.layer for source in job.sources], overwrite=job.overwrite)
    else:
        class_raster.check_target(output, overwrite=job.overwrite)


def _strips(
    job: Job, session: Session, made: Plan, clock: Clock, progress: RunProgress
) -> closing[Generator[Strip, None, None]]:
    """The network's answer from top to bottom, each strip made while the one before is used."""
    ahead, workers = batches_ahead(session, made, job.memory), _workers(session)
    advance = progress.of(made.raster.path)
    answered = made_ahead(strips(session, made.reader, made.rows, clock, advance, ahead, workers))
    return closing(_warned_of_nothing(answered, made, progress))


def _warned_of_nothing(
    answered: Generator[Strip, None, None], made: Plan, progress: RunProgress
) -> Generator[Strip, None, None]:
    """The strips as they are; ground without data has no buildings, but is no proof that there are none."""
    is_empty = True
    with closing(answered):
        for strip in answered:
            is_empty = is_empty and bool((strip.planes[0] == NODATA).all())
            yield strip
    if is_empty:
        progress.warn(
            f"No pixel of {made.raster.path} has data in what was read. Choose another extent, or check the raster's "
            "no-data value and mask."
        )


def _segment(
    job: Job, session: Session, plans: list[Plan], scratch: Path, clock: Clock, progress: RunProgress
) -> tuple[Layer, ...]:
    (made,) = plans
    crs = made.raster.crs.to_wkt() if made.raster.crs else None
    output = Path(job.output)
    staged = scratch / output.name
    with (
        class_raster.ClassRasterWriter(
            staged, output, made.reader.grid, made.window, crs, _provenance(job, session, made)
        ) as writer,
        _strips(job, session, made, clock, progress) as answered,
    ):
        for strip in answered:
            with clock.stage("write"):
                writer.write(strip)
    progress.check()
    class_raster.publish(staged, output)
    return ()


def _extract(
    job: Job,
    session: Session,
    plans: list[Plan],
    scratch: Path,
    clock: Clock,
    progress: RunProgress,
    tracers: Workers | None,
) -> tuple[Layer, ...]:
    layers = []
    deciding = None if session.decision == "probability" else session.building_clusters or ()
    for number, (source, made) in enumerate(zip(job.sources, plans, strict=True)):
        smallest = _SPECK * job.min_area / made.reader.pixel_area
        vectorizer = Vectorizer(deciding, smallest, tracers, clock)
        with write_errors(Path(job.output)):
            found = FootprintFile(scratch / f"footprints{number}.wkb", made.raster.crs)
        with (
            _strips(job, session, made, clock, progress) as answered,
            closing(mapped(partial(timed, _footprints(made, job)), vectorizer.complete(answered), tracers)) as tables,
        ):
            for seconds, table in tables:
                clock.add("vectorize", seconds)
                with write_errors(Path(job.output)), clock.stage("write"):
                    found.add(table)
        if vectorizer.cut_off:
            progress.warn(
                f"What was found in {made.raster.path} is connected over so much ground that it was cut along rows "
                f"(cuts: {vectorizer.cut_off}): it is too large for one polygon. Usually that means that the model "
                "does not suit this imagery. Match it with examples from here: `iic match`, or Match clusters to "
                "buildings in Processing."
            )
        layers.append(BuildingLayer(source.layer, found, _provenance(job, session, made)))
    progress.check()
    with clock.stage("write"):
        geopackage.write_layers(Path(job.output), layers, scratch, overwrite=job.overwrite, check=progress.check)
    return tuple(
        Layer(source.path, layer.name, len(layer.footprints), layer.footprints.area)
        for source, layer in zip(job.sources, layers, strict=True)
    )


def _footprints(made: Plan, job: Job) -> Callable[[Complete], geopandas.GeoDataFrame]:
    """Makes those of some of a source's components, in any process."""
    grid = made.reader.grid
    return partial(
        complete_footprints,
        transform=grid.transform,
        crs=made.raster.crs,
        about=grid.transform @ (grid.width / 2, grid.height / 2),
        min_area=job.min_area,
        max_hole_area=job.max_hole_area,
        regularise=made.pixel if job.regularise else None,
    )


def _provenance(job: Job, session: Session, made: Plan) -> dict[str, str]:
    """What a later reader needs to make the output again, as texts."""
    metadata = session.metadata
    return {
        "IIC_SOURCE": without_secrets(made.raster.path),
        "IIC_BANDS": ",".join(map(str, made.reader.bands)),
        "IIC_CRS": made.raster.crs.to_string() if made.raster.crs else "",
        "IIC_WORKING_PIXEL_SCALE": ",".join(map(repr, made.reader.grid.scale)),
        "IIC_WORKING_WINDOW": ",".join(map(str, astuple(made.window))),
        "IIC_GAIN": ",".join(map(str, made.reader.gain)),
        "IIC_OFFSET": ",".join(map(str, made.reader.offset)),
        "IIC_MODEL": metadata.name,
        "IIC_MODEL_WEIGHTS_SHA256": metadata.weights_sha256,
        "IIC_DECISION": session.decision,
        "IIC_BUILDING_CLUSTERS": ",".join(map(str, session.building_clusters or ())),
        "IIC_PROVIDER": session.provider,
        "IIC_PRECISION": session.precision,
        "IIC_MIN_AREA_M2": repr(job.min_area),
        "IIC_MAX_HOLE_AREA_M2": repr(job.max_hole_area),
        "IIC_REGULARISED": repr(job.regularise),
        "IIC_VERSION": __version__,
        "IIC_DATE": datetime.now(UTC).isoformat(timespec="seconds"),
    }
