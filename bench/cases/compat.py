"""The drop-ins of `fastmix.compat` against the classes that they stand for, called as those are.

Dense targets, as the originals return them, unless the name says sparse. The first peer of a case is the original, the
goal is to be 1.2 times as fast. What is drawn differs from call to call, so only shapes are compared.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

import fastmix
from fastmix.app import import_torchvision
from fastmix.compat.losses import CrossEntropyLoss

from .base import Call, Case, Peer, generator, images, numel

AT_LEAST = 1.2
ORIGINALS = {"timm": "timm.data", "torchvision": "torchvision.transforms.v2"}
SHAPES = {(128, 3, 32, 32): 100, (64, 3, 224, 224): 1000}  # images -> classes
MIXUP, CUTMIX = {"mixup_alpha": 1.0}, {"mixup_alpha": 0.0, "cutmix_alpha": 1.0}
BOTH = {"mixup_alpha": 1.0, "cutmix_alpha": 1.0}
TIMM = {"Mixup": MIXUP, "CutMix": CUTMIX, "both": BOTH, "both elem": {**BOTH, "mode": "elem"},
        "both pair": {**BOTH, "mode": "pair"}, "both sparse": {**BOTH, "sparse": True}}


def _mixing(library: str, name: str, shape: tuple[int, ...], make: Callable[[Any, bool], Any]) -> Case:
    """make: of the module that has the class and whether it is ours, the mixer."""
    classes = SHAPES[shape]
    ours = make(importlib.import_module(f"fastmix.compat.{library}"), True)

    def arguments(device: torch.device, seed: int) -> tuple[Tensor, ...]:
        g = generator(seed)
        labels = torch.randint(classes, shape[:1], generator=g).to(device)
        return images(shape, torch.float32, False, device, g), labels

    def original(x: Tensor, y: Tensor) -> Call:
        theirs = make(importlib.import_module(ORIGINALS[library]), False)
        own = x.detach().clone()  # timm mixes in place
        return lambda x, y: theirs(own, y)

    return Case(op="compat", name=f"{library} {name} {'x'.join(map(str, shape))}", make=arguments, ours=ours,
                reference=ours, moved=2 * numel(shape) * 4, formula="2 N D s: x read, mixed written",
                operators=("blend", "paste"), peers=(Peer(library, original, requires=library, same=False),),
                goals={"cpu": {library: AT_LEAST}}, scratch=2 * numel(shape) * 4 + 4096 * shape[0], random=True)


def _loss(name: str, library: str, n: int, j: int, ours: nn.Module, theirs: Callable[[], nn.Module],
          kind: str) -> Case:
    """kind: of the target, "labels", "dense" or "sparse", which the original gets as a dense one."""
    def arguments(device: torch.device, seed: int) -> tuple[Any, ...]:
        g = generator(seed)
        logits, index = torch.randn(n, j, generator=g).to(device), torch.randint(j, (n, 2), generator=g).to(device)
        sparse = fastmix.SoftTarget(index, torch.full((n, 2), 0.5, device=device))
        return logits, {"labels": index[:, 0], "dense": sparse.dense(j), "sparse": sparse}[kind]

    def original(logits: Tensor, target: Any) -> Call:
        criterion, dense = theirs().to(logits.device), target.dense(j) if kind == "sparse" else target
        return lambda logits, target: criterion(logits, dense)

    def reference(logits: Tensor, target: Any) -> Tensor:
        return original(logits, target)(logits, target)

    return Case(op="compat", name=f"{name} {kind} {n}x{j}", make=arguments, ours=ours, reference=reference,
                moved=2 * n * j * 4, formula="2 N J s: logits read, gradient written", operators=("soft_target",),
                backward=True, peers=(Peer(library, original, same=kind != "sparse"),),
                goals={"cpu": {library: AT_LEAST}}, scratch=4 * n * j * 4, quick=library == "torch" and n == 128)


def cases() -> list[Case]:
    import_torchvision.prepare()
    found = []
    for n, j in ((128, 100), (64, 1000)):
        for smoothing, kind in ((0.0, "labels"), (0.1, "labels"), (0.0, "dense")):
            ours, theirs = (kind_of(label_smoothing=smoothing) for kind_of in (CrossEntropyLoss, nn.CrossEntropyLoss))
            found.append(_loss(f"torch CrossEntropyLoss {smoothing}", "torch", n, j, ours, lambda made=theirs: made,
                               kind))
    if find_spec("timm") is not None:
        timm = importlib.import_module("fastmix.compat.timm")
        losses = importlib.import_module("timm.loss")
        for n, j in ((128, 100), (64, 1000)):
            for name, kind in (("SoftTargetCrossEntropy", "dense"), ("SoftTargetCrossEntropy", "sparse"),
                               ("BinaryCrossEntropy", "dense"), ("BinaryCrossEntropy", "sparse"),
                               ("LabelSmoothingCrossEntropy", "labels")):
                found.append(_loss(f"timm {name}", "timm", n, j, getattr(timm, name)(), getattr(losses, name), kind))
        for shape, classes in SHAPES.items():
            for name, how in TIMM.items():
                def mixer(module: Any, own: bool, how: Any = how, classes: int = classes) -> Any:
                    return module.Mixup(**{key: value for key, value in how.items() if own or key != "sparse"},
                                        num_classes=classes)
                found.append(_mixing("timm", name, shape, mixer))
    if find_spec("torchvision") is not None:
        for shape, classes in SHAPES.items():
            for name in ("MixUp", "CutMix"):
                found.append(_mixing("torchvision", name, shape, lambda module, own, name=name, classes=classes:
                                     getattr(module, name)(num_classes=classes)))
    return found
