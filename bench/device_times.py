"""The cases whose goals only a GPU can show: ISDA steps, and R-Mix in one launch or two. `python -m bench.device_times`

Every line says median microseconds of one call in a CUDA graph (device time), of the eager call, and what was asked
for. `--device cpu` runs smaller shapes without graphs: it shows that the cases run, and no time of it means anything.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

import fastmix.functional as F
from fastmix import ISDACovariance

backend = importlib.import_module("fastmix.backend")
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


def rmix_step(n: int, side: int, dtype: torch.dtype, one_launch: bool, device: str) -> Step:
    x, grad = (torch.randn(n, 3, side, side, device=device).to(dtype) for _ in range(2))
    q, lam = torch.rand(n, device=device), torch.rand(n, device=device)
    partner = torch.randperm(n, device=device)
    return lambda: F.rmix(x, grad, (4, 4), q, partner, lam, one_launch=one_launch)


def steps(device: str) -> Iterator[tuple[str, str, float | None, Callable[[], Step]]]:
    """(name, float32 matmul precision, goal in microseconds of device time, how to make the step)."""
    cpu = device == "cpu"
    shapes = {"CIFAR-100 WRN-28-10 full": ("full", 128, 100, 64 if cpu else 640, 150.0),
              "ImageNet diag": ("diag", 256, 100 if cpu else 1000, 64 if cpu else 2048, 60.0),
              "ImageNet full": ("full", 256, 50 if cpu else 1000, 64 if cpu else 2048, 12000.0)}
    for name, (kind, n, j, a, goal) in shapes.items():
        for precision in ("high", "highest"):
            yield (f"isda {name} N={n} J={j} A={a}", precision, goal,
                   lambda kind=kind, n=n, j=j, a=a: isda_step(kind, n, j, a, device))
    for dtype in (torch.float32, torch.bfloat16):
        for one in (False, True):
            yield (f"rmix 100x3x32x32 {str(dtype)[6:]} {'one launch' if one else 'two launches'}", "highest", 12.0,
                   lambda dtype=dtype, one=one: rmix_step(100, 32, dtype, one, device))


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
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    graph.replay()
    torch.cuda.synchronize()
    once = median_us(graph.replay, device, 1, 3)
    calls = max(1, min(200, int(2e4 / max(once, 1.0))))  # 20 ms a repeat
    return {"graph_us": median_us(graph.replay, device, calls, 9), "eager_us": median_us(step, device, calls, 5)}


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m bench.device_times", description=__doc__.splitlines()[0])
    p.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    p.add_argument("--json", type=Path, help="where the numbers go")
    options = p.parse_args(argv)
    results, failed = [], 0
    for name, precision, goal, make in steps(options.device):
        torch.manual_seed(0)
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(precision)
        row: dict[str, object] = {"name": name, "precision": precision, "goal_us": goal}
        try:
            row |= measure(make(), options.device)
        except Exception as error:
            # One launch cannot be had without the CUDA library: that is no failure.
            lacking = "cannot be had" in str(error)
            failed += not lacking
            row["error"] = str(error).splitlines()[0] if str(error) else type(error).__name__
            if not lacking:
                traceback.print_exc()
        finally:
            torch.set_float32_matmul_precision(before)
            if options.device == "cuda":
                torch.cuda.empty_cache()
        results.append(row)
        print(line(row), flush=True)
        if options.json:
            options.json.write_text(json.dumps({"device": options.device, "steps": results}, indent=1) + "\n")
    print(f"{len(results) - failed} of {len(results)} cases ran")
    return failed > 0


def line(row: dict[str, object]) -> str:
    def number(value: object) -> str:
        return f"{value:10.1f}" if isinstance(value, float) else f"{'-':>10}"
    words = "TF32" if row["precision"] == "high" and str(row["name"]).startswith("isda") else "fp32"
    if "error" in row:
        return f"{row['name']:<46} {words}  {row['error']}"
    return (f"{row['name']:<46} {words}  graph {number(row['graph_us'])} us  eager {number(row['eager_us'])} us  "
            f"goal {number(row['goal_us'])} us")


if __name__ == "__main__":
    sys.exit(main())
