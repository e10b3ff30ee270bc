"""Steps of several calls whose goals are times: ISDA and R-Mix. Run by `fastmix.bench.device.goals`.

A step is timed in a CUDA graph (device time) and as the eager call. On the CPU smaller shapes run, without graphs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import torch

import fastmix.functional as F
from fastmix import ISDACovariance

from ..harness.cuda_graph import capture

Step = Callable[[], object]


def isda_step(kind: str, n: int, j: int, a: int, device: str) -> Step:
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


def rmix_step(n: int, side: int, dtype: torch.dtype, device: str) -> Step:
    x, grad = (torch.randn(n, 3, side, side, device=device).to(dtype) for _ in range(2))
    q, lam = torch.rand(n, device=device), torch.rand(n, device=device)
    partner = torch.randperm(n, device=device)
    return lambda: F.rmix(x, grad, (4, 4), q, partner, lam)


def steps(device: str) -> Iterator[tuple[str, str, float | None, Callable[[], Step]]]:
    """(name, float32 matmul precision, goal in microseconds of device time, how to make the step)."""
    cpu = device == "cpu"
    shapes = {"CIFAR-100 WRN-28-10 full": ("full", 128, 100, 64 if cpu else 640, 150.0),
              "ImageNet diag": ("diag", 256, 100 if cpu else 1000, 64 if cpu else 2048, 60.0),
              "ImageNet full": ("full", 256, 50 if cpu else 1000, 64 if cpu else 2048, 12000.0)}
    for name, (kind, n, j, a, goal) in shapes.items():
        for precision in ("high", "highest"):
            words = "TF32" if precision == "high" else "fp32"
            yield (f"isda {name} N={n} J={j} A={a} {words}", precision, goal,
                   lambda kind=kind, n=n, j=j, a=a: isda_step(kind, n, j, a, device))
    for dtype in (torch.float32, torch.bfloat16):
        yield (f"rmix 100x3x32x32 {str(dtype)[6:]}", "highest", 12.0,
               lambda dtype=dtype: rmix_step(100, 32, dtype, device))


def median_us(call: Step, device: str, calls: int, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        if device == "cpu":
            began = time.perf_counter()
            for _ in range(calls):
                call()
            times.append((time.perf_counter() - began) * 1e6 / calls)
            continue
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / calls)
    return statistics.median(times)


def measure(step: Step, device: str) -> dict[str, float | None]:
    if device == "cpu":
        step()
        return {"graph_us": None, "eager_us": median_us(step, device, 1, 3)}
    graph, _ = capture(step)
    graph.replay()
    torch.cuda.synchronize()
    once = median_us(graph.replay, device, 1, 3)
    calls = max(1, min(200, int(2e4 / max(once, 1.0))))  # 20 ms a repeat
    return {"graph_us": median_us(graph.replay, device, calls, 9), "eager_us": median_us(step, device, calls, 5)}
