"""Which backend serves an operator here, and why another one cannot.

``auto`` takes the fastest available one of :data:`AUTO` and falls back to the reference. An explicit choice, by
``with fastmix.backend("cpu"):`` or FASTMIX_BACKEND (read once at import), works or raises with the reason.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from . import _library

_transforms_active = torch._C._are_functorch_transforms_active

BACKENDS = ("reference", "cpu", "triton", "cuda")
OPERATORS = ("soft_target", "blend", "paste", "patch_mix", "saliency", "covariance", "isda")

# The backend that auto takes, by device type; missing entries mean the reference. The C++ kernels won every
# case of `python -m bench` against the reference, eager and compiled (bench/results).
AUTO: dict[str, dict[str, str]] = {op: {"cpu": "cpu"} for op in OPERATORS}


class _State:
    forced: str | None = None
    debug: bool = False


def _parse(name: str, source: str) -> str | None:
    if name == "auto":
        return None
    if name not in BACKENDS:
        raise ValueError(f"{source}: backend is {name!r}, want one of {', '.join(BACKENDS)} or auto")
    return name


def why_not(op: str, name: str, device_type: str) -> str | None:
    """Why backend ``name`` cannot serve ``op`` on such a device, or None if it can."""
    if name == "reference":
        return None
    if name == "cpu":
        if device_type != "cpu":
            return f"it serves CPU tensors, this one is on {device_type}"
        return None if _library.missing is None else f"the C++ library is missing: {_library.missing}"
    return f"fastmix has no {name} kernel for {op} yet"


def select(op: str, x: Tensor) -> str:
    """The backend for this call. RuntimeError with the reason if an explicit choice cannot serve it."""
    device_type = "cpu" if x.is_cpu else x.device.type
    name = _State.forced
    if not torch.compiler.is_compiling() and _transforms_active():
        # torch.library operators do not run under torch.func transforms (grad, vmap, ...); plain torch does.
        if name not in (None, "reference"):
            raise RuntimeError(f"{op}: backend {name!r} was asked for and cannot serve under torch.func transforms")
        return "reference"
    if name is None:
        return AUTO[op].get(device_type, "reference")
    reason = why_not(op, name, device_type)
    if reason is not None:
        raise RuntimeError(f"{op}: backend {name!r} was asked for and cannot serve: {reason}")
    return name


class backend:
    """``with fastmix.backend("reference"):`` serves every fastmix call inside with that backend.

    name: reference, cpu, triton, cuda or auto. The choice is process-wide (the autograd engine's threads see it).
    Raises: ValueError for another name; the call inside raises RuntimeError where the backend cannot serve it.
    """

    def __init__(self, name: str) -> None:
        self._name = _parse(name, "fastmix.backend")
        self._outer: list[str | None] = []

    def __enter__(self) -> backend:
        self._outer.append(_State.forced)
        _State.forced = self._name
        return self

    def __exit__(self, *exc: Any) -> None:
        _State.forced = self._outer.pop()


def set_debug(on: bool) -> None:
    """Check values that live on the GPU as well (labels and indices in range), at the price of a sync a call."""
    _State.debug = bool(on)


def must_check_values(backend_name: str, x: Tensor) -> bool:
    """Whether Python has to look for values out of range: the C++ CPU kernels do it themselves."""
    if torch.compiler.is_compiling():
        return False
    return _State.debug or (backend_name == "reference" and x.is_cpu)


def configure_from_environment() -> None:
    _State.forced = _parse(os.environ.get("FASTMIX_BACKEND", "auto"), "FASTMIX_BACKEND")
    _State.debug = os.environ.get("FASTMIX_DEBUG", "0") not in ("", "0")


def select_auto() -> None:
    """Without the C++ library the reference serves the CPU."""
    for table in AUTO.values():
        if _library.missing is not None:
            table.pop("cpu", None)
