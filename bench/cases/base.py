"""What one line of the bench is: a case, its peers, and how the case files are found."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastmix.app.command_line import meant

Call = Callable[..., Any]


@dataclass(frozen=True)
class Peer:
    """Another way to do the same work.

    name: without a comma, so that --providers can list it.
    build: called once as ``build(*args)`` with the case's arguments; host-side preparation that users do not pay for
        belongs there. Returns the function that is timed, called as ``fn(*args)``.
    requires: a module it needs; absent, the peer is skipped with a line.
    same: whether it computes exactly the case's function, and so is compared with the reference.
    """

    name: str
    build: Callable[..., Call]
    requires: str | None = None
    same: bool = True

    def why_not(self) -> str | None:
        if self.requires is None or importlib.util.find_spec(self.requires) is not None:
            return None
        return f"{self.requires} is not installed"


@dataclass(frozen=True)
class Case:
    """One operator at one shape.

    make: ``make(device, seed)`` returns the arguments; the first is the batch (or the logits), which is cloned for
        the floor and, with ``backward``, is the leaf whose gradient is computed.
    ours, reference: the public function, and the same in plain PyTorch from `fastmix.reference`.
    moved: bytes that must move once (every input read once, every output written once); formula says how counted.
    operators: the entries of `fastmix.backend` that have to be there for a backend to serve the case.
    goals: device type -> {"compile", "eager" or a peer's name: at least so many times faster, "floor": at most so
        many times the floor}.
    scratch: bytes that a kernel may allocate beyond its outputs, O(N h w).
    compiled: what torch.compile gets: the same function without loops, where the reference has one that it would
        unroll; default: the reference.
    random: results differ from call to call, so only their shapes are compared with the reference.
    """

    op: str
    name: str
    make: Callable[[torch.device, int], tuple[Any, ...]]
    ours: Call
    reference: Call
    moved: int
    formula: str
    operators: tuple[str, ...]
    backward: bool = False
    peers: tuple[Peer, ...] = ()
    goals: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    scratch: int = 0
    quick: bool = False
    random: bool = False
    compiled: Call | None = None

    @property
    def mode(self) -> str:
        return "forward+backward" if self.backward else "forward"


def case_modules() -> dict[str, ModuleType]:
    """Operator -> module, for every file beside this one that has cases."""
    names = sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    modules = {name: importlib.import_module(f"{__package__}.{name}") for name in names}
    return {name: module for name, module in modules.items() if hasattr(module, "cases")}


def select_cases(ops: list[str] | None, quick: bool) -> list[Case]:
    """The cases of the operators asked for (None: all). ValueError for an operator without a file."""
    modules = case_modules()
    unknown = [op for op in ops or [] if op not in modules]
    if unknown:
        raise ValueError(f"--op: {', '.join(unknown)} unknown, want one of {', '.join(modules)}"
                         f"{meant(unknown[0], modules)}")
    cases = [case for op, module in modules.items() if not ops or op in ops for case in module.cases()]
    return [case for case in cases if case.quick or not quick]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool, device: torch.device,
           g: torch.Generator) -> Tensor:
    x = torch.randn(shape, generator=g).to(device=device, dtype=dtype)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def image_case_name(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool, extra: str = "") -> str:
    parts = ["x".join(map(str, shape)), extra, "" if dtype == torch.float32 else dtype_name(dtype),
             "channels_last" if channels_last else ""]
    return " ".join(part for part in parts if part)


def dtype_name(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16",
            torch.float64: "fp64"}.get(dtype, str(dtype))


def numel(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()
