"""Serves the CUDA kernels as a backend named "simt" for CPU tensors, so that whole test files run on it."""

from __future__ import annotations

import ctypes
import importlib

import simt_build
import torch

from fastmix.ops import blend, isda, paste, patch_mix, saliency, soft_target, view
from fastmix.ops._operator import Operator

NAMESPACE = "fastmix_simt"
_backend = importlib.import_module("fastmix.backend")  # the name fastmix.backend is the context manager
_library: ctypes.CDLL | None = None


def install() -> None:
    """Idempotent."""
    global _library
    if _library is not None:
        return
    path = str(simt_build.library())
    torch.ops.load_library(path)
    _library = ctypes.CDLL(path)
    _backend.BACKENDS = (*_backend.BACKENDS, "simt")
    known = _backend.why_not
    _backend.why_not = lambda op, name, device_type, form=None: why_not(op, name, form=form) if (
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
        return _backend.why_not(op, name, device_type, form)
    if form is not None and form not in _backend.FORMS.get((op, "cuda"), (form,)):
        return f"its {op} kernels do not serve {form}"
    return None if op in _backend.CUDA_OPERATORS else f"{op} has no CUDA kernel"


def reverse(on: bool) -> None:
    """Blocks and threads from the last to the first: no result may depend on it."""
    assert _library is not None
    _library.simt_reverse(int(on))
