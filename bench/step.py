"""`python -m bench.step`: what a method adds to a training step, in percent of a plain one.

Steps are those of the training command, on random bytes, and interleaved: two of every method, then two of every method
again. Two figures per method: the whole step over a plain step, which the noise of the machine moves by a few percent,
and "added", everything but the model's own passes (bytes, plan and mixing, saliency, loss and its backward) beyond a
plain step's, which it moves less. What Manifold Mixup adds to the model's passes shows in the first alone.

A step's backward is one call through loss and model. The loss's part, ISDA's matrix products above all, is therefore
timed by itself as well: "back" is the backward of the loss alone down to logits and classifier, inside the phase model.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import datetime
import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from . import memory

if __name__ == "__main__":
    memory.restart_with_kept("bench.step")  # before torch is imported

import torch

import fastmix
from fastmix.app import data, methods
from fastmix.app.console import CommandError
from fastmix.app.methods.objective import Classifier
from fastmix.app.training import run
from fastmix.app.training.distributed import Processes
from fastmix.app.training.loop import training_step
from fastmix.app.training.options import Options
from fastmix.app.training.setup import Setup
from fastmix.app.training.timing import PHASES, StepTimer

from . import machine, report

FORMAT = "step-2"
LEAST = 2  # measured rounds
# The largest step over a plain one, and the largest added share of a plain step in percent. Papers: K-image mixing 1 to
# 14 % (Table 2), ISDA 1 to 12 % (Tables 1 and 3), R-Mix 1.6x (Sec. 4.5) to 2x (Table 3).
ADDED = dict.fromkeys(("mixup", "cutmix", "dmixup", "dcutmix", "soft-crop"), 1.0) | {"isda": 2.0, "isda/diag": 2.0}
RATIO = {"rmix": 1.7, "rmix/half": 1.35, "rmix/alternate": 1.35}
VARIANTS = {"rmix/half": {"saliency": "half"}, "rmix/alternate": {"saliency": "alternate"},
            "isda/diag": {"isda_kind": "diag"}}
# What needs a second batch or an environment is not one step more or less.
LEFT_OUT = ("isda-semi", "rlmix")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m bench.step", description="What each method adds to a training step.")
    p.add_argument("--model", default="preact-resnet18", help="as in python -m fastmix train (preact-resnet18)")
    p.add_argument("--size", type=int, default=32, help="side of the images (32)")
    p.add_argument("--batch", type=int, default=100, help="images of a step (100)")
    p.add_argument("--classes", type=int, default=100, help="(100)")
    p.add_argument("--method", metavar="NAME[,NAME]", help="only these (default: all but " + ", ".join(LEFT_OUT) + ")")
    p.add_argument("--repeats", type=int, default=5, help="measured pairs of steps of every method (5)")
    p.add_argument("--minutes", type=float, default=math.inf,
                   help="end with the first round after this time, but not before 2 were measured")
    p.add_argument("--amp", choices=("none", "bf16"), default="none")
    p.add_argument("--device", default="auto", help="cpu, cuda or auto")
    p.add_argument("--threads", type=int, help="torch's CPU threads (default: torch's own)")
    p.add_argument("--machine", metavar="NAME", help="what to call this machine in the result")
    p.add_argument("--json", type=Path, metavar="PATH",
                   help="(bench/results/<machine>/<date>-<model>-<size>-step.json)")
    return p


def dataset(args: argparse.Namespace) -> data.Dataset:
    """Random bytes: two batches to train on, one to test."""
    g = torch.Generator().manual_seed(0)

    def split(count: int) -> data.MemorySplit:
        images = torch.randint(0, 256, (count, 3, args.size, args.size), dtype=torch.uint8, generator=g)
        return data.MemorySplit(images, torch.arange(count) % args.classes)
    names = [str(i) for i in range(args.classes)]
    return data.Dataset("random", split(2 * args.batch), split(args.batch), names, (3, args.size, args.size),
                        (0.5,) * 3, (0.25,) * 3, flips=True)


def two_steps(setup: Setup) -> dict[str, float]:
    """Milliseconds of a step and of its phases, the mean of two: every other one may be without saliency."""
    collected = []
    for _ in range(2):
        timer, index = StepTimer(setup.device), torch.arange(setup.options.batch)
        timer.start()
        images, y = next(setup.dataset.train.batches([index]))
        x = setup.byte_batch(images, setup.augmentation(1))
        timer.end("data")
        training_step(setup, x, y, 1.0, timer)
        setup.scheduler.step()
        collected.append(timer.collect())
    return {phase: statistics.mean(step[phase] for step in collected) for phase in collected[0]}


def plan_ms(setup: Setup, repeats: int = 20) -> float:
    """Drawing alone, out of the mixing phase."""
    mixer = setup.mixer
    if mixer is None:
        return 0.0
    x = torch.rand(setup.options.batch, *setup.dataset.shape, device=setup.device)
    args = (x, torch.randn_like(x)) if mixer.needs_saliency else (x,)
    times = []
    for _ in range(repeats + 3):
        timer = StepTimer(setup.device)
        timer.start()
        mixer.plan(*args)
        timer.end("mix")
        times.append(timer.collect()["mix"])
    return statistics.median(times[3:])


def loss_backward_ms(setup: Setup, repeats: int = 9) -> float:
    """The backward of the loss alone, to the logits and, of ISDA, to the classifier's weight."""
    options, device = setup.options, setup.device
    y = torch.arange(options.batch, device=device) % len(setup.dataset.classes)
    logits = torch.randn(options.batch, len(setup.dataset.classes), device=device, requires_grad=True)
    target = y if setup.mixer is None else fastmix.SoftTarget.from_labels(y)
    if setup.method.softens:
        half = torch.full((options.batch,), 0.5, device=device)
        target = fastmix.SoftTarget.from_confidence(y, half, len(setup.dataset.classes))
    observed, layer = None, copy.deepcopy(setup.objective.classifier(setup.model))
    if layer is not None:
        observed = Classifier(layer, torch.randn(options.batch, layer.in_features, device=device))
    times = []
    for _ in range(repeats + 2):
        logits.grad = None
        if layer is not None:
            layer.zero_grad(set_to_none=True)
        loss = setup.objective.loss(logits, target, y, setup.scheduler.last_epoch, observed)
        timer = StepTimer(device)
        timer.start()
        loss.backward()
        timer.end("loss")
        times.append(timer.collect()["loss"])
    return statistics.median(times[2:])


