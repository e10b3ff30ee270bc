"""Clocks for one call on the host or a GPU, its peak extra memory, and the statistics over repeats.

CPU: wall time of an inner loop of at least INNER_SECONDS. GPU: time between two events around the inner loop, which
walks over enough argument sets to find the L2 cold and is replayed as a CUDA graph where one call takes less than
GRAPH_BELOW (launches would be measured otherwise); the host's time to enqueue a call is kept apart.

Memory: bytes that torch's allocators handed out during one call above what the call leaves behind (its outputs and
the leaf's gradient). On the CPU they are read from the profiler's allocation events: exact, Inductor's buffers and
the kernels' own tensors included. Resident set size would add the allocator's and the page tables' history; a
TorchDispatchMode would miss what an operator allocates inside. Scratch that a kernel takes from malloc is not seen.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .cuda_graph import capture

# The profiler that counts allocations logs two lines a call otherwise. Read when it is used first.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

INNER_SECONDS = 0.5e-3
GRAPH_BELOW = 100e-6
MAX_INNER = 1000
SLOW = 0.1  # seconds of a call beside which a cold cache is nothing

Args = tuple[Any, ...]


@dataclass(frozen=True)
class Stats:
    median: float
    q1: float
    q3: float
    repeats: int

    @classmethod
    def of(cls, times: Sequence[float]) -> Stats:
        if len(times) < 2:
            value = times[0]
            return cls(value, value, value, len(times))
        q1, median, q3 = statistics.quantiles(times, n=4, method="inclusive")
        return cls(median, q1, q3, len(times))


def floor_seconds(moved: int, clone_bytes: int, clone_seconds: float) -> float:
    """The time that ``moved`` bytes take at the rate at which a clone moves its bytes (read + written)."""
    return moved * clone_seconds / clone_bytes


def inner_calls(seconds: float) -> int:
    """Calls in one timed loop, for a call that takes ``seconds``."""
    return max(1, min(MAX_INNER, round(INNER_SECONDS / max(seconds, 1e-9) + 0.5)))


def argument_sets(device: torch.device, set_bytes: int) -> int:
    """How many copies of the arguments a loop has to walk over: twice the L2 on a GPU, one on the CPU.

    On the CPU the batch was just written by the loader or the layer before, so a warm cache is the normal case.
    """
    if device.type != "cuda":
        return 1
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return min(64, 2 + 2 * cache // max(set_bytes, 1))


class HostTimer:
    """``timer()`` is the seconds of one call of ``call(*args)``, over an inner loop."""

    host: float | None = None
    graph = False

    def __init__(self, call: Callable[..., Any], sets: Sequence[Args]) -> None:
        self._call = call
        self._warm = sets[0]
        estimate = self._loop([sets[0]])
        self._warms = estimate < SLOW
        if self._warms:
            estimate = min(estimate, self._loop([sets[0]]), self._loop([sets[0]]))
        self._schedule = [sets[i % len(sets)] for i in range(inner_calls(estimate))]

    @property
    def inner(self) -> int:
        return len(self._schedule)

    def _loop(self, schedule: Sequence[Args]) -> float:
        call, clock = self._call, time.perf_counter
        start = clock()
        for args in schedule:
            call(*args)
        return (clock() - start) / len(schedule)

    def __call__(self) -> float:
        if self._warms:  # the provider before left its own data in the caches
            self._call(*self._warm)
        return self._loop(self._schedule)


class CudaTimer:
    """The same on the device's clock. ``host`` is the median time to enqueue a call, ``graph`` whether one replays."""

    def __init__(self, call: Callable[..., Any], sets: Sequence[Args]) -> None:
        self._call = call
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        self._graph: torch.cuda.CUDAGraph | None = None
        self._schedule = list(sets)
        self.host = Stats.of([self._enqueue() for _ in range(5)]).median
        estimate = min(self() for _ in range(3))
        rounds = -(-inner_calls(estimate) // len(sets))
        self._schedule = list(sets) * rounds
        if estimate < GRAPH_BELOW:
            self._graph = self._capture()

    @property
    def inner(self) -> int:
        return len(self._schedule)

    @property
    def graph(self) -> bool:
        return self._graph is not None

    def _loop(self) -> None:
        for args in self._schedule:
            self._call(*args)

    def _enqueue(self) -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        self._loop()
        seconds = (time.perf_counter() - start) / len(self._schedule)
        torch.cuda.synchronize()
        return seconds

    def _capture(self) -> torch.cuda.CUDAGraph | None:
        try:
            return capture(self._loop, warm=1)[0]
        except RuntimeError:  # a call that synchronises cannot be captured and is timed with its launches
            torch.cuda.synchronize()
            return None

    def __call__(self) -> float:
        start, end = self._events
        start.record()
        if self._graph is not None:
            self._graph.replay()
        else:
            self._loop()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / len(self._schedule)


def timer(device: torch.device, call: Callable[..., Any], sets: Sequence[Args]) -> HostTimer | CudaTimer:
    return CudaTimer(call, sets) if device.type == "cuda" else HostTimer(call, sets)


def peak_extra_bytes(device: torch.device, call: Callable[..., Any], args: Args) -> int:
    """The peak of allocated bytes during ``call(*args)`` minus what is still allocated when it has returned."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats(device)
        result = call(*args)
        torch.cuda.synchronize()
        extra = torch.cuda.max_memory_allocated(device) - torch.cuda.memory_allocated(device)
        del result
        return extra
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        result = call(*args)
    del result
    events = [e for e in profile.kineto_results.events() if e.name() == "[memory]"]
    return peak_above_end([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())])


def peak_above_end(changes: Sequence[int]) -> int:
    """The largest running sum of allocations (+) and frees (-), counted from its last value."""
    total = peak = 0
    for change in changes:
        total += change
        peak = max(peak, total)
    return peak - total
