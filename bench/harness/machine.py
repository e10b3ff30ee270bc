"""What the figures were measured on: processor, cores, instruction set, versions, commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path

import torch

from fastmix.ops.checkout import CHECKOUT

from .entries import Entry

PACKAGES = ("torch", "triton", "numpy", "timm", "torchvision", "kornia")


def cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.machine()


def cores() -> int:
    """Processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def other_cpu_seconds() -> float:
    """CPU time that everything but this process has used on this machine, a hypervisor's theft included.

    0.0 where /proc/stat is not there. Two readings tell whether a timing had the machine to itself.
    """
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return 0.0
    user, nice, system, _idle, _iowait, irq, softirq, steal = (int(field) for field in fields[:8])
    own = os.times()
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK") - own.user - own.system


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*args: str) -> str | None:
    """Of the checkout; None where fastmix is installed, whatever repository that is in."""
    if CHECKOUT is None:
        return None
    try:
        done = subprocess.run(["git", *args], cwd=CHECKOUT, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def describe(device: torch.device, name: str | None = None) -> Entry:
    """The machine entry of a result. name: what to call it (default: made of the processor or the GPU)."""
    processor = f"{cpu_model()}, {cores()} cores, {torch.backends.cpu.get_cpu_capability()}"
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return {
        "name": name or gpu or processor,
        "device": device.type,
        "gpu": gpu,
        "cpu": cpu_model(),
        "cores": cores(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "packages": {p: v for p in PACKAGES if (v := version(p)) is not None},
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": None if changed is None else bool(changed),
    }


def slug(name: str) -> str:
    """A folder name: ``AMD EPYC, 2 cores, AVX512`` -> ``amd-epyc-2-cores-avx512``."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