def row(name: str, steps: list[dict[str, float]], plain: list[dict[str, float]], plan: float = 0.0,
        back: float = 0.0, plain_back: float = 0.0) -> dict[str, Any]:
    """One method's figures: medians over its steps, ratios to the plain step of the same round.

    plan, back: milliseconds of drawing, and of the loss's backward; plain_back: of a plain loss's.
    """
    ms = {phase: statistics.median(step[phase] for step in steps) for phase in ("step", *PHASES)}
    base = {phase: statistics.median(step[phase] for step in plain) for phase in ("step", *PHASES)}
    ratios = [step["step"] / reference["step"] for step, reference in zip(steps, plain, strict=True)]
    # The bytes are read in the data phase of a plain step, while they are mixed in another's.
    own, other = (sum(times[phase] for phase in PHASES if phase != "model") for times in (ms, base))
    added = own + back - other - plain_back
    return {"method": name, "ms": ms, "plan_ms": plan, "loss_backward_ms": back, "ratio": statistics.median(ratios),
            "steps": 2 * len(steps), "added_percent": 100 * added / base["step"]}


def judged(found: dict[str, Any]) -> list[tuple[str, float, float, str, bool]]:
    """(what, measured, goal, unit, met) of every goal that a row has."""
    name = found["method"]
    goals = (("added", found["added_percent"], ADDED.get(name), " %"), ("step", found["ratio"], RATIO.get(name), "x"))
    return [(what, value, goal, unit, value <= goal) for what, value, goal, unit in goals if goal is not None]


