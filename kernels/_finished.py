"""Counters of finished programs, by which the last of a launch knows that it is: 0 before and after a launch."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

_STREAMS, _CAPTURES = 1 << 10, 1 << 14
_STEP = 4  # elements of 4 bytes: pointers that differ in their alignment would be kernels of their own
_lock = threading.Lock()
_memory: dict[torch.device, Tensor] = {}
_captures: dict[torch.device, int] = {}
_of_stream: dict[tuple[torch.device, int], Tensor] = {}


def _cleared(device: torch.device) -> Tensor:
    if device.type != "cuda":
        return torch.zeros(_STEP * (_STREAMS + _CAPTURES), dtype=torch.int32, device=device)
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device)):
        memory = torch.zeros(_STEP * (_STREAMS + _CAPTURES), dtype=torch.int32, device=device)
        torch.cuda.current_stream(device).synchronize()
        return memory


def finished_programs(device: torch.device) -> Tensor | None:
    """A counter for the next launch on the current stream, or None: then another launch has to do what the last program
    would.

    Launches of one stream follow each other, so they share one; a launch that is captured has one for itself, since its
    graph may be replayed beside anything. The counters of a device are allocated and cleared once, by a thread and on a
    stream of their own: memory that a graph being warmed up reserves for itself is given back after it.
    """
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    captured = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    if not captured and (found := _of_stream.get((device, stream))) is not None:
        return found
    with _lock:
        if device not in _memory:
            if captured:
                return None  # no memory can be cleared before the graph runs
            with ThreadPoolExecutor(1) as executor:
                _memory[device] = executor.submit(_cleared, device).result()
        memory = _memory[device]
        if captured:
            at = _STREAMS + _captures.get(device, 0)
            _captures[device] = at + 1 - _STREAMS
            return memory[_STEP * at:][:1] if at < _STREAMS + _CAPTURES else None
        used = sum(of == device for of, _ in _of_stream)
        if used == _STREAMS:
            return None
        return _of_stream.setdefault((device, stream), memory[_STEP * used:][:1])
