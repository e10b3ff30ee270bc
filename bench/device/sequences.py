"""Calls in a row whose goals are times: ISDA's three, R-Mix, DCutMix from plan to loss. Timed by `bench.device.goals`.

A sequence is timed in a CUDA graph (device time), as eager calls, and as what the host takes to enqueue one. On the CPU
smaller shapes run, without graphs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

import fastmix
import fastmix.functional as F
from fastmix import ISDACovariance

from ..harness.cuda_graph import capture
from ..harness.timing import Stats

Call = Callable[[], object]


def isda(kind: str, n: int, j: int, a: int, device: str) -> Call:
    """Update, augmented logits, and their backward: what ISDA adds to a training step."""
    covariance = ISDACovariance(j, a, kind, device=device)
    features, labels = torch.randn(n, a, device=device), torch.randint(0, j, (n,), device=device)
    logits, weight = torch.randn(n, j, device=device), torch.randn(j, a, device=device) / a ** 0.5
    logits.requires_grad_()
    weight.requires_grad_()
    g = torch.randn(n, j, device=device) / n

    def step() -> object:
        covariance.update(features, labels)
        out = F.isda_logits(logits, weight, covariance.cov, labels, 0.5, kind=kind)
        return out, *torch.autograd.grad(out, (logits, weight), g)
    return step


def rmix(n: int, side: int, dtype: torch.dtype, device: str) -> Call:
    x, grad = (torch.randn(n, 3, side, side, device=device).to(dtype) for _ in range(2))
    q, lam = torch.rand(n, device=device), torch.rand(n, device=device)
    partner = torch.randperm(n, device=device)
    return lambda: F.rmix(x, grad, (4, 4), q, partner, lam)


def dcutmix(n: int, side: int, classes: int, device: str) -> Call:
    """Plan, paste, targets and loss, whose kernel finds the logits' gradient as well."""
    mixer = fastmix.DCutMix(5, 1 / 3)
    x, y = torch.randn(n, 3, side, side, device=device), torch.randint(0, classes, (n,), device=device)
    logits = torch.randn(n, classes, device=device).requires_grad_()

    def step() -> object:
        images, target = mixer(x, y)
        return images, F.soft_cross_entropy(logits, target)
    return step


def timed(call: Call, device: str, calls: int, repeats: int) -> Stats:
    """Seconds a call."""
    times = []
    for _ in range(repeats):
        if device == "cpu":
            began = time.perf_counter()
            for _ in range(calls):
                call()
            times.append((time.perf_counter() - began) / calls)
            continue
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / calls)
    return Stats.of(times)


def enqueued(call: Call, calls: int, repeats: int) -> Stats:
    """Seconds of the host a call, on a GPU."""
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(calls):
            call()
        times.append((time.perf_counter() - began) / calls)
    torch.cuda.synchronize()
    return Stats.of(times)


def microseconds(stats: Stats) -> dict[str, Any]:
    return {"median": stats.median * 1e6, "q1": stats.q1 * 1e6, "q3": stats.q3 * 1e6}


def measure(call: Call, device: str) -> dict[str, Any]:
    """"graph", "eager", "host": microseconds a call; the CPU has the eager one in place of all."""
    if device == "cpu":
        call()
        found = microseconds(timed(call, device, 1, 3))
        return {"graph": found, "eager": found, "host": found}
    graph, _ = capture(call)
    graph.replay()
    torch.cuda.synchronize()
    once = timed(graph.replay, device, 1, 3).median
    calls = max(1, min(200, int(2e-2 / max(once, 1e-6))))  # 20 ms a repeat
    return {"graph": microseconds(timed(graph.replay, device, calls, 9)),
            "eager": microseconds(timed(call, device, calls, 5)),
            "host": microseconds(enqueued(call, min(calls, 50), 5))}
