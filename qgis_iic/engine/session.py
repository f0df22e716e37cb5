"""The network in ONNX Runtime: which file and provider, and its contract with `protocol.model_metadata`."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from qgis_iic.engine.providers import NAMES, ON_CPU, bind, candidates, free_memory, run
from qgis_iic.protocol.errors import (
    Cancelled,
    ModelInvalid,
    ModelNotFound,
    OutOfMemory,
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

_GPU_BATCH = 8
"""Tiles a run on a GPU at most; a CPU is busy with one."""

_GPU_SHARE = 0.5
"""Of a GPU's free memory, for the batch: convolutions take room to work in, and ONNX Runtime takes memory in steps."""

_TOO_LARGE = (
    "out of memory",
    "failed to allocate memory",
    "available memory of",
    "bad_alloc",
    "cudnn_status_not_supported",
)
"""What is said of a batch that was too large for the memory, or for cuDNN, which takes no tensor of 2^31 elements.

ONNX Runtime has no class of its own for this: its allocators, CUDA, cuDNN and C++ each word it in their way.
"""

_TRIAL_SIDE = 256
"""Pixels: large enough for a trial to tell which is faster, small enough to keep nobody waiting."""


def bytes_per_pixel(metadata: ModelMetadata, in_one_block: bool = True) -> int:
    """What ONNX Runtime takes for each pixel of a tile, in bytes: upsampled logits, and layers as wide as the network.

    Measured on a CPU with heads that see several layers, at the full width and a quarter of it, in int8 and in fp32. In
    int8 both take about the same: the logits, which stay floating-point numbers, decide. A model that does not say how
    wide it is, is taken for one of the full width.

    Args:
        metadata: of the model.
        in_one_block: see `providers.reserve_memory`; else memory is taken piece by piece, as on GPUs and by OpenVINO.
    """
    if metadata.precision.get("kind") == "int8":
        return 640 if in_one_block else 1010
    width: float = metadata.training.get("config", {}).get("network", {}).get("width", 1.0)
    logits, layers = (440, 1650) if in_one_block else (450, 1950)
    return int(logits + layers * width)


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
        model: the ONNX file in fp32, beside which its other precisions lie.
        provider: where it runs; `auto` takes the fastest that binds.
        building_clusters: clusters that are buildings, None for the model's own decision.
        precision: which sibling runs; `auto` takes the fastest of those that suit the provider and are there.
        tile_size: side of the tiles that will be run; None for the model's own.

    Attributes:
        path: of the file that runs.
        metadata: what the file says of itself.
        provider: ONNX Runtime's name of the execution provider that bound.
        precision: that runs.
        building_clusters: the mapping that is in force; None where neither the model nor the caller has one, and the
            building probability is then 0 everywhere, unless the graph has a building head.
        decision: the model's own, or `clusters` where the caller names some. The probability stays that of the
            building head where there is one.
        on_cpu: whether that is one of `providers.ON_CPU`.
        bytes_per_pixel: that a tile takes there.
        batch_size: tiles that are best run together.

    Raises:
        ModelNotFound: there is no such file in that precision.
        ModelInvalid: not an ONNX model, or one without the inputs, outputs and metadata that the engine needs; also one
            in another precision, where the fp32 file beside it has since got other weights or another mapping. `auto`
            leaves such a copy out.
        ProviderUnavailable: the asked-for provider did not bind.
    """

    def __init__(
        self,
        model: Path,
        provider: Provider = "auto",
        building_clusters: tuple[int, ...] | None = None,
        precision: Precision = "fp32",
        tile_size: int | None = None,
    ) -> None:
        bound = _fastest(_bound(model, provider, precision))
        self.path = bound.path
        self.provider: str = NAMES[bound.provider]
        self.precision: Precision = bound.precision
        self.metadata = bound.metadata
        self._session = bound.session
        self.building_clusters = self.metadata.building_clusters if building_clusters is None else building_clusters
        check_building_clusters(self.building_clusters or (), self.metadata.clusters)
        self.decision: Decision = self.metadata.decision if building_clusters is None else "clusters"
        self._mapping = self._mapping_feed()
        self._run_options = onnxruntime.RunOptions()
        self._cancelled = False
        self.on_cpu = bound.provider in ON_CPU
        self.bytes_per_pixel = bytes_per_pixel(self.metadata, in_one_block=bound.provider == "cpu")
        side = tile_size or self.metadata.tile_size
        self.batch_size = 1 if self.on_cpu else _gpu_batch(self.bytes_per_pixel * side**2)

    def run(self, tiles: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Clusters, classes and building probabilities of a batch.

        Args:
            tiles: raw pixel values float32 [N, bands, H, W], H and W multiples of the stride.

        Returns:
            uint8 [N, 3, H, W]: the outputs in the order of `model_metadata.OUTPUTS`.

        More than `batch_size` are run in turn. Where a batch turns out to be too large, that is halved from then on.

        Raises:
            Cancelled: `cancel` was called, before or meanwhile.
            OutOfMemory: not even one tile fits.
        """
        size = self.batch_size
        if len(tiles) > size:
            return np.concatenate([self.run(tiles[start : start + size]) for start in range(0, len(tiles), size)])
        try:
            return self._run(tiles)
        except Exception as error:  # ONNX Runtime has no class of its own for a run that was told to end
            if self._cancelled:
                raise Cancelled("The run was cancelled.") from error
            if not _is_too_large(error):
                raise
            if len(tiles) == 1:
                raise OutOfMemory(
                    f"There is not enough memory for the network on a tile of {tiles.shape[3]} x {tiles.shape[2]} "
                    f"pixels. Take a smaller tile size, or close other programs. ONNX Runtime says: {error}"
                ) from error
            self.batch_size = len(tiles) // 2
        # Not while the error is handled: it holds what was bound, and memory is short.
        return self.run(tiles)

    def _run(self, tiles: NDArray[np.float32]) -> NDArray[np.uint8]:
        """See `run`. What is bound is copied to the device once, and the answers from there into the array returned."""
        answers = np.empty((len(OUTPUTS), len(tiles), *tiles.shape[2:]), np.uint8)
        binding = self._session.io_binding()
        for name, values in {IMAGE_INPUT: tiles, **self._mapping}.items():
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(values))
        for name, plane in zip(OUTPUTS, answers, strict=True):
            binding.bind_output(name, "cpu", 0, np.uint8, plane.shape, plane.ctypes.data)
        self._session.run_with_iobinding(binding, self._run_options)
        return answers.swapaxes(0, 1)

    def cancel(self) -> None:
        """Ends a run that is under way, at its next node, and any later one; may be called from another thread."""
        self._cancelled = True
        self._run_options.terminate = True

    def _mapping_feed(self) -> dict[str, NDArray[np.float32]]:
        """What `run` feeds beside the tiles: nothing to a graph that ONNX Runtime has rid of its unused mapping."""
        if BUILDING_CLUSTERS_INPUT not in _overridable(self._session):
            return {}
        mapping = np.zeros(self.metadata.clusters, np.float32)
        mapping[list(self.building_clusters or ())] = 1
        return {BUILDING_CLUSTERS_INPUT: mapping}


