"""Model files: an ONNX graph and, in its properties, what `protocol.model_metadata` says of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnx
import onnxruntime
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from qgis_iic.engine.outputs import check_folder, write_whole
from qgis_iic.engine.session import sibling
from qgis_iic.protocol.errors import ModelInvalid, ModelNotFound, OutputIsOtherKind
from qgis_iic.protocol.model_metadata import IMAGE_INPUT, KEY, ModelMetadata
from qgis_iic.training.heads import feature_parts

FEATURES = "features"
"""What the heads act on, float32 [N, F, H / stride, W / stride]: all of `heads.feature_parts`, side by side."""
COARSE_LOGITS = "coarse_logits"
"""What they make of it, float32 [N, classes + clusters, H / stride, W / stride], the main head first."""

Kind = Literal["fp16", "int8"]
"""Of the copies of a model."""

Tensor = NDArray[Any]

ADAPTATION, MATCHED_BEFORE = "adaptation", "before_adaptation"
"""Among the facts of a model's training: what it was adapted to; and of its matching: that its figures are older."""


def read_model(path: Path) -> tuple[onnx.ModelProto, ModelMetadata]:
    """An fp32 model and its metadata.

    Raises:
        ModelNotFound: there is no such file.
        ModelInvalid: not an ONNX model, one without metadata, one in another precision, whose weights are no longer
            those that labels or training could change, or one whose features are a tensor of their own, as they were
            in earlier exports.
    """
    model, metadata = _read(path)
    if metadata.precision:
        raise ModelInvalid(f"{path} is the {metadata.precision['kind']} copy of a model. Name the fp32 file instead.")
    if any(FEATURES in node.output for node in model.graph.node):
        raise ModelInvalid(f"{path} is of an earlier version, and can only be run. Make it again: iic export.")
    return model, metadata


def read_siblings(path: Path) -> dict[Path, ModelMetadata]:
    """The metadata of the files beside an fp32 model that are this very model in another precision.

    A file that can't be read is none.

    Raises:
        ModelNotFound, ModelInvalid: see `read_model`.
    """
    _, original = read_model(path)
    found = {}
    for kind in get_args(Kind):
        file = sibling(path, kind)
        with suppress(ModelNotFound, ModelInvalid):
            _, metadata = _read(file)
            if metadata.is_made_from(original):
                found[file] = metadata
    return found


def _read(path: Path) -> tuple[onnx.ModelProto, ModelMetadata]:
    model = _open(path)
    return model, ModelMetadata.from_properties({entry.key: entry.value for entry in model.metadata_props})


def _open(path: Path) -> onnx.ModelProto:
    try:
        if path.stat().st_size > onnx.checker.MAXIMUM_PROTOBUF:
            raise ModelInvalid(f"{path} is larger than an ONNX model can be.")
        return onnx.load(path, format="protobuf")
    except FileNotFoundError as error:
        raise ModelNotFound(f"There is no model at {path}.") from error
    except (DecodeError, OSError) as error:
        raise ModelInvalid(f"{path} is not an ONNX model: {error}.") from error


def check_target(path: Path) -> None:
    """Refuses to replace anything but a model file, of any precision and version, or to call one by another suffix.

    Raises:
        OutputIsOtherKind: the path is a folder or another file, or does not end in .onnx.
        OutputNotWritable: its folder is missing or can't be written to.
    """
    if path.suffix.lower() != ".onnx":
        raise OutputIsOtherKind(f"{path} is no name of a model file: give it one that ends in .onnx.")
    check_folder(path)
    if not os.path.exists(path):  # noqa: PTH110 - pathlib's may raise
        return
    refused = OutputIsOtherKind(f"{path} exists and is no model file. Choose another name; it was left as it is.")
    try:
        model = _open(path)
    except ModelInvalid as error:
        raise refused from error
    if KEY not in (entry.key for entry in model.metadata_props):
        raise refused


def write_model(model: onnx.ModelProto, metadata: ModelMetadata, path: Path) -> None:
    """Writes graph and metadata; the metadata replace the model's earlier ones, the graph is written as it is.

    Raises:
        OutputNotWritable, DiskFull: see `engine.outputs.write_whole`.
    """
    written = onnx.ModelProto()
    written.CopyFrom(model)
    del written.metadata_props[:]
    onnx.helper.set_model_props(written, metadata.to_properties())
    write_whole(path, written.SerializeToString())


def open_inner(model: onnx.ModelProto, *names: str) -> Callable[[NDArray[np.float32]], list[Tensor]]:
    """Opens the graph once for outputs, float32 tensors from inside it, or `FEATURES`.

    Returns:
        What computes the tensors of these names from raw pixels, float32 [N, bands, H, W].

    Raises:
        ModelInvalid: the graph has no such tensor: it is not one of `iic export`.
    """
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    if FEATURES in names and (parts := feature_parts(model)):
        opened.graph.node.append(onnx.helper.make_node("Concat", list(parts), [FEATURES], axis=1))
    made = {name for node in opened.graph.node for name in node.output}
    for name in names:
        if name not in made:
            raise ModelInvalid(f"The model's graph has no tensor `{name}`: it is not one of `iic export`.")
        if name not in {output.name for output in opened.graph.output}:
            opened.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it would warn of the initializer that can be overridden, which is meant
    options.add_session_config_entry("session.x64quantprecision", "1")  # else sums saturate without VNNI
    session = onnxruntime.InferenceSession(opened.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run(image: NDArray[np.float32]) -> list[Tensor]:
        tensors: list[Tensor] = session.run(list(names), {IMAGE_INPUT: image})
        return tensors

    return run


def run_inner(model: onnx.ModelProto, name: str, image: NDArray[np.float32]) -> Tensor:
    """`open_inner` for a single tensor of a single image."""
    return open_inner(model, name)(image)[0]


def weights_checksum(model: onnx.ModelProto) -> str:
    """SHA-256 of the graph, weights included and metadata not, in hexadecimal."""
    return hashlib.sha256(model.graph.SerializeToString(deterministic=True)).hexdigest()
