"""One process or several: torchrun's environment, reductions, one writer."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from ..console import UsageError


@dataclass(frozen=True)
class Processes:
    """This process's rank among `world`, and its device. Without torchrun: 0 of 1."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.world > 1:
            dist.all_reduce(value)
        return value

    def mean(self, value: Tensor) -> Tensor:
        """The mean over all processes, in place; value may be on the CPU where processes talk over GPUs."""
        return value.copy_(self.sum(value.to(self.device, copy=True)) / self.world)

    def smallest(self, value: Tensor) -> Tensor:
        """The minimum over all processes, in place."""
        if self.world > 1:
            dist.all_reduce(value, dist.ReduceOp.MIN)
        return value

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()


def _device(name: str, local_rank: int, world: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device is {name!r}, want auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device is {name!r}, want auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if device.index is not None and world > 1:
            raise UsageError(f"--device is {name!r}; under torchrun every process takes its own, want cuda")
        index = device.index if device.index is not None else local_rank
        if index >= count:
            raise UsageError(f"--device is {name!r} (index {index}), but torch sees {count} CUDA devices")
        device = torch.device("cuda", index)
    return device


@contextmanager
def processes(device_name: str) -> Iterator[Processes]:
    """Joins torchrun's process group (gloo on the CPU, nccl on GPUs) for the time of the block."""
    rank, world, local = (int(os.environ.get(key, default)) for key, default in
                          (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")))
    device = _device(device_name, local, world)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world == 1:
        yield Processes(0, 1, device)
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(rank, world, device)
        # Together, and with no DistributedDataParallel left that holds the group: gloo's threads must end before the
        # interpreter does, which else aborts now and then (seen on a busy machine).
        gc.collect()
        dist.barrier()
    finally:
        dist.destroy_process_group()
