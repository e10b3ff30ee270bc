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

FORMAT = "scale-2"
Call = Callable[[], Any]


@dataclass(frozen=True)
class Sweep:
    """op over the values of one size; make(device, **sizes) returns the call that is timed. fixed: the other sizes.

    note: what else there is to know.
    """

    op: str
    size: str
    values: tuple[int, ...]
    fixed: dict[str, int]
    make: Callable[..., Call]
    note: str = ""

    def call(self, value: int, device: torch.device) -> Call:
        return self.make(device, **self.fixed, **{self.size: value})

    @property
    def rest(self) -> str:
        return ", ".join([*(f"{name}={value}" for name, value in self.fixed.items()), *filter(None, [self.note])])


def _blend(device: torch.device, N: int, side: int, K: int) -> Call:
    x = torch.randn(N, 3, side, side, device=device)
    index = torch.stack([torch.randperm(N, device=device) for _ in range(K)], 1)
    weight = torch.full((N, K), 1 / K, device=device)
    return lambda: functional.blend(x, index, weight)


def _paste(device: torch.device, N: int, side: int, K: int) -> Call:
    x = torch.randn(N, 3, side, side, device=device)
    index = torch.stack([torch.randperm(N, device=device) for _ in range(K)], 1)
    step = side // (2 * K)
    boxes = torch.tensor([[step * j, step * j, side - 2 * step * j, side - 2 * step * j] for j in range(1, K)],
                         dtype=torch.int32, device=device).view(1, K - 1, 4).repeat(N, 1, 1)
    return lambda: functional.paste(x, index, boxes)


def _rmix(device: torch.device, N: int, side: int) -> Call:
    x, grad = (torch.randn(N, 3, side, side, device=device) for _ in range(2))
    partner, q = torch.randperm(N, device=device), torch.rand(N, device=device)
    lam = torch.tensor(0.7, device=device)
    return lambda: functional.patch_mix(x, partner, functional.saliency_mask(grad, (4, 4), q), lam)


def _loss(device: torch.device, N: int, J: int, K: int) -> Call:
    logits = torch.randn(N, J, device=device, requires_grad=True)
    target = SoftTarget(torch.randint(J, (N, K), device=device), torch.full((N, K), 1 / K, device=device))

    def call() -> None:
        logits.grad = None
        functional.soft_cross_entropy(logits, target).backward()
    return call


def _isda(kind: str) -> Callable[..., Call]:
    def make(device: torch.device, N: int, J: int, A: int) -> Call:
        logits = torch.randn(N, J, device=device, requires_grad=True)
        weight = torch.randn(J, A, device=device, requires_grad=True)
        cov = torch.rand((J, A) if kind == "diag" else (J, A, A), device=device)
        labels, grad = torch.randint(J, (N,), device=device), torch.randn(N, J, device=device)

        def call() -> None:
            logits.grad = weight.grad = None
            functional.isda_logits(logits, weight, cov, labels, 0.5, kind=kind).backward(grad)
        return call
    return make


def _covariance(kind: str) -> Callable[..., Call]:
    def make(device: torch.device, N: int, J: int, A: int) -> Call:
        count, mean = torch.zeros(J, dtype=torch.int64, device=device), torch.zeros(J, A, device=device)
        cov = torch.zeros((J, A) if kind == "diag" else (J, A, A), device=device)
        features, labels = torch.randn(N, A, device=device), torch.randint(J, (N,), device=device)
        return lambda: functional.covariance_update_(count, mean, cov, features, labels, kind=kind)
    return make