@dataclass(frozen=True)
class _Bound:
    """A model file on a provider that it really runs on."""

    path: Path
    provider: str
    session: onnxruntime.InferenceSession
    metadata: ModelMetadata

    @property
    def precision(self) -> Precision:
        kind: Precision = self.metadata.precision.get("kind", "fp32")
        return kind

    def trial(self) -> float:
        """Seconds of a small tile, after one that does not count.

        Raises:
            ProviderUnavailable: it binds and does not run.
        """
        side = -(-_TRIAL_SIDE // self.metadata.stride) * self.metadata.stride
        tile = np.zeros((1, len(self.metadata.bands), side, side), np.float32)
        for _ in range(2):
            begun = time.perf_counter()
            run(self.session, self.provider, {IMAGE_INPUT: tile})
        return time.perf_counter() - begun


def _bound(model: Path, provider: Provider, precision: Precision) -> list[_Bound]:
    """What there is to choose from, at least one.

    Raises:
        ModelNotFound, ModelInvalid, ProviderUnavailable: see `Session`.
    """
    bound, reasons = [], []
    for candidate in candidates(provider):
        for path in _siblings(model, candidate, precision):
            try:
                bound.append(_made(path, candidate))
            except ProviderUnavailable as error:
                reasons.append(error)
            except ModelInvalid:
                if precision != "auto" or path == model:
                    raise
    if not bound:
        raise reasons[0]
    return bound


def _made(path: Path, provider: str) -> _Bound:
    session = bind(path, provider)
    made = _Bound(path, provider, session, _checked(session, path))
    if made.precision != "fp32":
        _check_original(made)
    if provider != "cpu":
        made.trial()
    return made


def _check_original(copy: _Bound) -> None:
    """Raises ModelInvalid where the fp32 file beside a copy is not what it was made from."""
    original = copy.path.with_name(copy.path.name.replace(f".{copy.precision}.", "."))
    if original == copy.path or not original.is_file():
        return
    if not copy.metadata.is_made_from(_checked(bind(original, "cpu"), original)):
        raise ModelInvalid(
            f"{copy.path} was made from another state of {original}, which has since got other weights or another "
            f"mapping. Make it again: iic quantise {original} --precision {copy.precision}, with --imagery or --places."
        )


def _gpu_batch(tile_bytes: int) -> int:
    """Tiles of that many bytes that are run together on a GPU, as far as its driver says what is free."""
    free = free_memory()
    if free is None:
        return _GPU_BATCH
    return max(1, min(_GPU_BATCH, int(_GPU_SHARE * free / tile_bytes)))


def _fastest(bound: list[_Bound]) -> _Bound:
    return bound[0] if len(bound) == 1 else min(bound, key=_Bound.trial)


def _siblings(model: Path, provider: str, precision: Precision) -> list[Path]:
    """The files that may run on a provider."""
    if precision != "auto":
        return [model_file(model, precision)]
    found = [model_file(model, "fp32")]
    with suppress(ModelNotFound):
        found.append(model_file(model, "int8" if provider == "cpu" else "fp16"))
    return found


def _checked(session: onnxruntime.InferenceSession, path: Path) -> ModelMetadata:
    """The metadata of a model; raises ModelInvalid where it or the graph breaks the contract."""
    metadata = ModelMetadata.from_properties(session.get_modelmeta().custom_metadata_map)
    inputs = {node.name: node for node in session.get_inputs()}
    outputs = {node.name for node in session.get_outputs()}
    missing = ({IMAGE_INPUT} - inputs.keys()) | (set(OUTPUTS) - outputs)
    if metadata.decision == "clusters":
        missing |= {BUILDING_CLUSTERS_INPUT} - _overridable(session)
    if missing:
        raise ModelInvalid(f"{path} has no input or output named {', '.join(sorted(missing))}.")
    bands = inputs[IMAGE_INPUT].shape[1]
    if bands != len(metadata.bands):
        raise ModelInvalid(f"{path} takes {bands} bands, and its metadata names {len(metadata.bands)}.")
    return metadata


def _overridable(session: onnxruntime.InferenceSession) -> set[str]:
    return {node.name for node in session.get_overridable_initializers()}


def _is_too_large(error: Exception) -> bool:
    text = str(error).lower()
    return any(said in text for said in _TOO_LARGE)
