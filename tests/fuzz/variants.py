"""What serves a call: the backends that run on a CPU, the C++ kernels once for each instruction set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from helpers import simt_backend

import fastmix
from fastmix.ops import dispatch, library
from fastmix.ops.enums import InstructionSet, codes

ISA = codes(InstructionSet)


def of(backend: str) -> list[str]:
    """The variants of a backend here: of cpu one an instruction set, and the reference."""
    if backend != "cpu":
        return [backend]
    if library.missing is not None:
        return ["reference"]
    best = torch.ops.fastmix._cpu_isa(-1)
    return [*(f"cpu-{name}" for name, level in reversed(ISA.items()) if level <= best), "reference"]


def use(variant: str) -> None:
    """From here on the variant serves what it can."""
    if variant == "simt":  # some operators have no CUDA kernel: those are served as ever
        simt_backend.install()
        dispatch.FORMS[("isda", "simt")] = dispatch.FORMS[("isda", "cuda")]
        for op in dispatch.CUDA_OPERATORS:
            dispatch.AUTO[op]["cpu"] = "simt"


@contextmanager
def serving(variant: str) -> Iterator[None]:
    """Every call inside is served by the variant; `use` was called for simt."""
    name, _, isa = variant.partition("-")
    if isa:
        torch.ops.fastmix._cpu_isa(ISA[isa])
    try:
        with fastmix.backend("auto" if name == "simt" else name):
            yield
    finally:
        if isa:
            torch.ops.fastmix._cpu_isa(-2)
