from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import distributed, multiprocessing, nn

from qgis_iic.training.distributed import sum_over_processes
from qgis_iic.training.iic_loss import joints_by_loop, loss_of_joints

PROCESSES = 2
CHIPS = 4
DISPLACEMENTS = [(0, 0), (1, -2), (-1, 0)]


def views() -> torch.Tensor:
    """[2 views, N, 3, 6, 5]: the second is the first with noise."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(CHIPS, 3, 6, 5, generator=generator, dtype=torch.float64)
    noise = torch.randn(CHIPS, 3, 6, 5, generator=generator, dtype=torch.float64)
    return torch.stack([first, first + 0.3 * noise])


def model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Conv2d(3, 4, 1).double()


def loss(model: nn.Module, pair: torch.Tensor) -> torch.Tensor:
    p1, p2 = model(pair.flatten(0, 1)).softmax(dim=1).chunk(2)
    return loss_of_joints(sum_over_processes(joints_by_loop(p1, p2, DISPLACEMENTS)), 1.5).value


def gradient(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


def train_a_part(rank: int, folder: str) -> None:
    """One process: a step on its share of the chips, then its loss and gradient as a file."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=PROCESSES)
    parallel = nn.parallel.DistributedDataParallel(model())
    value = loss(parallel, views().chunk(PROCESSES, dim=1)[rank])
    value.backward()
    torch.save({"loss": value.detach(), "gradient": gradient(parallel)}, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()
    os._exit(0)  # torch's own threads abort the orderly exit of such a process now and then, after all is done


def test_two_processes_have_the_gradient_of_one(tmp_path: Path) -> None:
    multiprocessing.spawn(train_a_part, (str(tmp_path),), nprocs=PROCESSES)
    alone = model()
    value = loss(alone, views())
    value.backward()
    for rank in range(PROCESSES):
        found = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(found["loss"], value.detach(), rtol=0, atol=1e-12)
        torch.testing.assert_close(found["gradient"], gradient(alone), rtol=0, atol=1e-10)


def test_averaging_the_losses_of_the_parts_is_another_objective() -> None:
    together, apart = model(), model()
    loss(together, views()).backward()
    torch.stack([loss(apart, part) for part in views().chunk(PROCESSES, dim=1)]).mean().backward()
    assert (gradient(together) - gradient(apart)).abs().max() > 1e-3


def test_one_process_keeps_its_joints() -> None:
    joints = torch.rand(2, 3, 3)
    assert sum_over_processes(joints) is joints
