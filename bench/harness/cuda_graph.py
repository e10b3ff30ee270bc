"""Capture of a call in a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

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
