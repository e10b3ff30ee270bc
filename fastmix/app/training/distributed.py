"""One process or several: torchrun's environment, reductions, one writer."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ..._starting import first_rank, let_speak, received
from ...ops.dispatch import select
from ..errors import USAGE, CommandError, UsageError, explained, first_line
from .watch import Watch

Shared = TypeVar("Shared")
USED = ("view", "soft_target")  # by every command that runs a model
PEER_ENDED = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "gloo", "NCCL")


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

    def share(self, make: Callable[[], Shared]) -> Shared:
        """What ``make`` gives in the first process, in all of them. Its CommandError is raised in all; the others say
        nothing of it."""
        if self.world == 1:
            return make()
        sent: list[Any] = [None, None]
        failed = None
        if self.first:
            try:
                sent[0] = make()
            except (CommandError, OSError) as error:
                failed = error
                sent[1] = explained(error).code
        dist.broadcast_object_list(sent, device=self.device)
        if failed is not None:
            raise failed
        if sent[1] is not None:
            raise CommandError("", sent[1])
        return sent[0]


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
            raise CommandError(f"--device is {name!r} (index {index}), but torch sees {count} CUDA devices", USAGE)
        device = torch.device("cuda", index)
    return device


def _from_torchrun(key: str, default: int) -> int:
    value = os.environ.get(key, str(default))
    if not value.isdecimal():
        raise UsageError(f"{key} is {value!r}, want a whole number, as torchrun sets it")
    return int(value)


@contextmanager
def processes(device_name: str, left: Callable[[], str] = str) -> Iterator[Processes]:
    """Joins torchrun's process group (gloo on the CPU, nccl on GPUs) for the time of the block.

    left: what an early end leaves, in words. Where a process is stopped the others end; see `watch`.
    """
    rank, world, local = (_from_torchrun(key, default) for key, default in
                          (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
    device = _device(device_name, local, world)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    for op in USED:
        select(op, torch.empty(0, device=device))  # raises where FASTMIX_BACKEND cannot serve it
    if world == 1:
        yield Processes(0, 1, device)
        return
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    except (ValueError, RuntimeError) as error:
        raise CommandError(f"the {world} processes of WORLD_SIZE do not find each other: {first_line(error)}") from None
    watch = Watch(rank, world, left)
    watch.start()
    try:
        yield Processes(rank, world, device)
        # Together, and with no DistributedDataParallel left that holds the group: gloo's threads must end before the
        # interpreter does, which else aborts now and then (seen on a busy machine).
        gc.collect()
        dist.barrier()
    except RuntimeError as error:
        if received() is not None or not any(words in str(error) for words in PEER_ENDED):
            raise
        let_speak(watch.speaks())
        reason = f"another process of this run has ended, or cannot be reached ({first_line(error)[:200]})"
        raise CommandError("; ".join(filter(None, [reason, left()])) if first_rank() else "") from error
    except KeyboardInterrupt:
        let_speak(watch.speaks())  # the first rank may be the one that was killed
        raise
    finally:
        watch.stop()
        dist.destroy_process_group()
