"""Entry point of the engine process: `python -I -X utf8 -u engine_main.py JOB.json`.

Run by path, so that it works from an unpacked plugin that no Python environment knows of. The package is loaded from
where this file lies and nothing is added to the module search path, on which the folders of other plugins would lie.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def _load_package() -> None:
    folder = Path(__file__).resolve().parent
    spec = importlib.util.spec_from_file_location(
        "qgis_iic", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{folder} is not the package qgis_iic")
    package = importlib.util.module_from_spec(spec)
    sys.modules["qgis_iic"] = package
    spec.loader.exec_module(package)


def _main(arguments: list[str]) -> int:
    from qgis_iic.engine.cancellation import Cancellation
    from qgis_iic.engine.service import main
    from qgis_iic.protocol.events import Emit, Result
    from qgis_iic.protocol.job import AdaptJob, AnyJob, Job, QuantiseJob, TrainJob

    def work(job: AnyJob, emit: Emit, cancellation: Cancellation) -> Result:
        """Imports what this kind of job needs and nothing more."""
        if isinstance(job, Job):
            from qgis_iic.engine import pipeline

            return pipeline.run(job, emit, cancellation)
        if isinstance(job, TrainJob):
            from qgis_iic.training import train_job

            return train_job.run(job, emit, cancellation)
        if isinstance(job, AdaptJob):
            from qgis_iic.training import adapt_job

            return adapt_job.run(job, emit, cancellation)
        if isinstance(job, QuantiseJob):
            from qgis_iic.training import quantise_job

            return quantise_job.run(job, emit, cancellation)
        from qgis_iic.training import labelled_job

        return labelled_job.run(job, emit, cancellation)

    return main(arguments, work)


if __name__ in ("__main__", "__mp_main__"):  # the latter in processes that the engine starts
    _load_package()
if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
