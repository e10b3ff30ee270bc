"""compute-sanitizer over the CUDA kernels' cases (build/device/cases), its four tools side by side; no torch.

Run by the device check. The cases, and far's, whose batches of 4 GB no tool gets through in time, first run alone: what
fails without a tool needs none to be seen.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ERROR = 9  # the exit code of a tool that found something
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")  # initcheck: who reads what nothing wrote


def outcome(code: int | None, text: str, took: float) -> dict[str, Any]:
    lines = text.strip().splitlines()
    ran = [line for line in lines if line.endswith(" ok")]
    state = "time limit" if code is None else "ok" if code == 0 else "found" if code == ERROR else f"ended with {code}"
    return {"state": state, "seconds": round(took, 1), "cases": len(ran), "last": ran[-1:],
            "said": [] if code == 0 else [line for line in lines if line.startswith("=")][:60] or lines[-20:]}


def summary(found: dict[str, Any]) -> list[str]:
    return [f"{name}: {run['state']}, {run['cases']} cases, {run['seconds']} s"
            + "".join(f"; {line[:90]}" for line in run["said"][:2]) for name, run in found["runs"].items()]


def main() -> int:
    p = argparse.ArgumentParser()
    p.add_argument("folder", type=Path, help="of the programs")
    p.add_argument("--json", type=Path, required=True)
    p.add_argument("--limit", type=float, default=18.0, help="seconds of a tool")
    args = p.parse_args()
    found: dict[str, Any] = {"runs": {}}

    def save() -> None:
        found["summary"] = found.get("why", []) + summary(found)
        args.json.write_text(json.dumps(found) + "\n")

    tool = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    absent = [name for name in ("cases", "far") if not (args.folder / name).exists()]
    if tool is None or absent:
        reason = "no compute-sanitizer" if tool is None else f"no {', '.join(absent)} (make device-package)"
        found["why"] = [f"no GPU check: {reason}"]
        save()
        print(found["why"][0])
        return 0 if tool is None else 1
    if not run_all(args, found, {name: [str(args.folder / name), "all"] for name in ("cases", "far")}, save):
        return 1
    command = {name: [tool, "--tool", name, "--error-exitcode", str(ERROR), "--print-limit", "5",
                      str(args.folder / "cases"), "all"] for name in TOOLS}
    return int(not run_all(args, found, command, save))


def run_all(args: argparse.Namespace, found: dict[str, Any], commands: dict[str, list[str]], save: Any) -> bool:
    """All of them at once, each into the result as it ends; whether all were right."""
    began, running, logs = time.monotonic(), {}, {}
    for name, command in commands.items():
        logs[name] = args.json.with_name(f"sanitizer-{name.replace(' ', '-')}.log")
        with logs[name].open("wb") as output:
            running[name] = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    good = True
    while running:
        time.sleep(0.05)
        late = time.monotonic() - began > args.limit
        for name, process in list(running.items()):
            code = process.poll()
            if code is None and not late:
                continue
            if code is None:
                process.kill()
                process.wait()
            del running[name]
            text = logs[name].read_text(errors="replace")
            found["runs"][name] = outcome(code, text, time.monotonic() - began)
            print(f"--- {name}: {found['runs'][name]['state']}\n{text[-20000:]}", flush=True)
            good = good and code == 0
            save()
    return good


if __name__ == "__main__":
    sys.exit(main())
