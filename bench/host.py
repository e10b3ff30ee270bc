"""python -m fastmix bench host: what the host does around a kernel, which small batches wait for.

Processor time of the calling thread on one torch thread, so that neither other programs nor other threads are in it;
calls compared stand beside each other in every round. Losses are timed with their kernels; mixers on images of 4 x 4
pixels, whose kernels take next to nothing.
"""

from __future__ import annotations

import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

import fastmix.functional as F
from fastmix import CutMix, DCutMix, Mixup, SoftTarget
from fastmix.app.console import Parser

from .harness import report
from .harness.command_line import add_options, new_result, prepare, result_file
from .harness.entries import Entry
from .harness.host_table import FORMAT, rows

CALLS = 50  # of a case in a round


@dataclass(frozen=True)
class Case:
    """What is called, beside what, and what is wanted: at most ``times`` of it, or at most ``us``."""

    name: str
    call: Callable[[], object]
    beside: str = ""
    other: Callable[[], object] | None = None
    times: float | None = None
    us: float | None = None


def _step(loss: Callable[[torch.Tensor], torch.Tensor], logits: torch.Tensor) -> Callable[[], None]:
    def step() -> None:
        loss(logits).backward()
        logits.grad = None
    return step


def cases() -> list[Case]:
    found = []
    for classes in (10, 100, 1000):
        logits = torch.randn(128, classes, requires_grad=True)
        labels, two = torch.randint(classes, (128,)), torch.randint(classes, (128, 2))
        target, dense = SoftTarget(two, torch.rand(128, 2)), torch.rand(128, classes).softmax(1)
        hard = _step(lambda z, y=labels: torch.nn.functional.cross_entropy(z, y), logits)
        size = f"128x{classes}"
        found += [
            Case(f"soft_cross_entropy {size}, SoftTarget",
                 _step(lambda z, t=target: F.soft_cross_entropy(z, t), logits), "torch's of labels", hard, times=1.2),
            Case(f"soft_cross_entropy {size}, labels",
                 _step(lambda z, t=labels: F.soft_cross_entropy(z, t), logits), "torch's of labels", hard),
            Case(f"soft_cross_entropy {size}, dense",
                 _step(lambda z, t=dense: F.soft_cross_entropy(z, t), logits), "torch's of dense targets",
                 _step(lambda z, t=dense: torch.nn.functional.cross_entropy(z, t), logits)),
        ]
    x, y = torch.randn(1, 3, 4, 4), torch.zeros(1, dtype=torch.int64)
    for mixer, us in ((Mixup(), None), (CutMix(), None), (DCutMix(5), 25.0)):
        found.append(Case(f"{type(mixer).__name__}: plan, images, labels", lambda m=mixer: m(x, y), us=us))
    return found


def _seconds(call: Callable[[], object]) -> float:
    start = time.thread_time()
    for _ in range(CALLS):
        call()
    return (time.thread_time() - start) / CALLS


def measured(case: Case, seconds: float) -> Entry:
    """Medians of rounds, each of which times both calls."""
    calls = [case.call] if case.other is None else [case.call, case.other]
    for call in calls:
        _seconds(call)
    times: list[list[float]] = []
    until = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < until:
        times.append([_seconds(call) for call in calls])
    medians = [statistics.median(column) * 1e6 for column in zip(*times, strict=True)]
    ratio = medians[0] / medians[1] if case.other else None
    goal = case.times if case.us is None else case.us
    value = ratio if case.us is None else medians[0]
    return {"name": case.name, "us": medians[0], "beside": case.beside, "beside_us": medians[1] if case.other else None,
            "ratio": ratio, "rounds": len(times), "goal_times": case.times, "goal_us": case.us,
            "met": None if goal is None or value is None else value <= goal}


def parser() -> Parser:
    p = Parser(prog="python -m fastmix bench host", description="What the host does around a kernel, in microseconds "
               "of\nprocessor time of one thread: losses forward and backward beside torch's, and\nmixers on images of "
               "4x4 pixels.")
    p.add_argument("--seconds", type=float, default=3.0, help="timing per case (default 3)")
    add_options(p, "<date>-host.json")
    return p


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    args.threads = args.threads or 1
    threads = torch.get_num_threads()
    device = prepare(args)
    torch.manual_seed(0)
    result = new_result(FORMAT, device, args.machine, {"seconds": args.seconds, "calls": CALLS}) | {"cases": []}
    try:
        with torch.device(device):  # not around the calls: every torch function would go through a mode
            chosen = cases()
        with result_file(args.json, result, "-host") as path:
            return _run(args, chosen, result, path)
    finally:
        torch.set_num_threads(threads)


def _run(args: Namespace, chosen: list[Case], result: Entry, path: Path) -> int:
    for number, case in enumerate(chosen, 1):
        result["cases"].append(measured(case, args.seconds))
        print(f"[{number}/{len(chosen)}] {case.name}: {report.duration(result['cases'][-1]['us'])}", file=sys.stderr)
    print("\n".join(report.aligned(rows(result["cases"]))))
    report.save(result, path)
    print(f"wrote {path}")
    return 0
