"""Which backend serves an operator here, and why another one cannot.

``auto`` takes the fastest available one of :data:`AUTO` and falls back to the reference. An explicit choice, by
``with fastmix.backend("cpu"):`` or FASTMIX_BACKEND (read once at import), works or raises with the reason.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ..reference._common import in_vmap
from . import checks as check
from . import choice, library

_transforms_active = torch._C._are_functorch_transforms_active

BACKENDS = ("reference", "cpu", "triton", "cuda")
OPERATORS = ("soft_target", "blend", "paste", "patch_mix", "view", "saliency", "crop", "covariance", "isda",
             "plan")

CUDA_OPERATORS = ("soft_target", "paste", "patch_mix", "view", "saliency", "isda")
# Operators of which a backend serves some forms only, the caller's third argument of `select`.
FORMS = {("isda", "cuda"): ("diag", "identity")}
TRITON_OPERATORS = OPERATORS

# The backend that auto takes, by device type; missing entries mean the reference.
# cpu: the C++ kernels won every case of the benchmarks against the reference, eager and compiled (bench/results).
# cuda: as gpu_backends.json says, of C++/CUDA and Triton those that are there (see select_auto). By bytes both beat the
# reference, which makes several passes.
AUTO: dict[str, dict[str, choice.Choice]] = {
    op: {"cpu": "cpu", "cuda": "triton"} for op in OPERATORS}

# Triton reads the variable when a kernel is defined, so one that is set later has no effect.
_TRITON_INSTALLED = find_spec("triton") is not None
_TRITON_INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")


class _State:
    forced: str | None = None
    debug: bool = False


class CannotServe(RuntimeError):
    """A backend that was asked for and cannot serve an operator here; the message says why."""


def _parse(name: str, source: str) -> str | None:
    if isinstance(name, str) and name == "auto":
        return None
    if not isinstance(name, str) or name not in BACKENDS:
        raise ValueError(f"{source}: backend is {check.shown(name)}, want one of {', '.join(BACKENDS)} or auto")
    return name


def why_not(op: str, name: str, device_type: str, form: str | None = None) -> str | None:
    """Why backend ``name`` cannot serve ``op`` (this form of it) on such a device, or None if it can."""
    served = FORMS.get((op, name))
    if form is not None and served is not None and form not in served:
        return f"its {op} kernels serve {' and '.join(served)}, this is {form}"
    if name == "reference":
        return None
    if name == "cpu":
        if device_type != "cpu":
            return f"it serves CPU tensors, this one is on {device_type}"
        return None if library.missing is None else f"the C++ library is missing: {library.missing}"
    if name == "cuda":
        return _why_not_cuda(op, device_type)
    if name == "triton":
        if op not in TRITON_OPERATORS:
            return f"fastmix has no triton kernel for {op}"
        if not _TRITON_INSTALLED:
            return "triton is not installed (pip install triton)"
        if device_type == "cpu" and not _TRITON_INTERPRETED:
            return "Triton serves CPU tensors in its interpreter alone (start Python with TRITON_INTERPRET=1)"
        return None if device_type in ("cpu", "cuda") else f"it serves CUDA tensors, this one is on {device_type}"
    raise AssertionError(name)


def _why_not_cuda(op: str, device_type: str) -> str | None:
    if op not in CUDA_OPERATORS:
        return f"fastmix has no cuda kernel for {op}"
    if device_type != "cuda":
        return f"it serves CUDA tensors, this one is on {device_type}"
    return library.cuda_missing


def select(op: str, x: Tensor, form: str | None = None) -> str:
    """The backend for this call. RuntimeError with the reason if an explicit choice cannot serve it.

    form: which one of an operator that `FORMS` names.
    """
    device_type = "cpu" if x.is_cpu else x.device.type
    name = _State.forced
    if not torch.compiler.is_compiling() and _transforms_active():
        # torch.library operators do not run under torch.func transforms (grad, vmap, ...); plain torch does.
        if name not in (None, "reference"):
            raise CannotServe(f"{op}: backend {name!r} was asked for and cannot serve under torch.func transforms")
        return "reference"
    if name is None:
        chosen = AUTO[op].get(device_type, "reference")
        name = chosen if isinstance(chosen, str) else chosen(x, form)
        if form is None or form in FORMS.get((op, name), (form,)):
            return name
        # Triton's, where it is there: it serves every form.
        return "triton" if why_not(op, "triton", device_type) is None else "reference"
    reason = why_not(op, name, device_type, form)
    if reason is not None:
        raise CannotServe(f"{op}: backend {name!r} was asked for and cannot serve: {reason}")
    return name


def operator_checks(op: str, x: object, *data: object) -> bool:
    """Whether the C++ operator can be asked to check the arguments of this call: it is eager and all are on the CPU.

    It does so in a tenth of the time. Where it raises RuntimeError the checks of Python, which have the words for it,
    are to follow. data: what no gradient flows to, or None.
    """
    if torch.compiler.is_compiling() or not isinstance(x, Tensor) or not x.is_cpu:
        return False
    for each in data:
        if each is not None and (not isinstance(each, Tensor) or not each.is_cpu or each.requires_grad):
            return False
    return select(op, x) == "cpu"


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
    _State.debug = check.flag("fastmix.set_debug", "on", on)


def must_check_values(backend_name: str, x: Tensor) -> bool:
    """Whether Python has to look for values out of range: the C++ CPU kernels do it themselves."""
    if torch.compiler.is_compiling() or in_vmap():
        return False
    return _State.debug or (backend_name == "reference" and x.is_cpu)


def configure_from_environment() -> None:
    _State.forced = _parse(os.environ.get("FASTMIX_BACKEND", "auto"), "FASTMIX_BACKEND")
    _State.debug = os.environ.get("FASTMIX_DEBUG", "0") not in ("", "0")


def select_auto() -> None:
    """Without the C++ library the reference serves the CPU; a GPU gets what `choice` says, or the reference."""
    entries = choice.load()
    if unnamed := [op for op in AUTO if op not in entries]:
        raise ImportError(f"fastmix: {choice.FILE} has no entry of {unnamed[0]}")
    for op, table in AUTO.items():
        if library.missing is not None:
            table.pop("cpu", None)
        found = choice.decide(entries[op], lambda name, form, op=op: why_not(op, name, "cuda", form) is None)
        if found is None:
            table.pop("cuda", None)
        else:
            table["cuda"] = found


def chosen_for(op: str, device_type: str) -> set[str]:
    """The backends that auto takes for some call on such a device."""
    found = AUTO[op].get(device_type, "reference")
    if isinstance(found, str):
        return {found}
    return {name for name in choice.BACKENDS if why_not(op, name, device_type) is None}
