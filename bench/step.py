"""python -m fastmix bench step: what a method adds to a training step, in percent of a plain one.

Steps are interleaved: two of every method, then two of every method again. Two figures per method: the whole step over
a plain step, which the noise of the machine moves by a few percent, and "added", everything but the model's own passes
(bytes, plan and mixing, saliency, loss and its backward) beyond a plain step's, which it moves less. What Manifold
Mixup adds to the model's passes shows in the first alone.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from argparse import Namespace
from pathlib import Path

import torch

import fastmix
from fastmix.app import methods
from fastmix.app.command_line import meant
from fastmix.app.console import CommandError, Parser, UsageError
from fastmix.app.training import run
from fastmix.app.training.distributed import Processes
from fastmix.app.training.options import Options
from fastmix.app.training.setup import Setup
from fastmix.app.training.timing import PHASES

from .harness import machine, report
from .harness.command_line import add_options, new_result, prepare, result_file
from .harness.entries import Entry
from .harness.steps import FORMAT, loss_backward_ms, plan_ms, random_dataset, row, two_steps, verdicts

LEAST = 2  # measured rounds
VARIANTS = {"rmix/half": {"saliency": "half"}, "rmix/alternate": {"saliency": "alternate"},
            "isda/diag": {"isda_kind": "diag"}}
# What needs a second batch or an environment is not one step more or less.
LEFT_OUT = ("isda-semi", "rlmix")


def parser() -> Parser:
    p = Parser(prog="python -m fastmix bench step", description="What each method adds to a training step.")
    p.add_argument("--model", default="preact-resnet18", help="as in python -m fastmix train (preact-resnet18)")
    p.add_argument("--size", type=int, default=32, help="side of the images (32)")
    p.add_argument("--batch", type=int, default=100, help="images of a step (100)")
    p.add_argument("--classes", type=int, default=100, help="(100)")
    p.add_argument("--method", metavar="NAME[,NAME]", help="only these (default: all but " + ", ".join(LEFT_OUT) + ")")
    p.add_argument("--repeats", type=int, default=5, help="measured pairs of steps of every method (5)")
    p.add_argument("--minutes", type=float, default=math.inf,
                   help=f"end with the first round after this time, but not before {LEAST} were measured")
    p.add_argument("--amp", choices=("none", "bf16"), default="none")
    add_options(p, "<date>-<model>-<size>-step.json")
    return p


def method_names(args: Namespace) -> list[str]:
    """The plain step first. UsageError for what cannot be measured."""
    known = [*(name for name in methods.METHODS if name not in LEFT_OUT), *VARIANTS]
    names = args.method.split(",") if args.method else known
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageError(f"--method: {', '.join(unknown)} cannot be measured here{meant(unknown[0], known)}")
    return ["none", *(name for name in names if name != "none")]


def table(rows: list[Entry]) -> str:
    lines = [("method", "step ms", "x plain", "added %", "plan", "back", *PHASES)]
    lines += [(found["method"], f"{found['ms']['step']:.1f}", f"{found['ratio']:.3f}", f"{found['added_percent']:.2f}",
              f"{found['plan_ms']:.2f}", f"{found['loss_backward_ms']:.2f}",
              *(f"{found['ms'][phase]:.2f}" for phase in PHASES)) for found in rows]
    return "\n".join(report.aligned(lines))


def set_up(names: list[str], args: Namespace, device: torch.device) -> dict[str, Setup]:
    """Method -> what its steps work on."""
    images = random_dataset(args.batch, args.size, args.classes)
    options = Options(model=args.model, batch=args.batch, amp=args.amp, device=device.type, epochs=1000)

    def one(name: str) -> Setup:
        chosen = dataclasses.replace(options, method=name.partition("/")[0], **VARIANTS.get(name, {}))
        return run.setup(chosen, images, Processes(0, 1, device))
    try:
        return {name: one(name) for name in names}
    except (CommandError, RuntimeError) as error:
        raise UsageError(str(error)) from None


def measure(setups: dict[str, Setup], repeats: int, minutes: float) -> dict[str, list[dict[str, float]]]:
    """Method -> its pairs of steps, one a round."""
    steps: dict[str, list[dict[str, float]]] = {name: [] for name in setups}
    began = time.perf_counter()
    for repeat in range(repeats + 1):
        if repeat > LEAST and time.perf_counter() - began > 60 * minutes:
            print(f"stopped after {repeat - 1} rounds: --minutes {minutes:g}", file=sys.stderr)
            break
        for name, setup in setups.items():
            found = two_steps(setup)
            if repeat:  # the first warms caches and allocators
                steps[name].append(found)
        print(f"round {repeat} of {repeats}", file=sys.stderr, flush=True)
    return steps


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    if args.repeats < 1 or args.batch < 2 or args.size < 1 or args.classes < 2:
        raise UsageError("--repeats, --batch, --size and --classes want at least 1, 2, 1 and 2")
    names = method_names(args)
    device = prepare(args)
    setups = set_up(names, args, device)
    result = new_result(FORMAT, device, args.machine, {
        "model": args.model, "size": args.size, "batch": args.batch, "classes": args.classes, "amp": args.amp,
        "fastmix": fastmix.__version__})
    with result_file(args.json, result, f"-{machine.slug(args.model)}-{args.size}-step") as path:
        return _measured(args, result, path, names, setups)


def _measured(args: Namespace, result: Entry, path: Path, names: list[str], setups: dict[str, Setup]) -> int:
    others, began = machine.other_cpu_seconds(), time.perf_counter()
    steps = measure(setups, args.repeats, args.minutes)
    others = (machine.other_cpu_seconds() - others) / (time.perf_counter() - began)
    back = {name: loss_backward_ms(setups[name]) for name in names}
    rows = [row(name, steps[name], steps["none"], plan_ms(setups[name]), back[name], back["none"]) for name in names]
    result["settings"] |= {"repeats": len(steps["none"]), "cores_used_by_others": round(max(0.0, others), 2)}
    result["rows"] = rows
    print(f"{result['machine']['name']}, {args.model}, batch {args.batch}, {args.size}x{args.size}\n")
    print(table(rows))
    print("\n".join(verdicts(rows)))
    report.save(result, path)
    print(f"wrote {path}")
    return 0
