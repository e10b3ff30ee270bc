"""Loads the compiled operators, or declares them from Python where the C++ library is missing."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import torch

_HERE = Path(__file__).parent

# Why the C++ library is not there, or None when it is loaded.
missing: str | None = None
_declared: torch.library.Library | None = None
# Why the CUDA library is not there, or None when it is loaded.
cuda_missing: str | None = None


def schemas() -> dict[str, str]:
    """Operator name -> schema, from the one file that C++ compiles as well."""
    found = re.findall(r'FASTMIX_OP\("(\w+)(\([^"]*)"\)', (_HERE / "ops" / "schemas.def").read_text())
    return {name: name + rest for name, rest in found}


def _load() -> str | None:
    paths = sorted(_HERE.glob("_C.*so")) + sorted(_HERE.glob("_C.*pyd"))
    if not paths:
        return "it was not built (no C++ compiler at install time, or the package was not installed)"
    try:
        torch.ops.load_library(str(paths[0]))
    except OSError as error:
        return f"{paths[0].name} does not load: {error}"
    return None


def _load_cuda() -> str | None:
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is not a CUDA build"
    paths = sorted(_HERE.glob("_C_cuda.*so"))
    if not paths:
        return "the CUDA library was not built (no nvcc at install time, or FASTMIX_CUDA=0)"
    try:
        torch.ops.load_library(str(paths[0]))
    except OSError as error:
        return f"{paths[0].name} does not load: {error}"
    return None


def load() -> None:
    """Called once by ``import fastmix``."""
    global missing, cuda_missing
    missing = _load()
    if missing is not None:
        _declare()
    cuda_missing = _load_cuda()


def _declare() -> None:
    global _declared
    warnings.warn(f"fastmix: the C++ library is missing: {missing}. The plain PyTorch reference serves instead, "
                  "slower and with more memory.", RuntimeWarning, stacklevel=4)
    _declared = torch.library.Library("fastmix", "DEF")
    for schema in schemas().values():
        _declared.define(schema)