BATCHES, SIDES, IMAGES = (8, 16, 32, 64, 128), (64, 96, 128, 192, 256), (1, 2, 4, 8)
SWEEPS = (
    Sweep("blend", "N", BATCHES, {"side": 224, "K": 2}, _blend),
    Sweep("blend", "side", SIDES, {"N": 32, "K": 2}, _blend),
    Sweep("blend", "K", IMAGES, {"N": 64, "side": 128}, _blend),
    Sweep("paste", "N", BATCHES, {"side": 224, "K": 3}, _paste),
    Sweep("paste", "side", SIDES, {"N": 32, "K": 3}, _paste),
    Sweep("paste", "K", IMAGES, {"N": 64, "side": 128}, _paste),
    Sweep("patch_mix", "N", BATCHES, {"side": 224}, _rmix, "with its mask, 4x4"),
    Sweep("patch_mix", "side", SIDES, {"N": 32}, _rmix, "with its mask, 4x4"),
    Sweep("soft_target", "N", (32, 64, 128, 256, 512), {"J": 1000, "K": 2}, _loss, "with gradient"),
    Sweep("soft_target", "J", (10, 100, 1000, 5000, 21841), {"N": 128, "K": 2}, _loss, "with gradient"),
    Sweep("soft_target", "K", IMAGES, {"N": 128, "J": 1000}, _loss, "with gradient"),
    Sweep("isda diag", "N", (16, 32, 64, 128), {"J": 2000, "A": 1024}, _isda("diag"), "with gradients"),
    Sweep("isda diag", "J", (500, 1000, 2000, 4000, 8000), {"N": 64, "A": 1024}, _isda("diag"), "with gradients"),
    Sweep("isda diag", "A", (128, 256, 512, 1024, 2048), {"N": 64, "J": 1000}, _isda("diag"), "with gradients"),
    Sweep("isda full", "A", (64, 128, 256, 384), {"N": 64, "J": 100}, _isda("full"), "with gradients"),
    Sweep("covariance full", "A", (64, 128, 256, 384), {"N": 64, "J": 100}, _covariance("full")),
    Sweep("covariance diag", "N", (64, 128, 256, 512), {"J": 100, "A": 512}, _covariance("diag")),
    Sweep("covariance diag", "J", (1000, 2000, 4000, 8000, 21841), {"N": 64, "A": 1024}, _covariance("diag")),
    Sweep("covariance diag", "A", (128, 256, 512, 1024, 2048), {"N": 128, "J": 1000}, _covariance("diag")),
)


def exponent(values: tuple[int, ...], times: list[float]) -> float:
    """The slope of log time over log size, least squares over the larger half of the sizes (at least three)."""
    count = max(3, (len(values) + 1) // 2)
    x, y = ([math.log(v) for v in series[-count:]] for series in (values, times))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def predicted(sweeps: list[dict[str, Any]], op: str, **sizes: int) -> float:
    """Microseconds of a call of these sizes: from the measured call that is nearest to it in work, along the fitted
    exponents. ValueError for an operator or a size without a sweep.
    """
    own = {sweep["size"]: sweep for sweep in sweeps if sweep["op"] == op}
    if not own:
        raise ValueError(f"bench: there is no sweep of {op}")

    def along(sweep: dict[str, Any]) -> tuple[float, float]:
        """(how far the call lies from this sweep's last, its time)."""
        measured = {**sweep["fixed"], sweep["size"]: sweep["values"][-1]}
        time, distance = sweep["median_us"][-1], 0.0
        for name, value in sizes.items():
            if value == measured[name]:
                continue
            if name not in own:
                raise ValueError(f"bench: there is no sweep of {op} over {name}")
            change = math.log(value / measured[name]) * own[name]["exponent"]
            time, distance = time * math.exp(change), distance + abs(change)
        return distance, time
    return min(map(along, own.values()))[1]


def run_sweep(sweep: Sweep, device: torch.device, seconds: float) -> dict[str, Any]:
    calls = {str(value): sweep.call(value, device) for value in sweep.values}
    for call in calls.values():
        call()
    others = machine.other_cpu_seconds()
    times, failed = interleave({name: timer(device, call, [()]) for name, call in calls.items()}, seconds)
    if failed:
        raise next(iter(failed.values()))
    medians = [Stats.of(times[str(value)]).median * 1e6 for value in sweep.values]
    return {"op": sweep.op, "size": sweep.size, "fixed": sweep.fixed, "rest": sweep.rest,
            "values": list(sweep.values), "median_us": medians,
            "exponent": exponent(sweep.values, medians), "cpu_seconds_of_others": machine.other_cpu_seconds() - others}


def exchanged_bytes(kind: str, classes: int, features: int, present: int) -> int:
    """What every rank puts into the all-reduces of one ISDA update (see fastmix/isda_ranks.py), independent of N.

    present: classes in the whole batch.
    """
    second = {"full": 0, "diag": classes * features, "shared": features**2, "identity": 0}
    matrices = 4 * present * features**2 if kind == "full" else 0
    return 8 * (classes * (features + 1) + 1 + second[kind]) + matrices


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
    result = {"format": FORMAT, "date": now.isoformat(timespec="seconds"),
              "machine": machine.describe(device, args.machine),
              "settings": {"seconds": args.seconds, "keeps_memory": memory.is_kept()}, "sweeps": []}
    for number, sweep in enumerate(chosen, 1):
        result["sweeps"].append(run_sweep(sweep, device, args.seconds))
        print(f"[{number}/{len(chosen)}] {sweep.op} over {sweep.size}: exponent "
              f"{result['sweeps'][-1]['exponent']:.2f}", file=sys.stderr)
    print(table(result["sweeps"]))
    path = args.json or report.RESULTS / machine.slug(result["machine"]["name"]) / f"{now:%Y-%m-%d-%H%M}-scale.json"
    report.save(result, path)
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
