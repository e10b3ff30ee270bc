"""Runs the steps of a device check (`bench.device.steps`) in processes of their own, the most valuable first.

Needs nothing but Python itself, so nothing that hangs or crashes can take it along. Every step has a limit, every call
a deadline. $OUT/STEP.json says at every moment how far a step is: its state and, under "result", what it has written so
far; its output is in $OUT/callN.log. A step that is done there is not run again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .prepared import ROOT

Json = dict[str, Any]
DONE, RUNNING, FAILED, LATE, CRASHED = "done", "running", "failed", "time limit", "crashed"
LOG_BYTES = 1_500_000  # of a step
MEANINGLESS = "a dry run on the CPU, no figure of it means anything"
GRACE = 3.0  # seconds that a step gets to end by itself at its limit


@dataclass(frozen=True)
class Step:
    """command: of the check, its argument vector, or None for a step that has nothing to do (`why` says why).

    limit: seconds. show: lines for the summary, of what the step wrote.
    """

    name: str
    limit: float
    command: Callable[[Check], list[str] | str]


@dataclass
class Check:
    """call: 1, 2, 3. kind: cuda, or cpu to try it all where there is no GPU."""

    call: int
    kind: str
    out: Path
    work: Path
    python: str = sys.executable
    deadline: float = field(default=0.0)

    @property
    def dry(self) -> bool:
        return self.kind == "cpu"

    @property
    def site(self) -> Path:
        return self.work / "site"

    def detail(self, step: str) -> Path:
        """Where a step's process writes what it has."""
        return self.work / f"{step}.json"

    def module(self, name: str, *args: object) -> list[str]:
        return [self.python, "-m", f"fastmix.bench.device.{name}", *map(str, args)]

    def environment(self) -> dict[str, str]:
        paths = [str(self.site), str(self.work / "tests")]
        caches = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
        own = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", "COLUMNS": "150",
               **{name: str(self.work / folder) for name, folder in caches.items()},
               # Else the bench starts itself anew for a malloc of its own, which times on a GPU do not need.
               "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", "")}
        if self.dry:
            own |= {"OMP_NUM_THREADS": "1"}
        return {**os.environ, **own}

    # -------------------------------------------------------------- results

    def path(self, step: str) -> Path:
        return self.out / f"{step}.json"

    def state(self, step: str) -> str | None:
        try:
            return json.loads(self.path(step).read_text())["state"]
        except (OSError, ValueError, KeyError):
            return None

    def save(self, step: str, found: Json) -> None:
        detail = self.detail(step)
        with contextlib.suppress(OSError, ValueError):  # nothing yet, or a part of it
            found = {**found, "result": json.loads(detail.read_text())}
        part = self.path(step).with_suffix(".part")
        part.write_text(json.dumps(found, indent=1) + "\n")
        part.replace(self.path(step))

    def log(self, text: str) -> None:
        with (self.out / f"call{self.call}.log").open("a") as file:
            file.write(text)


def seconds(value: float) -> str:
    return f"{value:.0f} s"


def run(check: Check, step: Step) -> Json:
    """The step's file, whatever becomes of its process."""
    about: Json = {"step": step.name, "call": check.call, "kind": check.kind, "limit_s": step.limit}
    if check.dry:
        about["note"] = MEANINGLESS
    left = check.deadline - time.monotonic()
    if left < 4:
        return {**about, "state": "not started", "why": "the deadline of the call"}
    command = step.command(check)
    if isinstance(command, str):
        found = {**about, "state": DONE, "why": command}
        check.save(step.name, found)
        return found
    check.detail(step.name).unlink(missing_ok=True)
    began, limit = time.monotonic(), min(step.limit, left)
    log, seen = check.work / f"{step.name}.log", 0.0
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                                       cwd=check.work, env=check.environment(), start_new_session=True)
        except OSError as error:
            found = {**about, "state": FAILED, "why": str(error)}
            check.save(step.name, found)
            return found
        state, code = RUNNING, None
        try:
            check.save(step.name, {**about, "state": state})
            while (code := process.poll()) is None:
                if time.monotonic() - began > limit:
                    state = LATE
                    break
                changed = check.detail(step.name).stat().st_mtime if check.detail(step.name).exists() else 0.0
                if changed != seen:
                    seen = changed
                    check.save(step.name, {**about, "state": RUNNING})
                time.sleep(0.1)
        finally:
            end(process)
    if state is RUNNING:
        state = DONE if code == 0 else FAILED if code is not None and code > 0 else CRASHED
    text = log.read_bytes()[-LOG_BYTES:].decode(errors="replace")
    found = {**about, "state": state, "code": code, "seconds": round(time.monotonic() - began, 1),
             "last": text.strip().splitlines()[-1:]}
    check.save(step.name, found)
    check.log(f"=== {step.name}: {state}, {found['seconds']} s: {' '.join(command)}\n{text}\n")
    return found


