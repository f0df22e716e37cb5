"""The network in ONNX Runtime: which file, which provider, and its contract with `protocol.model_metadata`."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as runtime_errors

from qgis_iic.protocol.errors import (
    Cancelled,
    ModelInvalid,
    ModelNotFound,
    ProviderUnavailable,
)
from qgis_iic.protocol.job import Precision, Provider
from qgis_iic.protocol.model_metadata import (
    BUILDING_CLUSTERS_INPUT,
    IMAGE_INPUT,
    OUTPUTS,
    Decision,
    ModelMetadata,
    check_building_clusters,
)

_PROVIDERS = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}
"""In the order in which `auto` tries them."""

_GPU_BATCH = 8
"""Tiles a run on a GPU; a CPU is busy with one."""


def model_file(model: str | Path, precision: Precision) -> Path:
    """The sibling of `model` in that precision: `m.onnx` is fp32, `m.fp16.onnx` and `m.int8.onnx` lie beside it.

    A sibling that was made from another state of `model` is refused when it is loaded: see `Session`.

    Raises:
        ModelNotFound: there is no such file.
    """
    path = sibling(Path(model), precision)
    if not os.path.isfile(path):  # noqa: PTH113 - pathlib's raises where a folder above can't be entered
        raise ModelNotFound(f"There is no model at {path}, or its folder can't be read.")
    return path


def sibling(model: Path, precision: Precision) -> Path:
    """Where that precision of the fp32 file `model` lies; whether it is there or not."""
    return model if precision == "fp32" else model.with_name(f"{model.stem}.{precision}{model.suffix}")


class Session:
    """A loaded model.

    Args:
        path: of the ONNX file.
        provider: where it runs; `auto` takes the first that binds.
        building_clusters: clusters that are buildings, None for the model's own decision.

    Attributes:
        metadata: what the file says of itself.
        provider: ONNX Runtime's name of the execution provider that bound.
        building_clusters: the mapping that is in force; None where neither the model nor the caller has one, and the
            building probability is then 0 everywhere, unless the graph has a building head.
        decision: the model's own, or `clusters` where the caller names some. The probability stays that of the
            building head where there is one.
        batch_size: tiles that are best run together.

    Raises:
        ModelInvalid: not an ONNX model, or one without the inputs, outputs and metadata that the engine needs; also one
            in another precision, where the fp32 file beside it has since got other weights or another mapping.
        ProviderUnavailable: the asked-for provider did not bind.
    """

    def __init__(
        self, path: Path, provider: Provider = "auto", building_clusters: tuple[int, ...] | None = None
    ) -> None:
        self._path = path
        self._session = _bind(path, provider)
        self.provider: str = self._session.get_providers()[0]
        self.metadata = _metadata(self._session)
        self._check_graph()
        self._check_original()
        self.building_clusters = self.metadata.building_clusters if building_clusters is None else building_clusters
        check_building_clusters(self.building_clusters or (), self.metadata.clusters)
        self.decision: Decision = self.metadata.decision if building_clusters is None else "clusters"
        self._mapping = self._mapping_feed()
        self._run_options = onnxruntime.RunOptions()
        self._cancelled = False
        self.batch_size = 1 if self.provider == _PROVIDERS["cpu"] else _GPU_BATCH

    def run(self, tiles: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Clusters, classes and building probabilities of a batch.

        Args:
            tiles: raw pixel values float32 [N, bands, H, W], H and W multiples of the stride.

        Returns:
            uint8 [N, 3, H, W]: the outputs in the order of `model_metadata.OUTPUTS`.

        Raises:
            Cancelled: `cancel` was called, before or meanwhile.
        """
        try:
            outputs = self._session.run(list(OUTPUTS), {IMAGE_INPUT: tiles, **self._mapping}, self._run_options)
        except Exception as error:  # ONNX Runtime has no class of its own for a run that was told to end
            if self._cancelled:
                raise Cancelled("The run was cancelled.") from error
            raise
        return np.stack(outputs, axis=1)

    def cancel(self) -> None:
        """Ends a run that is under way, at its next node, and any later one; may be called from another thread."""
        self._cancelled = True
        self._run_options.terminate = True

    def _mapping_feed(self) -> dict[str, NDArray[np.float32]]:
        """What `run` feeds beside the tiles: nothing to a graph that ONNX Runtime has rid of its unused mapping."""
        if BUILDING_CLUSTERS_INPUT not in self._overridable():
            return {}
        mapping = np.zeros(self.metadata.clusters, np.float32)
        mapping[list(self.building_clusters or ())] = 1
        return {BUILDING_CLUSTERS_INPUT: mapping}

    def _overridable(self) -> set[str]:
        return {node.name for node in self._session.get_overridable_initializers()}

    def _check_graph(self) -> None:
        inputs = {node.name: node for node in self._session.get_inputs()}
        outputs = {node.name for node in self._session.get_outputs()}
        missing = ({IMAGE_INPUT} - inputs.keys()) | (set(OUTPUTS) - outputs)
        if self.metadata.decision == "clusters":
            missing |= {BUILDING_CLUSTERS_INPUT} - self._overridable()
        if missing:
            raise ModelInvalid(f"{self._path} has no input or output named {', '.join(sorted(missing))}.")
        bands = inputs[IMAGE_INPUT].shape[1]
        if bands != len(self.metadata.bands):
            raise ModelInvalid(f"{self._path} takes {bands} bands, and its metadata names {len(self.metadata.bands)}.")

    def _check_original(self) -> None:
        kind = self.metadata.precision.get("kind", "fp32")
        original = self._path.with_name(self._path.name.replace(f".{kind}.", "."))
        if original == self._path or not original.is_file():
            return
        if not self.metadata.is_made_from(_metadata(_load(original, _PROVIDERS["cpu"]))):
            raise ModelInvalid(
                f"{self._path} was made from another state of {original}, which has since got other weights or another "
                f"mapping. Make it again: iic quantise {original} --precision {kind}."
            )


def _metadata(session: onnxruntime.InferenceSession) -> ModelMetadata:
    return ModelMetadata.from_properties(session.get_modelmeta().custom_metadata_map)


def _bind(path: Path, provider: Provider) -> onnxruntime.InferenceSession:
    offered = onnxruntime.get_available_providers()
    wanted = [name for name in _PROVIDERS if name == provider or provider == "auto"]
    for name in wanted:
        if _PROVIDERS[name] not in offered:
            continue
        session = _load(path, _PROVIDERS[name])
        if session.get_providers()[0] == _PROVIDERS[name]:
            return session
    raise ProviderUnavailable(
        f"The network can't run on {provider}: ONNX Runtime {onnxruntime.__version__} offers {', '.join(offered)}. "
        "A provider that is offered and yet does not bind lacks its driver or libraries; take `auto` or `cpu`."
    )


def _load(path: Path, provider: str) -> onnxruntime.InferenceSession:
    if provider == _PROVIDERS["cuda"]:
        onnxruntime.preload_dlls()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=[provider])
    except (
        runtime_errors.InvalidProtobuf,
        runtime_errors.InvalidGraph,
        runtime_errors.InvalidArgument,
        runtime_errors.NoModel,
        runtime_errors.NotImplemented,
        runtime_errors.Fail,
    ) as error:
        raise ModelInvalid(f"{path} is not an ONNX model that ONNX Runtime can run: {error}") from error
