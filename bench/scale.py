"""`python -m bench.scale`: how the cost of every operator grows with one of its sizes, and the fitted exponent.

The time of a call is fitted as ``c * size^e`` over the larger half of the sizes, where the fixed cost of a call no
longer hides the growth: 1 is proportional. All sizes of a sweep are timed interleaved, medians of repeats.
"""

from __future__ import annotations

import argparse
import datetime
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import memory

if __name__ == "__main__":
    memory.restart_with_kept("bench.scale")  # before torch is imported

import torch

from fastmix import SoftTarget, functional

from . import machine, report
from .runner import interleave
from .timing import Stats, timer

RESULTS = Path(__file__).parent / "results"
Call = Callable[[], Any]


@dataclass(frozen=True)
class Sweep:
    """op over the values of one size; make(value, device) returns the call that is timed. rest: the other sizes."""

    op: str
    size: str
    values: tuple[int, ...]
    rest: str
    make: Callable[[int, torch.device], Call]


def _blend(n: int, side: int, k: int) -> Callable[[torch.device], Call]:
    def make(device: torch.device) -> Call:
        x = torch.randn(n, 3, side, side, device=device)
        index = torch.stack([torch.randperm(n, device=device) for _ in range(k)], 1)
        weight = torch.full((n, k), 1 / k, device=device)
        return lambda: functional.blend(x, index, weight)
    return make


def _paste(n: int, side: int, k: int) -> Callable[[torch.device], Call]:
    def make(device: torch.device) -> Call:
        x = torch.randn(n, 3, side, side, device=device)
        index = torch.stack([torch.randperm(n, device=device) for _ in range(k)], 1)
        step = side // (2 * k)
        boxes = torch.tensor([[step * j, step * j, side - 2 * step * j, side - 2 * step * j] for j in range(1, k)],
                             dtype=torch.int32, device=device).view(1, k - 1, 4).repeat(n, 1, 1)
        return lambda: functional.paste(x, index, boxes)
    return make


def _rmix(n: int, side: int, grid: int) -> Callable[[torch.device], Call]:
    def make(device: torch.device) -> Call:
        x, grad = (torch.randn(n, 3, side, side, device=device) for _ in range(2))
        partner, q = torch.randperm(n, device=device), torch.rand(n, device=device)
        lam = torch.tensor(0.7, device=device)
        return lambda: functional.patch_mix(x, partner, functional.saliency_mask(grad, (grid, grid), q), lam)
    return make


def _loss(n: int, j: int, k: int) -> Callable[[torch.device], Call]:
    def make(device: torch.device) -> Call:
        logits = torch.randn(n, j, device=device, requires_grad=True)
        target = SoftTarget(torch.randint(j, (n, k), device=device), torch.full((n, k), 1 / k, device=device))

        def call() -> None:
            logits.grad = None
            functional.soft_cross_entropy(logits, target).backward()
        return call
    return make


def _isda(n: int, j: int, a: int, kind: str) -> Callable[[torch.device], Call]:
    def make(device: torch.device) -> Call:
        logits, weight = torch.randn(n, j, device=device), torch.randn(j, a, device=device)
        cov = torch.rand((j, a) if kind == "diag" else (j, a, a), device=device)
        labels = torch.randint(j, (n,), device=device)
        return lambda: functional.isda_logits(logits, weight, cov, labels, 0.5, kind=kind)
    return make


def _covariance(n: int, j: int, a: int, kind: str) -> Callable[[torch.device], Call]:
    def make(device: torch.device) -> Call:
        count, mean = torch.zeros(j, dtype=torch.int64, device=device), torch.zeros(j, a, device=device)
        cov = torch.zeros((j, a) if kind == "diag" else (j, a, a), device=device)
        features, labels = torch.randn(n, a, device=device), torch.randint(j, (n,), device=device)
        return lambda: functional.covariance_update_(count, mean, cov, features, labels, kind=kind)
    return make


def _sweep(op: str, size: str, values: tuple[int, ...], rest: str,
           make: Callable[[int], Callable[[torch.device], Call]]) -> Sweep:
    return Sweep(op, size, values, rest, lambda value, device: make(value)(device))