def verdicts(rows: list[dict[str, Any]]) -> list[str]:
    """A line for every goal."""
    return [f"{found['method']}: {what} {value:.2f}{unit}, goal <= {goal:g}{unit}, {'met' if met else 'MISSED'}"
            for found in rows for what, value, goal, unit, met in judged(found)]


def table(rows: list[dict[str, Any]]) -> str:
    lines = [("method", "step ms", "x plain", "added %", "plan", "back", *PHASES)]
    lines += [(found["method"], f"{found['ms']['step']:.1f}", f"{found['ratio']:.3f}", f"{found['added_percent']:.2f}",
              f"{found['plan_ms']:.2f}", f"{found['loss_backward_ms']:.2f}",
              *(f"{found['ms'][phase]:.2f}" for phase in PHASES)) for found in rows]
    return "\n".join(report.aligned(lines))


def main(argv: list[str] | None = None) -> int:
    p = parser()
    args = p.parse_args(argv)
    known = [*(name for name in methods.METHODS if name not in LEFT_OUT), *VARIANTS]
    names = args.method.split(",") if args.method else known
    unknown = [name for name in names if name not in known]
    if unknown or args.repeats < 1 or args.batch < 2 or args.size < 1 or args.classes < 2:
        p.error(f"--method: {', '.join(unknown)} cannot be measured here" if unknown else
                "--repeats, --batch, --size and --classes want at least 1, 2, 1 and 2")
    if args.threads:
        torch.set_num_threads(args.threads)
    names = ["none", *(name for name in names if name != "none")]
    kind = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    here = Processes(0, 1, torch.device(kind))
    images = dataset(args)
    options = Options(model=args.model, batch=args.batch, amp=args.amp, device=kind, epochs=1000)

    def setup(name: str) -> Setup:
        chosen = dataclasses.replace(options, method=name.partition("/")[0], **VARIANTS.get(name, {}))
        return run.setup(chosen, images, here)
    try:
        setups = {name: setup(name) for name in names}
    except (CommandError, RuntimeError) as error:
        p.error(str(error))
    steps: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    others, began = machine.other_cpu_seconds(), time.perf_counter()
    for repeat in range(args.repeats + 1):
        if repeat > LEAST and time.perf_counter() - began > 60 * args.minutes:
            print(f"stopped after {repeat - 1} rounds: --minutes {args.minutes:g}", file=sys.stderr)
            break
        for name in names:
            found = two_steps(setups[name])
            if repeat:  # the first warms caches and allocators
                steps[name].append(found)
        print(f"round {repeat} of {args.repeats}", file=sys.stderr, flush=True)
    others = (machine.other_cpu_seconds() - others) / (time.perf_counter() - began)
    back = {name: loss_backward_ms(setups[name]) for name in names}
    rows = [row(name, steps[name], steps["none"], plan_ms(setups[name]), back[name], back["none"]) for name in names]
    now = datetime.datetime.now(datetime.timezone.utc)
    device = machine.describe(here.device, args.machine)
    result = {"format": FORMAT, "date": now.isoformat(timespec="seconds"), "machine": device,
              "settings": {"model": args.model, "size": args.size, "batch": args.batch, "classes": args.classes,
                           "amp": args.amp, "repeats": len(steps["none"]), "fastmix": fastmix.__version__,
                           "keeps_memory": memory.is_kept(), "cores_used_by_others": round(max(0.0, others), 2)},
              "rows": rows}
    print(f"{device['name']}, {args.model}, batch {args.batch}, {args.size}x{args.size}\n")
    print(table(rows))
    print("\n".join(verdicts(rows)))
    path = args.json or (report.RESULTS / machine.slug(device["name"])
                         / f"{now:%Y-%m-%d-%H%M}-{machine.slug(args.model)}-{args.size}-step.json")
    report.save(result, path)
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
