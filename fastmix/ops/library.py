"""Loads the compiled operators, or declares them from Python where the C++ library is missing."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from .checkout import make_importable

_PACKAGE = Path(__file__).parent.parent

# Why the C++ library is not there, or None when it is loaded.
missing: str | None = None
# Why the CUDA library is not there, or None when it is loaded.
cuda_missing: str | None = None
_declared: list[torch.library.Library] = []

# The C++ library serves fastmix::<operator> on the CPU and on CUDA, told apart by the dispatch key. Triton serves
# operators of the same schemas in a namespace of its own, so that both can be there on a CUDA device.
TRITON_NAMESPACE = "fastmix_triton"

# Operator -> its module in fastmix.kernels, where it is not of the same name.
_KERNEL_MODULES = {"soft_target_dense": "soft_target", "scale_gradient_": "soft_target", "blend_backward": "blend",
                   "paste_backward": "paste", "patch_mix_backward": "patch_mix", "saliency_map": "saliency",
                   "saliency_mask": "saliency", "saliency_mask_of_grid": "saliency_grids", "saliency_peak": "saliency",
                   "percentile_mask": "saliency",
                   "resized_crop": "crop", "resized_crop_backward": "crop",
                   "view_blend": "view", "view_paste": "view", "view_patch_mix": "view",
                   "covariance_update_": "covariance", "isda_logits": "isda", "isda_logits_backward": "isda",
                   "isda_logits_kept": "isda_kept", "isda_logits_kept_backward": "isda_kept",
                   "plan_blend": "plan", "plan_paste": "plan", "plan_cutout": "plan", "plan_patch": "plan",
                   "plan_crop": "plan"}


def schemas() -> dict[str, str]:
    """Operator name -> schema, from the one file that C++ compiles as well."""
    found = re.findall(r'FASTMIX_OP\("(\w+)(\([^"]*)"\)', (_PACKAGE / "ops" / "schemas.def").read_text())
    return {name: name + rest for name, rest in found}


def _open(paths: list[Path], absent: str) -> str | None:
    """Load the first of paths; why it could not be done, or None. absent: what to say where there is none."""
    if not paths:
        return absent
    try:
        torch.ops.load_library(str(paths[0]))
    except OSError as error:
        return f"{paths[0].name} does not load: {error}"
    return None


def _load() -> str | None:
    """The library of the package, or the one that FASTMIX_LIBRARY names, as builds under a sanitizer have to be."""
    named = os.environ.get("FASTMIX_LIBRARY")
    return _open([Path(named)] if named else sorted(_PACKAGE.glob("_C.*so")) + sorted(_PACKAGE.glob("_C.*pyd")),
                 "it was not built (no C++ compiler at install time, or the package was not installed)")


def _load_cuda() -> str | None:
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is not a CUDA build"
    return _open(sorted(_PACKAGE.glob("_C_cuda.*so")),
                 "the CUDA library was not built (no nvcc at install time, or FASTMIX_CUDA=0)")


def kernels(name: str) -> ModuleType:
    """fastmix.kernels.<name>. Imports Triton, so only at the first call of a kernel."""
    return import_module(f"fastmix.kernels.{name}")


def _at_first_call(name: str) -> Callable[..., Any]:
    kernel: Callable[..., Any] | None = None

    def call(*args: Any) -> Any:
        nonlocal kernel
        if kernel is None:
            kernel = getattr(kernels(_KERNEL_MODULES.get(name, name)), name)
        return kernel(*args)
    return call


def _declare(namespace: str) -> torch.library.Library:
    library = torch.library.Library(namespace, "DEF")
    for schema in schemas().values():
        library.define(schema)
    _declared.append(library)
    return library


def _check_schemas() -> None:
    """ImportError if the C++ library was built from other sources than these."""
    for name, schema in schemas().items():
        built = torch._C._jit_get_schemas_for_operator(f"fastmix::{name}")
        if built != [torch._C.parse_schema(f"fastmix::{schema}")]:
            raise ImportError(f"fastmix: the C++ library in {_PACKAGE} was built from other sources: it has "
                              f"{'another' if built else 'no'} operator {name}. Build it again: pip install . (or, in "
                              "a checkout, make setup)")


def load() -> None:
    """Called once by ``import fastmix``."""
    global missing, cuda_missing
    make_importable()
    triton = _declare(TRITON_NAMESPACE)
    for name in schemas():
        for key in ("CPU", "CUDA"):  # CPU: the interpreter
            triton.impl(name, _at_first_call(name), key)
    missing = _load()
    if missing is not None:
        warnings.warn(f"fastmix: the C++ library is missing: {missing}. The plain PyTorch reference serves instead, "
                      "slower and with more memory.", RuntimeWarning, stacklevel=3)
        _declare("fastmix")
    else:
        _check_schemas()
    cuda_missing = _load_cuda()
