"""python -m fastmix.bench.device.counters: Nsight Compute on patch_mix, paste, soft_target, saliency, a launch each.

Run by the device check. ncu starts this module again with --launch; the clocks stay as they are.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

KERNELS = ("patch_mix", "paste", "soft_target", "saliency")
METRICS = {"gpu__time_duration.sum": "ns", "dram__bytes_read.sum": "read", "dram__bytes_write.sum": "written",
           "dram__throughput.avg.pct_of_peak_sustained_elapsed": "% of memory",
           "sm__throughput.avg.pct_of_peak_sustained_elapsed": "% of SM",
           "sm__warps_active.avg.pct_of_peak_sustained_active": "% warps",
           "launch__registers_per_thread": "registers", "smsp__inst_executed.sum": "warp instructions"}


def launch(small: bool) -> None:
    """Every kernel once, from the CUDA library where it is there."""
    import torch

    import fastmix
    import fastmix.functional as F
    from fastmix.ops import dispatch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    forced = "cuda" if dispatch.why_not("paste", "cuda", device) is None else "auto"
    n, side, j = (4, 32, 100) if small else (256, 224, 1000)
    x = torch.randn(n, 3, side, side, device=device)
    index = torch.stack([torch.randperm(n) for _ in range(5)], 1).to(device)
    boxes = torch.randint(0, side // 2, (n, 4, 4), dtype=torch.int32, device=device)
    mask = (torch.rand(n, 4, 4) < 0.5).to(device)
    z = torch.randn(4 * n, j, device=device).requires_grad_()
    labels, halves = torch.randint(0, j, (4 * n, 2), device=device), torch.full((4 * n, 2), 0.5, device=device)
    target = fastmix.SoftTarget(labels, halves)
    with fastmix.backend(forced):
        F.patch_mix(x, index[:, 0].contiguous(), mask, torch.tensor(0.7, device=device))
        F.paste(x, index, boxes)
        F.soft_cross_entropy(z, target)
        F.saliency_map(x, (4, 4))
    if device == "cuda":
        torch.cuda.synchronize()


def parsed(text: str) -> list[dict[str, Any]]:
    """Of ncu --csv --page raw: a kernel a row, its metrics with their units."""
    lines = text[text.index('"ID"'):].splitlines() if '"ID"' in text else []
    table = list(csv.DictReader(io.StringIO("\n".join(lines))))
    units, rows = (table[0], table[1:]) if table else ({}, [])

    def values(row: dict[str, str]) -> dict[str, str]:
        return {name: f"{row[metric]} {units.get(metric, '')}".strip()
                for metric, name in METRICS.items() if metric in row}

    return [{"kernel": row["Kernel Name"][:60], **values(row)} for row in rows]


def main() -> int:
    p = argparse.ArgumentParser(prog="python -m fastmix.bench.device.counters")
    p.add_argument("--json", type=Path)
    p.add_argument("--launch", action="store_true", help="only launch the kernels")
    p.add_argument("--small", action="store_true")
    args = p.parse_args()
    if args.launch:
        launch(args.small)
        return 0
    own = [sys.executable, "-m", "fastmix.bench.device.counters", "--launch", *(["--small"] if args.small else [])]
    tool = shutil.which("ncu") or shutil.which("/usr/local/cuda/bin/ncu")
    if tool is None:
        code = subprocess.run(own).returncode  # that the kernels are launched can still be seen
        args.json.write_text(json.dumps({"summary": ["no GPU counters: no ncu"], "kernels": []}) + "\n")
        print("no GPU counters: no ncu")
        return code
    command = [tool, "--csv", "--page", "raw", "--clock-control", "none", "--metrics", ",".join(METRICS),
               "--kernel-name", f"regex:{'|'.join(KERNELS)}", *own]
    done = subprocess.run(command, capture_output=True, text=True)
    print(done.stdout + done.stderr)
    kernels = parsed(done.stdout)
    lines = [", ".join(f"{name} {value}" for name, value in kernel.items()) for kernel in kernels]
    args.json.write_text(json.dumps({"summary": lines, "kernels": kernels}) + "\n")
    return done.returncode or int(not kernels)


if __name__ == "__main__":
    sys.exit(main())