SWEEPS = (
    _sweep("blend", "N", (16, 32, 64, 128, 256), "3x64x64, K=2", lambda v: _blend(v, 64, 2)),
    _sweep("blend", "side", (32, 64, 96, 128, 192), "N=32, K=2", lambda v: _blend(32, v, 2)),
    _sweep("blend", "K", (1, 2, 4, 8), "64x3x64x64", lambda v: _blend(64, 64, v)),
    _sweep("paste", "N", (16, 32, 64, 128, 256), "3x64x64, K=3", lambda v: _paste(v, 64, 3)),
    _sweep("paste", "side", (32, 64, 96, 128, 192), "N=32, K=3", lambda v: _paste(32, v, 3)),
    _sweep("paste", "K", (1, 2, 4, 8), "64x3x64x64", lambda v: _paste(64, 64, v)),
    _sweep("patch_mix", "N", (16, 32, 64, 128, 256), "3x64x64 with its mask, 4x4", lambda v: _rmix(v, 64, 4)),
    _sweep("patch_mix", "side", (32, 64, 96, 128, 192), "N=32 with its mask, 4x4", lambda v: _rmix(32, v, 4)),
    _sweep("soft_target", "N", (32, 64, 128, 256, 512), "J=1000, K=2, with gradient", lambda v: _loss(v, 1000, 2)),
    _sweep("soft_target", "J", (10, 100, 1000, 5000, 21841), "N=128, K=2, with gradient", lambda v: _loss(128, v, 2)),
    _sweep("soft_target", "K", (1, 2, 4, 8), "128x1000, with gradient", lambda v: _loss(128, 1000, v)),
    _sweep("isda diag", "J", (50, 100, 200, 400, 800), "N=64, A=512", lambda v: _isda(64, v, 512, "diag")),
    _sweep("isda diag", "A", (128, 256, 512, 1024, 2048), "N=64, J=200", lambda v: _isda(64, 200, v, "diag")),
    _sweep("isda full", "A", (64, 128, 256, 384), "N=64, J=100", lambda v: _isda(64, 100, v, "full")),
    _sweep("covariance full", "A", (64, 128, 256, 384), "N=64, J=100", lambda v: _covariance(64, 100, v, "full")),
    _sweep("covariance diag", "N", (64, 128, 256, 512), "J=100, A=512", lambda v: _covariance(v, 100, 512, "diag")),
)


def exponent(values: tuple[int, ...], times: list[float]) -> float:
    """The slope of log time over log size, least squares over the larger half of the sizes (at least three)."""
    count = max(3, (len(values) + 1) // 2)
    x, y = ([math.log(v) for v in series[-count:]] for series in (values, times))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def run_sweep(sweep: Sweep, device: torch.device, seconds: float) -> dict[str, Any]:
    calls = {str(value): sweep.make(value, device) for value in sweep.values}
    for call in calls.values():
        call()
    others = machine.other_cpu_seconds()
    times, failed = interleave({name: timer(device, call, [()]) for name, call in calls.items()}, seconds)
    if failed:
        raise next(iter(failed.values()))
    medians = [Stats.of(times[str(value)]).median * 1e6 for value in sweep.values]
    return {"op": sweep.op, "size": sweep.size, "rest": sweep.rest, "values": list(sweep.values), "median_us": medians,
            "exponent": exponent(sweep.values, medians), "cpu_seconds_of_others": machine.other_cpu_seconds() - others}


def table(rows: list[dict[str, Any]]) -> str:
    lines = [("operator", "over", "exponent", "times", "other sizes")]
    for row in rows:
        times = ", ".join(f"{value}: {report.duration(us)}"
                          for value, us in zip(row["values"], row["median_us"], strict=True))
        lines.append((row["op"], row["size"], f"{row['exponent']:.2f}", times, row["rest"]))
    return "\n".join(report.aligned(lines))


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m bench.scale", description="How the operators' costs grow.")
    p.add_argument("--op", action="append", help="only sweeps of operators that begin so")
    p.add_argument("--device", help="cpu or cuda (default: cuda if there is one)")
    p.add_argument("--threads", type=int, help="torch's CPU threads (default: torch's own)")
    p.add_argument("--seconds", type=float, default=2.0, help="timing per sweep (2)")
    p.add_argument("--machine", metavar="NAME", help="what to call this machine in the result")
    p.add_argument("--json", type=Path, metavar="PATH", help="(bench/results/<machine>/<date>-scale.json)")
    args = p.parse_args(argv)
    chosen = [sweep for sweep in SWEEPS if not args.op or sweep.op.startswith(tuple(args.op))]
    if not chosen:
        p.error(f"--op {', '.join(args.op)}: no sweep begins so; there are {', '.join(sorted({s.op for s in SWEEPS}))}")
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    torch.manual_seed(0)
    now = datetime.datetime.now(datetime.timezone.utc)
    result = {"format": "scale-1", "date": now.isoformat(timespec="seconds"),
              "machine": machine.describe(device, args.machine),
              "settings": {"seconds": args.seconds, "keeps_memory": memory.is_kept()}, "sweeps": []}
    for sweep in chosen:
        result["sweeps"].append(run_sweep(sweep, device, args.seconds))
        print(f"{sweep.op} over {sweep.size}: exponent {result['sweeps'][-1]['exponent']:.2f}", file=sys.stderr)
    print(table(result["sweeps"]))
    path = args.json or RESULTS / machine.slug(result["machine"]["name"]) / f"{now:%Y-%m-%d-%H%M}-scale.json"
    report.save(result, path)
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
