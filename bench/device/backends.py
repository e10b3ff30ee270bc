"""python -m fastmix.bench.device.backends: cuda against triton, per operator and shape class; writes the table.

A time is what a call takes in a loop: the longer of the device's time and of the host's to enqueue one, so that
launches count where they are what is waited for. --write puts what a run found into fastmix/ops/gpu_backends.json:
entries of classes that were measured are replaced, others stay as they were (`fastmix.ops.choice`).
"""

from __future__ import annotations

import json
import sys
from argparse import SUPPRESS
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from fastmix.app.console import Parser, UsageError, run
from fastmix.files import write_atomically
from fastmix.ops import choice, dispatch
from fastmix.ops.checkout import CHECKOUT

from ..cases.base import Case
from ..cases.isda import _rows as isda_case
from ..cases.paste import case as paste_case
from ..cases.saliency import case as saliency_case
from ..cases.soft_target import case as soft_target_case
from ..cases.view import case as view_case
from ..harness import worker
from ..harness.command_line import new_result
from ..harness.entries import Entry
from ..harness.runner import run_case
from .subjects import patch_mix_case

MODULE = "fastmix.bench.device.backends"
FORMAT = "backends-1"
NEAR = 1.03  # nearer than this is the same: then the backend that needs no compiler at the first call, cuda
ELEMENTS = {torch.float32: 4, torch.bfloat16: 2}


@dataclass(frozen=True)
class Class:
    """where: what an entry of the table says of it beside the operator."""

    operator: str
    where: dict[str, Any]
    make: Callable[[], Case]

    @property
    def name(self) -> str:
        return " ".join([self.operator, *(f"{key}={value}" for key, value in self.where.items())])


def classes(small: bool) -> Iterator[Class]:
    """Of every operator that has two kernels: the most usual class of each first. small: for trying it on a CPU."""
    sizes = {"large": (256, 3, 224, 224), "small": (100, 3, 32, 32)}
    if small:
        sizes = {"large": (4, 3, 16, 16), "small": (4, 3, 8, 8)}

    def image(op: str, make: Callable[..., Case], dtype: torch.dtype, last: bool, size: str) -> Class:
        where = {"element": ELEMENTS[dtype], "layout": choice.LAYOUTS[last], "size": size}
        return Class(op, where, lambda: make(sizes[size], dtype=dtype, channels_last=last))

    def view(last: bool, size: str) -> Class:
        return Class("view", {"layout": choice.LAYOUTS[last], "size": size},
                     lambda: view_case("paste", sizes[size], torch.bfloat16, last))

    def loss(dtype: torch.dtype, size: str) -> Class:
        n, j = (8, 20) if small else (1024, 21841) if size == "large" else (128, 100)
        return Class("soft_target", {"element": ELEMENTS[dtype], "size": size},
                     lambda: soft_target_case(n, j, dtype, backward=True, quick=False))

    def isda(kind: str, size: str) -> Class:
        n, j, a = (8, 10, 16) if small else (256, 20_000, 512) if size == "large" else (256, 1000, 2048)
        return Class("isda", {"form": kind, "size": size}, lambda: isda_case(kind, n, j, a, {}))

    made = {"paste": lambda shape, **how: paste_case(shape, 5, **how), "patch_mix": patch_mix_case,
            "saliency": saliency_case}
    for dtype, size, last in ((torch.float32, "large", False), (torch.float32, "small", False),
                              (torch.bfloat16, "large", True), (torch.bfloat16, "small", True),
                              (torch.bfloat16, "large", False), (torch.float32, "large", True),
                              (torch.bfloat16, "small", False), (torch.float32, "small", True)):
        yield from (image(op, make, dtype, last, size) for op, make in made.items())
        if dtype is torch.bfloat16:
            yield view(last, size)
        elif not last:
            yield isda("diag", size)
        if last == (dtype is torch.bfloat16):
            yield loss(dtype, size)


def measure(asked: Class, device: torch.device, seconds: float, pair: tuple[str, str]) -> Entry:
    entry = run_case(replace(asked.make(), peers=(), goals={}), device, seconds, list(pair))
    times = {}
    for name in pair:
        found = entry["providers"].get(name, {})
        if "median_us" in found:
            slower = max(found["median_us"], found.get("host_us", 0.0))
            times[name] = {"us": slower, "device_us": found["median_us"], "host_us": found.get("host_us"),
                           "spread_us": [found["q1_us"], found["q3_us"]]}
    errors = {name: p.get("error") or p.get("skipped") for name, p in entry["providers"].items()
              if name in pair and "median_us" not in p}
    return {"operator": asked.operator, "where": asked.where, "case": entry["case"], "times": times, "errors": errors}


