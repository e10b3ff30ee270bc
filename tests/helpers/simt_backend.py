"""Serves the CUDA kernels as a backend named "simt" for CPU tensors, so that whole test files run on it."""

from __future__ import annotations

import ctypes

import torch

from fastmix.ops import blend, dispatch, isda, paste, patch_mix, saliency, soft_target, view
from fastmix.ops.operator import Operator

from . import simt_build

NAMESPACE = "fastmix_simt"
_library: ctypes.CDLL | None = None


def install() -> None:
    """Idempotent."""
    global _library
    if _library is not None:
        return
    path = str(simt_build.library())
    torch.ops.load_library(path)
    _library = ctypes.CDLL(path)
    dispatch.BACKENDS = (*dispatch.BACKENDS, "simt")
    known = dispatch.why_not
    dispatch.why_not = lambda op, name, device_type, form=None: why_not(op, name, form=form) if (
        name == "simt") else known(op, name, device_type, form)
    for module in (blend, isda, paste, patch_mix, saliency):
        for operator in vars(module).values():
            if isinstance(operator, Operator):
                operator.add("simt", NAMESPACE)
    for operator in view.OPERATORS.values():
        operator.add("simt", NAMESPACE)
    soft_target.add("simt", NAMESPACE)


def why_not(op: str, name: str, device_type: str = "cpu", form: str | None = None) -> str | None:
    """Why backend ``name`` cannot serve ``op`` there, or None."""
    if name != "simt":
        return dispatch.why_not(op, name, device_type, form)
    if form is not None and form not in dispatch.FORMS.get((op, "cuda"), (form,)):
        return f"its {op} kernels do not serve {form}"
    return None if op in dispatch.CUDA_OPERATORS else f"{op} has no CUDA kernel"


def reverse(on: bool) -> None:
    """Blocks and threads from the last to the first: no result may depend on it."""
    assert _library is not None
    _library.simt_reverse(int(on))
