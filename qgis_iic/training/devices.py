"""What training runs on: Lightning Fabric chooses the device, the precision and the processes; the loop stays ours."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision

from qgis_iic.protocol.errors import JobInvalid, OutOfMemory

CPU = torch.device("cpu")

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Names of glibc's malloc.h."""


class _MixedPrecision(MixedPrecision):
    """Lightning's, but raw pixel values are not rounded to 8 bits of mantissa on their way in."""

    def convert_input(self, data: Any) -> Any:
        return data


def start(accelerator: str = "cpu", devices: int = 1, precision: str = "32-true", threads: int | None = None) -> Fabric:
    """Starts the processes, one a device; each further one runs the program from its beginning.

    Args:
        accelerator: cpu, cuda, or auto: cuda where there is one that works, else cpu.
        devices: how many of them; on cpu, processes that share the processor.
        precision: 32-true, bf16-mixed or 16-mixed, of the convolutions; weights and losses stay float32.
        threads: of the processor for each process; None leaves that to torch.

    Raises:
        JobInvalid: there are no such devices, or they don't compute in that precision.
    """
    if accelerator == "auto":
        accelerator = choose().type
    if accelerator == "cpu" and precision == "16-mixed":
        raise JobInvalid("A processor does not compute in 16-mixed precision. Choose 32-true, or another accelerator.")
    try:
        plugins: list[Any] = [] if precision == "32-true" else [_MixedPrecision(precision, accelerator)]  # type: ignore[arg-type]
        fabric = Fabric(accelerator=accelerator, devices=devices, plugins=plugins)
    except (RuntimeError, ValueError) as error:
        raise JobInvalid(f"Training can't run on {devices} x {accelerator} in {precision}: {error}") from error
    fabric.launch()
    keep_freed_memory()
    if threads is not None:
        torch.set_num_threads(threads)
    return fabric


def choose(accelerator: str = "auto") -> torch.device:
    """The device of what needs one only; `accelerator` as of `start`.

    Raises:
        JobInvalid: cuda is asked for, and nothing can be computed there; says why.
    """
    if accelerator == "cpu":
        return CPU
    problem = _problem_with_cuda()
    if accelerator == "cuda" and problem:
        raise JobInvalid(f"Training can't run on cuda: {problem}. Choose another accelerator, or see to the driver.")
    return CPU if problem else torch.device("cuda")


def _problem_with_cuda() -> str:
    """Why nothing can be computed there; empty where all is well."""
    if not torch.cuda.is_available():
        return "PyTorch finds no CUDA device"
    try:
        torch.ones(1, device=f"cuda:{os.environ.get('LOCAL_RANK', '0')}").add(1)  # that of this process
    except RuntimeError as error:  # a GPU of a kind that this PyTorch is not made for, or one without free memory
        return str(error)
    return ""


@contextmanager
def gpu_memory() -> Iterator[None]:
    """What was taken on a GPU is given back in the end, to ONNX Runtime, too; OutOfMemory where it is too small."""
    try:
        yield
    except RuntimeError as error:  # of CUDA and its libraries there is no class of its own
        if not any(words in str(error) for words in ("out of memory", "ALLOC_FAILED")):
            raise
        raise OutOfMemory(
            "The GPU has too little free memory for this training. Close other programs, take a smaller network or, in "
            "a configuration, fewer and smaller chips, or train on the processor: `--accelerator cpu`, or with the "
            "environment variable CUDA_VISIBLE_DEVICES set to nothing, for QGIS before it is started. "
            f"PyTorch says: {error}"
        ) from error
    finally:
        torch.cuda.empty_cache()  # nothing where there is none


def keep_freed_memory() -> None:
    """Has glibc hold what a step frees for the next one.

    Else it gives every large block back to the kernel, which clears each page of it anew in the next step.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def computes_in_bfloat16(device: str = "cpu") -> bool:
    """Whether that kind of device has instructions for products of bfloat16; without them it is slower than float32."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.4 can't tell
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