def better(times: dict[str, Entry]) -> str | None:
    """The backend that a class gets; None where not both ran."""
    if len(times) < 2:
        return None
    (fast, a), (_, b) = sorted(times.items(), key=lambda each: each[1]["us"])
    return fast if b["us"] > NEAR * a["us"] else next(iter(times))


def entries(found: dict[str, Entry], card: str) -> list[dict[str, Any]]:
    """The table's entries of what was measured: a reason each, operators in the order of the dispatcher."""
    made = []
    for entry in found.values():
        name = better(entry.get("times", {}))
        if name is None:
            continue
        other = next(each for each in entry["times"] if each != name)
        mine, its = entry["times"][name]["us"], entry["times"][other]["us"]
        made.append({"operator": entry["operator"], **entry["where"], "backend": name,
                     "reason": f"measured: {mine:.4g} us against {other}'s {its:.4g}, {entry['case']}", "source": card})
    return sorted(made, key=lambda each: dispatch.OPERATORS.index(each["operator"]))


def merged(table: list[choice.Entry], new: list[dict[str, Any]]) -> list[choice.Entry]:
    """The table with the classes that were measured in front of those of the same operator that were not.

    An entry that says what measured ones of all its classes say differently stays: it is reached no more.
    """
    def key(entry: choice.Entry) -> tuple[Any, ...]:
        return tuple(entry.get(name) for name in ("operator", "form", "element", "layout", "size"))

    replaced = {key(entry) for entry in new}
    result: list[choice.Entry] = []
    for op in dispatch.OPERATORS:
        result += [entry for entry in new if entry["operator"] == op]
        result += [entry for entry in table if entry["operator"] == op and key(entry) not in replaced]
    return result


def write(path: Path, target: Path = choice.FILE) -> int:
    """Puts a result into the table; how many entries. ValueError for a file that is none, or of a CPU."""
    found = json.loads(path.read_text())
    found = found.get("result", found)
    if found.get("format") != FORMAT:
        raise ValueError(f"{path} is not a result of {MODULE}")
    if found["machine"]["device"] != "cuda":
        raise ValueError(f"{path} was measured on a CPU, and no figure of it means anything")
    new = entries(found["cases"], f"{found['machine']['name']}, {found['date'][:10]}")
    old = [entry for each in choice.load(target).values() for entry in each]
    lines = ",\n".join("  " + json.dumps(entry) for entry in merged(old, new))
    write_atomically(target, f'{{\n "entries": [\n{lines}\n ]\n}}\n'.encode())
    choice.load(target)
    return len(new)


def shown(name: str, entry: Entry) -> str:
    if "error" in entry:
        return f"{name}: FAILED: {entry['error']}"
    times = ", ".join(f"{backend} {time['us']:.4g} us" for backend, time in entry["times"].items())
    errors = ", ".join(f"{backend}: {error}" for backend, error in entry["errors"].items())
    return f"{name}: {'; '.join(filter(None, (times, errors)))}, so {better(entry['times']) or 'as before'}"[:150]


def main(argv: list[str]) -> int:
    p = Parser(prog=f"python -m {MODULE}", description=(__doc__ or "").partition("\n")[0])
    p.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    p.add_argument("--json", type=Path, default=Path("backends.json"), help="where the figures go (%(default)s)")
    p.add_argument("--pair", default="cuda,triton", metavar="A,B", help="providers of the bench (default %(default)s)")
    p.add_argument("--seconds", type=float, default=0.2, help="timing per class (default %(default)s)")
    p.add_argument("--write", type=Path, metavar="JSON", help="only put an earlier run into the package's table")
    p.add_argument("--worker", action="store_true", help=SUPPRESS)
    options = p.parse_args(argv)
    if options.write:
        if CHECKOUT is None:
            raise UsageError("--write: the table is changed in a checkout, and this fastmix is installed")
        try:
            print(f"{choice.FILE}: {write(options.write)} entries measured")
        except (OSError, ValueError) as error:
            raise UsageError(str(error)) from None
        return 0
    if not options.worker:
        found = worker.supervise(["-m", MODULE, "--worker", *argv], options.json, 200.0)
        failed = [shown(name, entry) for name, entry in found.items() if "error" in entry]
        print("\n".join([*failed, f"{len(found)} classes, {len(failed)} failed"]))
        return int(bool(failed) or not found)
    device = torch.device(options.device)
    first, second = options.pair.split(",")
    cases = ((each.name, lambda each=each: measure(each, device, options.seconds, (first, second)))
             for each in islice(classes(device.type == "cpu"), None if device.type == "cuda" else 8))

    def check() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()

    about = new_result(FORMAT, device, None, {"seconds": options.seconds, "pair": [first, second]})
    return worker.run_cases(options.json, cases, about, shown, check, limit=30.0,
                            summary=lambda found: [shown(*each) for each in found.items()])


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
