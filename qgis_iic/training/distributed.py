"""The joint of a batch that is spread over several processes.

The joint is a statistic of the whole batch, and the loss is not linear in it: the mean of the processes' losses is
another objective. So the unnormalised joints are summed over the processes before anything else is done with them. For
this, all processes must draw the same displacements; for the very result of one process, batch normalisation must
share its statistics too (`torch.nn.SyncBatchNorm`).
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

Value = TypeVar("Value")


def sum_over_processes(joints: Tensor) -> Tensor:
    """Unnormalised joints [T, K, K] of the whole batch, the same in every process, of the joints of each part.

    Without a process group these are the joints themselves. Gradients flow back: with those of the parameters averaged
    over the processes, as `DistributedDataParallel` does, they are those of one process on the whole batch.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return joints
    total: Tensor = _Sum.apply(joints)  # type: ignore[no-untyped-call]
    return total


class _Sum(torch.autograd.Function):
    """An all-reduce that knows its gradient.

    Each process's loss depends on each process's joints, so the gradient is summed as well. W processes that hold the
    same loss thereby get W times its gradient by their part, which averaging over W turns into the sum of the parts.
    The library's own function for it is deprecated in favour of one in a private module.
    """

    @staticmethod
    def forward(ctx: Any, joints: Tensor) -> Tensor:
        return _all_reduced(joints)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _all_reduced(gradients[0])


def _all_reduced(values: Tensor) -> Tensor:
    total = values.clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(total)
    return total


def of_first_process(value: Value) -> Value:
    """The first process's `value`, a small object that can be pickled; without a process group the value itself."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return value
    holder = [value]
    distributed.broadcast_object_list(holder)
    return holder[0]
