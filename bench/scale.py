"""python -m fastmix bench scale: how the cost of every operator grows with one of its sizes, and the fitted exponent.

All sizes of a sweep are timed interleaved, medians of repeats.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

import torch

from fastmix.app.command_line import meant
from fastmix.app.console import Parser, UsageError

from .cases.sweeps import SWEEPS, Sweep
from .harness import machine, report
from .harness.command_line import add_options, new_result, prepare, result_file
from .harness.entries import Entry
from .harness.growth import FORMAT, exponent
from .harness.runner import interleave
from .harness.timing import Stats, timer


def parser() -> Parser:
    p = Parser(prog="python -m fastmix bench scale", description="How the operators' costs grow with their sizes.")
    p.add_argument("--op", action="append", help="only sweeps of operators that begin so")
    p.add_argument("--seconds", type=float, default=2.0, help="timing per sweep (default 2)")
    add_options(p, "<date>-scale.json")
    return p


def run_sweep(sweep: Sweep, device: torch.device, seconds: float) -> Entry:
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


def table(rows: list[Entry]) -> str:
    lines = [("operator", "over", "exponent", "times", "other sizes")]
    for row in rows:
        times = ", ".join(f"{value}: {report.duration(us)}"
                          for value, us in zip(row["values"], row["median_us"], strict=True))
        lines.append((row["op"], row["size"], f"{row['exponent']:.2f}", times, row["rest"]))
    return "\n".join(report.aligned(lines))


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    chosen = [sweep for sweep in SWEEPS if not args.op or sweep.op.startswith(tuple(args.op))]
    if not chosen:
        raise UsageError(f"--op {', '.join(args.op)}: no sweep begins so; there are "
                         f"{', '.join(sorted({s.op for s in SWEEPS}))}"
                         f"{meant(args.op[0], {s.op for s in SWEEPS})}")
    device = prepare(args)
    torch.manual_seed(0)
    result = new_result(FORMAT, device, args.machine, {"seconds": args.seconds}) | {"sweeps": []}
    with result_file(args.json, result, "-scale") as path:
        return _measured(args, result, path, chosen, device)


def _measured(args: Namespace, result: Entry, path: Path, chosen: list[Sweep], device: torch.device) -> int:
    for number, sweep in enumerate(chosen, 1):
        result["sweeps"].append(run_sweep(sweep, device, args.seconds))
        print(f"[{number}/{len(chosen)}] {sweep.op} over {sweep.size}: exponent "
              f"{result['sweeps'][-1]['exponent']:.2f}", file=sys.stderr)
    print(table(result["sweeps"]))
    report.save(result, path)
    print(f"wrote {path}")
    return 0
