"""Runs cases in a process of their own, so that one that crashes, hangs or breaks the CUDA context stops no other.

The parent never touches the device, and as a program (worker.py SECONDS FILE ARGUMENT...: of Python, `supervise`) loads
nothing but Python. The worker writes what it has after every case; where it ends early the parent starts another, which
goes on behind the case that ended it.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .entries import Entry

# The worker's exit code after a case that left the device unusable.
BROKEN = 3
STARTED = "did not end"


def load(path: Path) -> dict[str, Entry]:
    """Case -> its entry; {} where there is no file yet."""
    return json.loads(path.read_text())["cases"] if path.exists() else {}


def save_whole(path: Path, cases: dict[str, Entry], about: Entry) -> None:
    done = path.with_name(path.name + ".part")
    done.write_text(json.dumps({**about, "cases": cases}, indent=1) + "\n")
    done.replace(path)  # whole at every moment


def run_cases(path: Path, cases: Iterable[tuple[str, Callable[[], Entry]]], about: Entry,
              show: Callable[[str, Entry], str], check: Callable[[], None], limit: float = 100.0,
              summary: Callable[[dict[str, Entry]], list[str]] | None = None) -> int:
    """In the worker: every case that the file does not hold yet. Returns the exit code.

    check: raises where the device is lost. limit: seconds after which a case ends the worker. summary: lines that the
    file says of the cases so far.
    """
    from .entries import failure

    found = load(path)

    def save(path: Path, found: dict[str, Entry], about: Entry) -> None:
        save_whole(path, found, about if summary is None else {**about, "summary": summary(found)})

    for name, run in cases:
        if name in found:
            continue
        found[name] = {"error": STARTED}
        save(path, found, about)
        signal.setitimer(signal.ITIMER_REAL, limit)  # its signal ends the process, whatever hangs
        broken = False
        try:
            found[name] = run()
        except Exception as error:
            traceback.print_exc()
            found[name] = failure(error)
        try:
            check()
        except Exception as error:
            broken = True
            found[name].setdefault("error", f"it broke the device: {str(error).splitlines()[0][:200]}")
        signal.setitimer(signal.ITIMER_REAL, 0)
        save(path, found, about)
        print(show(name, found[name]), flush=True)
        if broken:
            return BROKEN
    return 0


def supervise(command: list[str], path: Path, seconds: float | None = None) -> dict[str, Entry]:
    """In the parent: workers, until one ends by itself or none gets further. Returns what the file then holds.

    seconds: none starts after so long.
    """
    path.unlink(missing_ok=True)
    began = time.monotonic()
    while True:
        before = len(load(path))
        code = subprocess.run([sys.executable, *command]).returncode
        found = load(path)
        if code == 0 or len(found) == before:
            return found
        print(f"a worker ended with {code}, after {len(found)} cases", flush=True)
        if seconds is not None and time.monotonic() - began > seconds:
            return found


def main(seconds: float, path: Path, command: list[str]) -> int:
    """The exit code: 1 where a case failed, or a part of one, or none ran."""
    found = supervise(command, path, seconds)
    return int(not found or any(entry.get("error") or entry.get("errors") for entry in found.values()))


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
