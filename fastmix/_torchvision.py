"""Imports torchvision, also beside a torch that its compiled operators do not fit."""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec
from types import ModuleType

import torch

from ._cli import CommandError

# What torchvision's Python needs to see declared. Wheels built for CUDA cannot load their library beside a CPU build of
# torch, and then not even `import torchvision` works, though transforms and models need none of it.
_SCHEMAS = ("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
            "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_declared: list[torch.library.Library] = []


def load(need: str, module: str = "torchvision") -> ModuleType:
    """``module``, torchvision or one inside it. need: what asks for it, for the message of the CommandError."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if error.name is not None and error.name.partition(".")[0] != "torchvision":
            raise CommandError(f"{need} needs torchvision, which does not import: {error}") from error
        raise CommandError(f"{need} needs torchvision: pip install torchvision") from None
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error) or torch.version.cuda is not None or _declared:
            raise CommandError(f"{need} needs torchvision, which does not import: {error}") from error
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        library.define(schema)
    _declared.append(library)
    for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:  # half imported
        del sys.modules[name]
    return importlib.import_module(module)


def make_importable() -> None:
    """For libraries that import torchvision where it is installed (torchmetrics, timm): before they do."""
    if "torchvision" not in sys.modules and find_spec("torchvision") is not None:
        load("another library")
