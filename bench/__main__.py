"""`python -m bench`: runs the cases, prints the table, writes JSON and two plots."""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import time
from pathlib import Path

from . import memory

if __name__ == "__main__":
    memory.restart_with_kept("bench")  # before torch is imported

# The profiler that counts allocations logs two lines a call otherwise; read once, when torch is loaded.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import torch

from . import machine, report
from .ahead import compile_ahead
from .cases import select_cases
from .compare import compare
from .runner import PHASES, run_case

SECONDS, QUICK_SECONDS = 3.0, 1.5
# Inductor starts processes that compile Triton kernels where Triton is installed, on a machine without a GPU too.
WARM_POOL = "TORCH_WARM_POOL"


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m bench", description="Times fastmix against plain PyTorch, "
                                "torch.compile, peers and the memory floor, all in one run.",
                                epilog="Exit code 1: a fastmix backend failed or, with --compare, became slower.")
    p.add_argument("--quick", action="store_true", help="a few cases, under 2 minutes on 2 cores")
    p.add_argument("--op", action="append", metavar="OP[,OP]", help="only these operators")
    p.add_argument("--device", help="cpu or cuda (default: cuda if there is one)")
    p.add_argument("--json", type=Path, metavar="PATH", help="where the result goes; the plots go beside it "
                   "(default: bench/results/<machine>/<date>.json)")
    p.add_argument("--compare", type=Path, metavar="OLD.json",
                   help="exit 1 if a fastmix backend is more than 10 %% slower than there, outside the IQR")
    p.add_argument("--providers", metavar="NAME[,NAME]", help="only these: eager, compile, cpu, triton, cuda, a peer")
    p.add_argument("--threads", type=int, help="torch's CPU threads (default: torch's own)")
    p.add_argument("--machine", metavar="NAME", help="what to call this machine in the result")
    p.add_argument("--seconds", type=float, help=f"timing per case (default {SECONDS:g}, quick {QUICK_SECONDS:g})")
    p.add_argument("--no-plots", action="store_true")
    return p


def phase_seconds(results: report.Entry, ahead: float, total: float) -> dict[str, float]:
    """Where the run's wall time went: compiling ahead, then the sum over cases of every phase of `run_case`."""
    found = {name: sum(case["phase_seconds"][name] for case in results["cases"]) for name in PHASES}
    return {name: round(value, 1) for name, value in ({"ahead": ahead} | found | {"total": total}).items()}


def main(argv: list[str] | None = None) -> int:
    began = time.perf_counter()
    p = parser()
    args = p.parse_args(argv)
    try:
        device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError("--device cuda: torch sees no GPU")
        if device.type not in ("cpu", "cuda"):
            raise ValueError(f"--device {args.device}: want cpu or cuda")
        ops = [op for ops in args.op for op in ops.split(",")] if args.op else None
        cases = select_cases(ops, args.quick)
        old = report.load(args.compare) if args.compare else None
    except (ValueError, RuntimeError) as error:
        p.error(str(error))
    if args.threads:
        torch.set_num_threads(args.threads)
    seconds = args.seconds if args.seconds is not None else QUICK_SECONDS if args.quick else SECONDS
    wanted = args.providers.split(",") if args.providers else None
    now = datetime.datetime.now(datetime.timezone.utc)
    results = {"format": report.FORMAT, "date": now.isoformat(timespec="seconds"),
               "machine": machine.describe(device, args.machine),
               "settings": {"quick": args.quick, "ops": ops, "providers": wanted, "seconds": seconds,
                            "keeps_memory": memory.is_kept()}, "cases": []}
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
    path = args.json or report.RESULTS / machine.slug(results["machine"]["name"]) / f"{now:%Y-%m-%d-%H%M}.json"
    for number, case in enumerate(cases, 1):
        results["cases"].append(run_case(case, device, seconds, wanted))
        results["phase_seconds"] = phase_seconds(results, ahead, time.perf_counter() - began)
        report.save(results, path)  # every time: a run that is stopped keeps what it has
        print(f"[{number}/{len(cases)}] {report.case_table(results['cases'][-1])}\n", flush=True)
    print(report.summary(results))
    print("seconds: " + ", ".join(f"{name} {value:g}" for name, value in results["phase_seconds"].items()))
    print(f"wrote {path}")
    if not args.no_plots:
        from . import plots
        for line in plots.draw(results, path):
            print(line)
    code = 0
    for line in report.failures(results):
        print(f"FAILED {line}", file=sys.stderr)
        code = 1
    if old is not None:
        text, compared = compare(old, results)
        print(text)
        code = max(code, compared)
    return code


if __name__ == "__main__":
    sys.exit(main())
