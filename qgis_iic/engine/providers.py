"""Where a network can run: the execution providers of ONNX Runtime, and why one of them does not bind.

ONNX Runtime goes on without a provider whose driver or libraries are missing, and says why on standard error alone. So
a session counts as bound only where it names the provider itself, and what was said meanwhile is the reason if not.
"""

from __future__ import annotations

import ctypes
import io
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as runtime_errors

from qgis_iic.protocol.errors import ModelInvalid, ProviderUnavailable
from qgis_iic.protocol.job import Provider

NAMES = {
    "tensorrt": "TensorrtExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "directml": "DmlExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
"""What ONNX Runtime calls each provider that can be asked for, the likely fastest first."""

ON_CPU = ("cpu", "openvino")
"""Those that are the processor, or share its memory, as most GPUs of OpenVINO do."""

_AUTOMATIC = tuple(provider for provider in NAMES if provider != "tensorrt")
"""TensorRT computes in half precision and takes minutes to begin: it runs where it is asked for only."""

_SOURCES = {
    "tensorrt": "the package onnxruntime-gpu, with NVIDIA's TensorRT",
    "cuda": "the package onnxruntime-gpu",
    "directml": "the package onnxruntime-directml, on Windows",
    "coreml": "the package onnxruntime, on macOS",
    "openvino": "the package onnxruntime-openvino",
}
_OPTIONS: dict[str, list[dict[str, Any]]] = {
    "tensorrt": [{"trt_fp16_enable": True}],
    # By default all algorithms are tried out whenever a batch has another size than the one before: that takes several
    # times as long as the network, and finds none faster than cuDNN's own choice.
    "cuda": [{"cudnn_conv_algo_search": "HEURISTIC"}],
    # By default it takes the processor even beside a GPU, and with AUTO it binds and leaves all nodes to ONNX Runtime.
    "openvino": [{"device_type": "GPU"}, {"device_type": "CPU"}],
}
"""Of a provider; where there are several, the first with which it binds and computes."""


_ONE_FEED = {"x": np.zeros((1, 1, 8, 8), np.float32)}
"""Of `_one_convolution`."""

LARGEST_BLOCK = 2**31 - 1
"""Bytes: the most that ONNX Runtime can be asked for, see `reserve_memory`."""

_NOT_A_MODEL = (runtime_errors.InvalidProtobuf, runtime_errors.InvalidGraph, runtime_errors.NoModel)
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
_LOG_PREFIX = re.compile(r"^.*?\[[EF]:[^\]]*\] ?")
_PLACE = re.compile(r"^(\S+\.(cc|h|cpp):\d+ .*?\) )?(\[ONNXRuntimeError\] : \d+ : \w+ : )?")
"""Where in ONNX Runtime's source an error comes from."""


def candidates(provider: Provider) -> list[str]:
    """Providers to be tried for what was asked for, the likely fastest first.

    Raises:
        ProviderUnavailable: ONNX Runtime has none of them; says what has.
    """
    offered = onnxruntime.get_available_providers()
    if provider == "auto":
        return [name for name in _AUTOMATIC if NAMES[name] in offered]
    if NAMES[provider] not in offered:
        raise ProviderUnavailable(
            f"The network can't run on {provider}: this ONNX Runtime, {onnxruntime.__version__}, does not have "
            f"{NAMES[provider]} but {', '.join(offered)}. It comes with {_SOURCES[provider]}. "
            "Install that in place of it, or take `auto` or `cpu`."
        )
    return [provider]


def bind(model: Path | bytes, provider: str) -> onnxruntime.InferenceSession:
    """A session of `model`, a file or its content, that really runs on an offered provider.

    Raises:
        ProviderUnavailable: it did not bind, for the reason given.
        ModelInvalid: not a model that ONNX Runtime can run.
    """
    *preferred, last = _OPTIONS.get(provider, [{}])
    for provider_options in preferred:
        with suppress(ProviderUnavailable):
            run(_bind(_one_convolution(), provider, provider_options), provider, _ONE_FEED)
            return _bind(model, provider, provider_options)
    return _bind(model, provider, last)


def _bind(model: Path | bytes, provider: str, provider_options: dict[str, Any]) -> onnxruntime.InferenceSession:
    """See `bind`."""
    name = NAMES[provider]
    providers: list[Any] = [(name, provider_options)]
    if provider == "tensorrt":
        providers.append((NAMES["cuda"], _OPTIONS["cuda"][0]))  # for what TensorRT does not know
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # With it, a block for all tensors is planned on top of what the first run took: on a CPU nearly twice the memory
    # at full width, and no faster. DirectML can't have it.
    options.enable_mem_pattern = False
    # A thread that waits for the others would keep the core that reading and tracing need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if provider == "cpu":
        options.add_session_config_entry("session.use_env_allocators", "1")  # see `reserve_memory`
    with _native_messages(provider != "cpu") as messages:
        if provider in ("cuda", "tensorrt"):
            with redirect_stdout(io.StringIO()):  # it prints what it does not find, which the session then reports
                onnxruntime.preload_dlls()
        try:
            session = onnxruntime.InferenceSession(
                model if isinstance(model, bytes) else str(model), options, providers=providers, enable_fallback=False
            )
        except _NOT_A_MODEL as error:
            raise ModelInvalid(f"{_named(model)} is not an ONNX model that ONNX Runtime can run: {error}") from error
        except Exception as error:  # ONNX Runtime's classes have no base of their own
            if provider == "cpu":
                raise ModelInvalid(f"{_named(model)} is not one that ONNX Runtime can run: {error}") from error
            raise _unavailable(provider, str(error)) from error
    if session.get_providers()[0] != name:
        raise _unavailable(provider, _reason(messages))
    return session


@cache
def reserve_memory(size: int) -> None:
    """Has ONNX Runtime keep the tensors of the sessions that are made from now on in one block of so many bytes.

    That goes for the processor's own provider. Left to itself it takes memory piece by piece, and as no tensor lies
    across two of them, up to twice as much. Where the block is too small, or the system does not grant it, pieces are
    added. It stays while sessions or a later one may use it; what is never used of it is address space alone, but for
    Windows, which counts it as taken.
    """
    kind, use = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, onnxruntime.OrtMemType.DEFAULT
    onnxruntime.create_and_register_allocator(
        onnxruntime.OrtMemoryInfo("Cpu", kind, 0, use),
        onnxruntime.OrtArenaCfg({"initial_chunk_size_bytes": min(size, LARGEST_BLOCK)}),
    )


def run(session: onnxruntime.InferenceSession, provider: str, feed: dict[str, NDArray[np.float32]]) -> None:
    """Runs a session to see whether it does; raises ProviderUnavailable where not."""
    try:
        session.run(None, feed)
    except Exception as error:  # whatever the provider's libraries raise
        raise _unavailable(provider, str(error)) from error


def free_memory() -> int | None:
    """Bytes that are free on the GPU on which this thread last ran a CUDA session; None where it ran none.

    The driver is asked within the process, where the GPU is the one that ONNX Runtime took, whatever
    CUDA_VISIBLE_DEVICES says: cuMemGetInfo of the CUDA Driver API, Memory Management.
    """
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
        failed = driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
    except (OSError, AttributeError):
        return None
    return None if failed else free.value


def _unavailable(provider: str, reason: str) -> ProviderUnavailable:
    reason = _PLACE.sub("", reason.strip()).rstrip(".")
    return ProviderUnavailable(
        f"The network can't run on {provider}: ONNX Runtime {onnxruntime.__version__} has {NAMES[provider]}, but it "
        f"does not bind here: {reason}. Install what is missing, or take `auto` or `cpu`."
    )


def survey() -> dict[str, str]:
    """Why each provider can't be used, empty where it can; a graph of one convolution is run on it."""
    found = {}
    for provider in get_args(Provider):
        if provider != "auto":
            try:
                for candidate in candidates(provider):
                    run(bind(_one_convolution(), candidate), candidate, _ONE_FEED)
                found[provider] = ""
            except ProviderUnavailable as error:
                found[provider] = error.message
    return found


def _one_convolution() -> bytes:
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "weight"], ["y"])],
        "trial",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 6, 6])],
        [helper.make_tensor("weight", TensorProto.FLOAT, [1, 1, 3, 3], [1.0] * 9)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def _named(model: Path | bytes) -> str:
    return str(model) if isinstance(model, Path) else "The graph"


def _reason(messages: list[str]) -> str:
    """The first error that ONNX Runtime reported, without the place in its source."""
    lines = [_ESCAPES.sub("", line).strip() for line in messages]
    errors = [_LOG_PREFIX.sub("", line) for line in lines if _LOG_PREFIX.match(line)]
    said = errors or [line for line in lines if line]
    return said[0] if said else "it gives no reason; a driver or library may be missing"


@contextmanager
def _native_messages(wanted: bool) -> Iterator[list[str]]:
    """Collects what native code writes to standard error meanwhile; the lines are there at the end."""
    messages: list[str] = []
    if not wanted:
        yield messages
        return
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield messages
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            said.seek(0)
            messages += said.read().decode(errors="replace").splitlines()
