"""An old package against a new one, turn about: python bench/device/versus.py --old FOLDER --new FOLDER --json FILE.

Two packages cannot register one operator in one process, so each has a process of its own, which waits while the
other is timed: a slow minute of the card hits both alike. Only public functions are called, so any version of fastmix
will do. A case that one of them cannot run costs no other.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROUNDS = 3
CASES = ("paste", "patch_mix", "saliency", "view", "soft_target wide", "soft_target", "isda diag", "isda full", "rmix",
         "dcutmix")


def call_of(name: str, device: str, small: bool) -> Callable[[], Any]:
    import torch

    import fastmix
    import fastmix.functional as F

    torch.manual_seed(0)
    n, side = (4, 32) if small else (256, 224)
    x = torch.randn(n, 3, side, side, device=device)
    if name == "paste":
        index = torch.stack([torch.randperm(n) for _ in range(5)], 1).to(device)
        boxes = torch.randint(0, side // 2, (n, 4, 4), dtype=torch.int32, device=device)
        return lambda: F.paste(x, index, boxes)
    if name == "patch_mix":
        partner, mask = torch.randperm(n).to(device), (torch.rand(n, 4, 4) < 0.5).to(device)
        lam = torch.tensor(0.7, device=device)
        return lambda: F.patch_mix(x, partner, mask, lam)
    if name == "saliency":
        q = torch.full((n,), 0.5, device=device)
        return lambda: F.saliency_mask(x, (4, 4), q)
    if name == "view":
        pixels = torch.randint(0, 256, x.shape, dtype=torch.uint8, device=device)
        mean, std = (torch.full((3,), value, device=device) for value in (0.45, 0.22))
        view = fastmix.View.draw(pixels, mean, std, pad=4)
        return lambda: view.apply(pixels)
    if name.startswith("soft_target"):
        rows, j = (16, 50) if small else (4096, 21841) if name.endswith("wide") else (1024, 1000)
        dtype = torch.bfloat16 if name.endswith("wide") else torch.float32
        z = torch.randn(rows, j, device=device).to(dtype).requires_grad_()
        target = fastmix.SoftTarget(torch.randint(0, j, (rows, 2), device=device),
                                    torch.full((rows, 2), 0.5, device=device))
        return lambda: torch.autograd.grad(F.soft_cross_entropy(z, target), z)
    if name.startswith("isda"):
        kind = name.split()[1]
        rows, j, a = (8, 10, 16) if small else (128, 100, 640)
        covariance = fastmix.ISDACovariance(j, a, kind, device=device)
        features, labels = torch.randn(rows, a, device=device), torch.randint(0, j, (rows,), device=device)
        z, w = (torch.randn(shape, device=device).requires_grad_() for shape in ((rows, j), (j, a)))

        def isda() -> Any:
            covariance.update(features, labels)
            return torch.autograd.grad(F.isda_logits(z, w, covariance.cov, labels, 0.5, kind=kind).sum(), (z, w))
        return isda
    n, side = (8, 16) if small else (100, 32)
    x, y = torch.randn(n, 3, side, side, device=device), torch.randint(0, 100, (n,), device=device)
    if name == "rmix":
        mixer, g = fastmix.RMix(), torch.randn_like(x)
        return lambda: mixer(x, y, g)
    mixer = fastmix.DCutMix(5, 1 / 3)
    return lambda: mixer(x, y)


def timed(call: Callable[[], Any], device: str) -> list[float]:
    """Microseconds a call, nine times: enough calls that launches are hidden where the device is the slower one."""
    import time

    import torch

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    for _ in range(3):
        call()
    wait()
    began = time.perf_counter()
    call()
    wait()
    calls = max(1, min(100, int(5e-3 / max(time.perf_counter() - began, 1e-6))))
    times = []
    for _ in range(9):
        wait()
        began = time.perf_counter()
        for _ in range(calls):
            call()
        wait()
        times.append((time.perf_counter() - began) / calls * 1e6)
    return times


def work(device: str, small: bool) -> int:
    """In a package's process: a line of JSON for every line that names a case."""
    import fastmix

    answers, sys.stdout = sys.stdout, sys.stderr
    calls: dict[str, Callable[[], Any]] = {}
    print(json.dumps({"package": str(Path(fastmix.__file__).parent), "version": fastmix.__version__}), file=answers,
          flush=True)
    for line in sys.stdin:
        name = line.strip()
        try:
            if name not in calls:
                calls.clear()
                calls[name] = call_of(name, device, small)
            answer: dict[str, Any] = {"times": timed(calls[name], device)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:150]}"}
        print(json.dumps(answer), file=answers, flush=True)
    return 0


class Package:
    """A package in a process of its own."""

    def __init__(self, folder: Path, device: str, small: bool) -> None:
        options = ["--device", device, *(["--small"] if small else [])]
        environment = {**os.environ, "PYTHONPATH": str(folder)}
        self.process = subprocess.Popen([sys.executable, __file__, "--worker", *options], env=environment, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.about = self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline() if self.process.stdout else ""
        return json.loads(line) if line else {"error": f"the package's process ended with {self.process.wait()}"}

    def ask(self, name: str) -> dict[str, Any]:
        if self.process.poll() is not None or self.process.stdin is None:
            return {"error": "the package's process has ended"}
        self.process.stdin.write(name + "\n")
        self.process.stdin.flush()
        return self._answer()


def compare(packages: dict[str, Package], name: str) -> dict[str, Any]:
    times: dict[str, list[float]] = {which: [] for which in packages}
    for number in range(ROUNDS):
        for which in sorted(packages, reverse=bool(number % 2)):
            answer = packages[which].ask(name)
            if "error" in answer:
                return {"error": f"{which}: {answer['error']}"}
            times[which] += answer["times"]
    found: dict[str, Any] = {}
    for which, values in times.items():
        q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
        found[which] = {"median_us": median, "q1_us": q1, "q3_us": q3}
    return {**found, "speedup": found["old"]["median_us"] / found["new"]["median_us"]}


def line(name: str, found: dict[str, Any]) -> str:
    if "error" in found:
        return f"{name}: FAILED: {found['error']}"
    old, new = found["old"], found["new"]
    apart = new["q1_us"] > old["q3_us"] or new["q3_us"] < old["q1_us"]
    return (f"{name}: {old['median_us']:.4g} -> {new['median_us']:.4g} us, {found['speedup']:.2f}x"
            + ("" if apart else " (within the spread)"))


def main() -> int:
    p = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    p.add_argument("--old", type=Path)
    p.add_argument("--new", type=Path)
    p.add_argument("--json", type=Path)
    p.add_argument("--device", default="cuda")
    p.add_argument("--small", action="store_true")
    p.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.worker:
        return work(args.device, args.small)
    packages = {"old": Package(args.old, args.device, args.small), "new": Package(args.new, args.device, args.small)}
    cases: dict[str, Any] = {}
    for name in CASES:
        cases[name] = compare(packages, name)
        print(line(name, cases[name]), flush=True)
        args.json.write_text(json.dumps({"packages": {which: package.about for which, package in packages.items()},
                                         "cases": cases, "summary": [line(*each) for each in cases.items()]}) + "\n")
    return int(any("error" in found for found in cases.values()))


if __name__ == "__main__":
    sys.exit(main())
