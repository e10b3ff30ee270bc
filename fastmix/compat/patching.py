"""Puts the drop-ins into place in code that cannot be changed."""

from __future__ import annotations

import importlib
import sys
from types import TracebackType
from typing import Any

# library -> (where its classes are, our module, names)
CLASSES = {"timm": (("timm.data", ("Mixup",)),
                    ("timm.loss", ("SoftTargetCrossEntropy", "LabelSmoothingCrossEntropy", "BinaryCrossEntropy"))),
           "torchvision": (("torchvision.transforms.v2", ("MixUp", "CutMix")),)}

Place = tuple[Any, str, object]  # module, name, what was there
_replaced: list[Place] = []


class Patched:
    """What `patch` did: ``names`` says which names were replaced. As a context it is undone at the end."""

    def __init__(self, places: list[Place]) -> None:
        self._places = places
        self.names = [f"{module.__name__}.{name}" for module, name, _ in places]

    def __repr__(self) -> str:
        return f"replaced {', '.join(self.names)}" if self.names else "replaced nothing"

    def __enter__(self) -> Patched:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        for place in reversed(self._places):
            if place in _replaced:
                _replaced.remove(place)
                setattr(*place)


def patch(*libraries: str) -> Patched:
    """Replaces timm's and torchvision's classes by fastmix's in every module that has them by name.

        print(fastmix.patch())         # replaced timm.data.Mixup, ..., until fastmix.unpatch()
        with fastmix.patch("timm"):    # or for a while
            ...

    Objects that were made before stay what they are, and modules that are imported later from an original's own module
    get the replacement.

    Args: libraries: "timm", "torchvision"; none: those of the two that are installed.
    Raises: ImportError for a library that is named and missing; ValueError for another name.
    """
    for name in libraries:
        if not isinstance(name, str) or name not in CLASSES:
            raise ValueError(f"patch: libraries has {name!r}, want some of {', '.join(CLASSES)}")
    done: list[Place] = []
    for library in libraries or CLASSES:
        try:
            ours = importlib.import_module(f".{library}", __package__)
        except ImportError:
            if libraries:
                raise
            continue
        for place, names in CLASSES[library]:
            theirs = importlib.import_module(place)
            for name in names:
                done += _replace(getattr(theirs, name), getattr(ours, name), name)
    return Patched(done)


def _replace(original: object, ours: object, name: str) -> list[Place]:
    """The places where a module outside fastmix had the original by this name."""
    places: list[Place] = []
    for module_name, module in list(sys.modules.items()):
        outside = module is not None and module_name.split(".")[0] != "fastmix"
        if original is not ours and outside and vars(module).get(name) is original:
            places.append((module, name, original))
            setattr(module, name, ours)
    _replaced.extend(places)
    return places


def unpatch() -> None:
    """Puts the originals back wherever `patch` replaced them."""
    while _replaced:
        setattr(*_replaced.pop())
