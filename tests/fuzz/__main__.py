"""``python -m fuzz --calls 1000000 --seed 1``: the fuzzer as a command (``make fuzz``), in processes of its own.

What runs calls is a child process, one for each backend: Triton's interpreter has to be asked for before the kernels
are defined, and a call that ends the process, or never ends, is named by its parent from a file that the child writes
before every call.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from helpers import ROOT

BACKENDS = ("cpu", "simt", "triton")
HANGS, STARTS = 120.0, 300.0  # seconds without a new call, or before the first
ROOM = 8 << 30  # bytes that a child may map beyond what it has at the start: a typo's allocation fails there, not here
PART = 40  # most calls of a name before the next name's turn


class Report:
    """What a child has done: counts, and the calls that were wrong."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.found: list[dict[str, str]] = []

    @property
    def calls(self) -> int:
        return self.counts["returned"] + self.counts["raised"]

    def summary(self) -> str:
        said = f"{self.calls:,} calls: {self.counts['returned']:,} returned, {self.counts['raised']:,} raised"
        return "\n".join([*map(shown, self.found), f"{said}, {len(self.found)} wrong"])


def shown(found: dict[str, str]) -> str:
    """What was found, and how to see it."""
    return f"\n{found['name']} ({found['backend']}): {found['what']}\n{found['source']}\n"


# ---------------------------------------------------------------- the child

def child(backend: str, calls: int, seed: int, last: Path, large: bool) -> None:
    """Prints a line of JSON for each call that is wrong, for each round and at the end."""
    import resource

    import torch

    from . import search, variants
    from .strategies import STRATEGIES

    torch.set_num_threads(1)
    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (mapped + ROOM, mapped + ROOM))
    variants.use(backend)
    say(kind="counts")
    counts: Counter[str] = Counter()
    known: set[tuple[str, str]] = set()
    descriptor = os.open(last, os.O_WRONLY | os.O_CREAT)

    def before(source: str) -> None:  # one write, which outlives the process
        content = source.encode() + b"\0"
        os.pwrite(descriptor, content, 0)

    names, round_ = list(STRATEGIES), 0
    while sum(counts.values()) < calls:
        missing = calls - sum(counts.values())
        part = max(1, min(PART, -(-missing // len(names))))
        for name in names:
            if sum(counts.values()) >= calls:
                break
            found = search.search(name, backend, part, seed * 1_000_003 + round_, before, counts, large)
            if found is not None and (name, found.what[:40]) not in known:
                known.add((name, found.what[:40]))
                say(kind="found", name=name, backend=backend, what=found.what[:1000], source=found.source)
        round_ += 1
        say(kind="counts", **counts)


def say(**message: Any) -> None:
    print(json.dumps(message), flush=True)


# ---------------------------------------------------------------- its parent

def fuzz(backend: str, calls: int, seed: int, *, large: bool = True, progress: bool = False,
         path: tuple[str, ...] = ()) -> Report:
    """Runs a child to its end. A crash or a hang is one of what is found. path: folders that it imports from first."""
    report, began, told = Report(), time.monotonic(), time.monotonic()
    with TemporaryDirectory() as folder:
        last = Path(folder) / "last"
        last.touch()
        environment = os.environ | {"PYTHONPATH": ":".join([*path, str(ROOT), str(ROOT / "tests")]),
                                    "TRITON_INTERPRET": str(int(backend == "triton")),
                                    "FASTMIX_BACKEND": "auto"}
        command = [sys.executable, "-X", "faulthandler", "-m", "fuzz", "--child", backend, "--calls", str(calls),
                   "--seed", str(seed), "--last", str(last), *([] if large else ["--small"])]
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None and process.stderr is not None
        out = _Lines(process.stdout.fileno())
        errors = _Lines(process.stderr.fileno())
        hung = began_to_call = False
        while process.poll() is None or not out.ended:
            for line in out.read():
                message = json.loads(line)
                began_to_call = True
                if message.pop("kind") == "counts":
                    report.counts = Counter(message)
                else:
                    report.found.append(message)
                    if progress:
                        print(shown(message), flush=True)
            errors.read()
            if progress and time.monotonic() - told > 10:
                told = time.monotonic()
                done = f"{report.calls:,} of {calls:,} calls, {len(report.found)} wrong"
                print(f"{backend}: {done}, {told - began:.0f} s", flush=True)
            limit = HANGS if began_to_call else STARTS
            if process.poll() is None and time.time() - last.stat().st_mtime > limit:
                process.kill()
                hung = True
            time.sleep(0.05)
        if process.returncode != 0:
            code = process.returncode
            how = "does not end" if hung else f"ends the process by {signal.Signals(-code).name}" if code < 0 else (
                f"ends the process with status {code}")
            text = b"".join(errors.kept).decode(errors="replace").strip()[-1500:]
            source = last.read_bytes().partition(b"\0")[0].decode()
            report.found.append({"name": "?", "backend": backend, "what": f"the call {how}: {text}", "source": source})
    return report


class _Lines:
    """What a pipe holds now, line by line, without waiting."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._rest, self.ended = descriptor, b"", False
        self.kept: list[bytes] = []
        os.set_blocking(descriptor, False)

    def read(self) -> list[bytes]:
        while not self.ended:
            try:
                part = os.read(self._descriptor, 1 << 16)
            except BlockingIOError:
                break
            self.ended = not part
            self._rest += part
        *lines, self._rest = self._rest.split(b"\n")
        self.kept = [*self.kept, *(line + b"\n" for line in lines)][-100:]
        return lines


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--calls", type=int, default=10_000, help="how many (10,000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backend", choices=(*BACKENDS, "all"), default="all",
                        help="cpu: the C++ kernels and the reference; all: nine tenths of the calls there")
    parser.add_argument("--small", action="store_true", help="no large sizes")
    parser.add_argument("--child", choices=BACKENDS, help=argparse.SUPPRESS)
    parser.add_argument("--last", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child, args.calls, args.seed, args.last, not args.small)
        return 0
    tenth = max(1, args.calls // 20)
    shares = {"cpu": args.calls - 2 * tenth, "simt": tenth, "triton": tenth} if args.backend == "all" else {
        args.backend: args.calls}
    wrong = 0
    for backend, calls in shares.items():
        report = fuzz(backend, calls, args.seed, large=not args.small, progress=True)
        print(f"{report.summary()} on {backend}", flush=True)
        wrong += len(report.found)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