def end(process: subprocess.Popen[bytes]) -> None:
    """The step's whole session; at its limit it may still write down what it has."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            continue
        if number is signal.SIGKILL:
            break
    process.wait()


def show(check: Check, step: Step, found: Json) -> list[str]:
    """The step in the summary: a line, and what its result says of itself."""
    took = seconds(found["seconds"]) if "seconds" in found else ""
    last = " ".join(found.get("last", []))[:90]
    lines = [f"{step.name:<12} {found['state']:<11} {took:>6}  {found.get('why') or last}"]
    try:
        result = json.loads(check.path(step.name).read_text()).get("result", {})
    except (OSError, ValueError):
        result = {}
    return lines + [f"  {line}"[:150] for line in result.get("summary", [])[:40]]


def main(argv: list[str], calls: dict[int, tuple[float, tuple[Step, ...]]]) -> int:
    """calls: their deadlines in seconds, and their steps.

    The exit code: 0 when all steps are done, 1 when some failed or had no time, 2 for a call that cannot be made.
    """
    p = argparse.ArgumentParser(prog="bench/device/check.sh", description="The device check: see its first lines.")
    p.add_argument("call", type=int, nargs="?", choices=sorted(calls), help="which call (with --dry: all of them)")
    p.add_argument("steps", nargs="*", metavar="STEP", help="only these steps of it")
    p.add_argument("--dry", action="store_true", help="on the CPU, small: no figure means anything")
    args = p.parse_args(argv)
    if args.call is None and not args.dry:
        p.error("which call? 1, 2 or 3")
    chosen = [args.call] if args.call is not None else sorted(calls)
    names = [step.name for call in chosen for step in calls[call][1]]
    unknown = [name for name in args.steps if name not in names]
    if unknown:
        p.error(f"no step {unknown[0]} in call {args.call}: {', '.join(names)}")
    base = Path(os.environ.get("OUT") or ROOT / "build" / "device-results").resolve()
    work = Path(os.environ.get("WORK") or ROOT / "build" / "device-work").resolve()
    failed = 0
    for call in chosen:
        limit, steps = calls[call]
        out = base / f"call{call}" if len(chosen) > 1 else base
        out.mkdir(parents=True, exist_ok=True)
        work.mkdir(parents=True, exist_ok=True)
        check = Check(call, "cpu" if args.dry else "cuda", out, work)
        wanted = [step for step in steps if not args.steps or step.name in (*args.steps, "load")]
        failed += run_call(check, limit, [step for step in wanted if step.name != "load" or call == chosen[0]])
    return int(failed > 0)


def run_call(check: Check, limit: float, steps: list[Step]) -> int:
    """How many steps are not done after it."""
    began = time.monotonic()
    check.deadline = began + limit
    if check.dry:
        print(f"{MEANINGLESS}: small shapes, loose times", flush=True)
    print(f"call {check.call}: {' '.join(step.name for step in steps)}; results in {check.out}", flush=True)
    missing = 0
    for step in steps:
        if step.name != "load" and check.state(step.name) == DONE:
            print(f"{step.name:<12} done before", flush=True)
            continue
        found = run(check, step)
        missing += found["state"] != DONE
        print("\n".join(show(check, step, found)), flush=True)
        if step.name == "load" and found["state"] != DONE:
            print("nothing else can run without the package", flush=True)
            return missing
    print(f"call {check.call}: {seconds(time.monotonic() - began)} of {seconds(limit)}", flush=True)
    return missing


def ended(number: int, frame: object) -> None:
    raise SystemExit(128 + number)  # through `finally`: the step's processes end as well
