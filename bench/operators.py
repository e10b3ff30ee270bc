"""python -m fastmix bench [operators]: runs the cases, prints the table, writes JSON and two plots."""

from __future__ import annotations

import os
import sys
import time
from argparse import Namespace
from pathlib import Path

import torch

from fastmix.app.console import Parser, UsageError

from .cases.base import Case, select_cases
from .harness import plots, report
from .harness.ahead import compile_ahead
from .harness.command_line import add_options, new_result, prepare, result_file
from .harness.compare import compare
from .harness.entries import Entry
from .harness.runner import PHASES, run_case

SECONDS, QUICK_SECONDS = 3.0, 1.5
# Inductor starts processes that compile Triton kernels where Triton is installed, on a machine without a GPU too.
WARM_POOL = "TORCH_WARM_POOL"


def parser() -> Parser:
    p = Parser(prog="python -m fastmix bench", description="Times every operator against plain PyTorch, torch.compile, "
               "other libraries and\nthe memory floor, all in one run.",
               epilog="Exit code 1: a fastmix backend failed or, with --compare, became slower.")
    p.add_argument("--quick", action="store_true", help="a few cases, under 2 minutes on 2 cores")
    p.add_argument("--op", action="append", metavar="OP[,OP]", help="only these operators")
    p.add_argument("--providers", metavar="NAME[,NAME]", help="only these: eager, compile, cpu, triton, cuda, a peer")
    p.add_argument("--seconds", type=float, help=f"timing per case (default {SECONDS:g}, quick {QUICK_SECONDS:g})")
    p.add_argument("--compare", type=Path, metavar="OLD.json",
                   help="exit 1 if a fastmix backend is more than 10 %% slower than there, outside the IQR")
    p.add_argument("--no-plots", action="store_true", help="only the JSON: the plots go beside it")
    add_options(p, "<date>.json")
    return p


def phase_seconds(results: Entry, ahead: float, total: float) -> dict[str, float]:
    """Where the run's wall time went: compiling ahead, then the sum over cases of every phase of `run_case`."""
    found = {name: sum(case["phase_seconds"][name] for case in results["cases"]) for name in PHASES}
    return {name: round(value, 1) for name, value in ({"ahead": ahead} | found | {"total": total}).items()}


def main(argv: list[str]) -> int:
    began = time.perf_counter()
    args = parser().parse_args(argv)
    device = prepare(args)
    ops = [op for ops in args.op for op in ops.split(",")] if args.op else None
    try:
        cases = select_cases(ops, args.quick)
        old = report.load(args.compare) if args.compare else None
    except ValueError as error:
        raise UsageError(str(error)) from None
    seconds = args.seconds if args.seconds is not None else QUICK_SECONDS if args.quick else SECONDS
    wanted = args.providers.split(",") if args.providers else None
    results = new_result(report.FORMAT, device, args.machine, {"quick": args.quick, "ops": ops, "providers": wanted,
                                                               "seconds": seconds}) | {"cases": []}
    with result_file(args.json, results) as path:
        code = measure(args, results, path, cases, device, seconds, wanted, began)
    if old is not None:
        text, compared = compare(old, results)
        print(text)
        code = max(code, compared)
    return code


def measure(args: Namespace, results: Entry, path: Path, cases: list[Case], device: torch.device, seconds: float,
            wanted: list[str] | None, began: float) -> int:
    """Runs the cases into the file; the exit code."""
    print(f"{results['machine']['name']}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
          f"{len(cases)} cases\n", flush=True)
    ahead = time.perf_counter()
    if device.type == "cpu":
        os.environ.setdefault(WARM_POOL, "0")
        if wanted is None or "compile" in wanted:
            compiled = compile_ahead(cases)
            if compiled:
                print(f"compiled {compiled} references in {time.perf_counter() - ahead:.0f} s\n", flush=True)
    ahead = time.perf_counter() - ahead
    for number, case in enumerate(cases, 1):
        results["cases"].append(run_case(case, device, seconds, wanted))
        results["phase_seconds"] = phase_seconds(results, ahead, time.perf_counter() - began)
        report.save(results, path)  # every time: a run that is stopped keeps what it has
        print(f"[{number}/{len(cases)}] {report.case_table(results['cases'][-1])}\n", flush=True)
    print(report.summary(results))
    print("seconds: " + ", ".join(f"{name} {value:g}" for name, value in results["phase_seconds"].items()))
    print(f"wrote {path}")
    if not args.no_plots:
        print("\n".join(plots.draw(results, path)))
    failures = report.failures(results)
    for line in failures:
        print(f"FAILED {line}", file=sys.stderr)
    return int(bool(failures))
