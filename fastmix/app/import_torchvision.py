"""Imports torchvision, also beside a torch that its compiled operators do not fit.

PyPI's torchvision for Linux is a CUDA build. With a CPU build of torch its library of operators cannot be loaded, and
its import fails where it registers shapes for two of them. Declared here first, they exist (and raise if called);
transforms and models need neither. torchmetrics imports torchvision wherever it finds it.
"""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch

from .errors import CommandError

_declared: list[torch.library.Library] = []


def prepare() -> None:
    """To be called before torchvision, or what imports it, is imported. Does nothing where that works by itself."""
    if torch.version.cuda is not None or _declared or "torchvision" in sys.modules:
        return
    spec = find_spec("torchvision")
    if spec is None or not _is_cuda_build(spec.submodule_search_locations or []):
        return
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)


def _is_cuda_build(folders: list[str]) -> bool:
    return any("+cu" in path.read_text() for folder in folders if (path := Path(folder) / "version.py").exists())


def load(need: str, module: str = "torchvision") -> ModuleType:
    """``module``, torchvision or one inside it. need: what asks for it, for the message of the CommandError."""
    prepare()
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if error.name is not None and error.name.partition(".")[0] != "torchvision":
            raise CommandError(f"{need} needs torchvision, which does not import: {error}") from error
        raise CommandError(f"{need} needs torchvision: pip install torchvision") from None
    except RuntimeError as error:
        raise CommandError(f"{need} needs torchvision, which does not import: {error}") from error
