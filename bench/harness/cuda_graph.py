"""Capture of a call in a CUDA graph, and what stands for one where the device check is tried without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

Result = TypeVar("Result")


def capture(call: Callable[[], Result], warm: int = 3) -> tuple[torch.cuda.CUDAGraph, Result]:
    """(the graph of a call, where its replays leave their result). RuntimeError if the call waits for the device.

    warm: calls before, on a stream of their own: they compile kernels and allocate what a library keeps.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(warm):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()
    return graph, result


class Again:
    """In place of a graph on the CPU: calls again at every replay, into the tensors of the first result."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call, self.result = call, call()

    def replay(self) -> None:
        new = self._call()
        with torch.no_grad():
            for old, now in zip(tree_leaves(self.result), tree_leaves(new), strict=True):
                if isinstance(old, Tensor) and old is not now:
                    old.detach().copy_(now)


def captured(call: Callable[[], Result], device: str) -> tuple[torch.cuda.CUDAGraph | Again, Result]:
    """`capture` on a GPU; on the CPU what calls again."""
    if device == "cuda":
        return capture(call)
    again = Again(call)
    return again, again.result  # type: ignore[return-value]
