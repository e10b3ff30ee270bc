"""python -m fastmix info: which backend serves which operator here, and why another one cannot."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

import torch

import fastmix

from ...ops import library
from ...ops.dispatch import BACKENDS, OPERATORS, _State, chosen_for, why_not
from ...ops.enums import InstructionSet
from ..console import Parser
from ..tables import fitted

SETS = {InstructionSet.PORTABLE: "portable", InstructionSet.AVX2: "AVX2", InstructionSet.AVX512: "AVX-512"}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _instruction_set() -> str:
    """What the C++ kernels chose at run time: the levels of `InstructionSet`."""
    if library.missing is not None:
        return f"none: {library.missing}"
    return SETS[InstructionSet(torch.ops.fastmix._cpu_isa(-1))]


def _cuda() -> str:
    if not torch.cuda.is_available():
        return "none" if torch.version.cuda is None else f"built for {torch.version.cuda}, no device"
    names = ", ".join(f"{torch.cuda.get_device_name(i)} (sm_{''.join(map(str, torch.cuda.get_device_capability(i)))})"
                      for i in range(torch.cuda.device_count()))
    return f"{torch.version.cuda}: {names}"


def lines() -> list[str]:
    """What `main` prints."""
    facts = {"fastmix": fastmix.__version__, "python": f"{platform.python_version()} ({sys.platform}, "
             f"{platform.machine()})", "torch": torch.__version__, "triton": _version("triton"),
             "threads": str(torch.get_num_threads()), "CPU kernels": _instruction_set(), "CUDA": _cuda(),
             "FASTMIX_BACKEND": os.environ.get("FASTMIX_BACKEND", "auto (not set)")}
    text = [fitted(f"{name:<16} {value}", " " * 17) for name, value in facts.items()]
    devices = ["cpu"] + ["cuda"] * torch.cuda.is_available()
    for device in devices:
        text += ["", f"operators on {device} tensors (* serves now)"]
        for op in OPERATORS:
            chosen = {_State.forced} if _State.forced else chosen_for(op, device)
            for i, name in enumerate(BACKENDS):
                reason = why_not(op, name, device)
                mark = "*" if name in chosen else " "
                text.append(fitted(f"  {op if i == 0 else '':<14}{mark} {name:<10} "
                                   f"{'available' if reason is None else 'no: ' + reason}", " " * 33))
    return text


def main(argv: list[str]) -> int:
    Parser(prog="python -m fastmix info", description="Operators, backends, versions.").parse_args(argv)
    print("\n".join(lines()))
    return 0
