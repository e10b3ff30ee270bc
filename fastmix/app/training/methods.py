"""The methods by name: what builds the mixer, which loss the run has, and which flags are read.

A new method is an entry of METHODS.

- ``build(options, shape)`` returns a mixer, or None for plain training; shape is (C, H, W). A mixer is a callable
  ``mixer(x, y, saliency) -> (x, target)`` or ``(x, target, confidence)``, with ``needs_saliency``.
- ``loss(options)`` returns ``loss(logits, target, confidence) -> 0-d``; None is soft cross-entropy with
  ``--label-smoothing``. target is the mixer's SoftTarget, or the labels (N,) where there is no mixer; confidence (N,)
  is the mixer's, None where it gives none.
- `begin_epoch` is called before every epoch: what follows a schedule is set there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import fastmix
import fastmix.functional as F

from ...mixers.soft import SoftAugmentation
from ...targets import SoftTarget
from ..console import UsageError

if TYPE_CHECKING:
    from .options import Options

Shape = tuple[int, int, int]
Loss = Callable[[Tensor, SoftTarget | Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Method:
    """flags: the options that it reads, beside those of every run. Defaults are the papers' for CIFAR.

    isda: the loss is `objectives.Isda`, the mixer at most Cutout. policy: the mixer is an RLMix with a `rl.Policy`.
    classes: build takes the number of classes as well. crops: it moves the images itself, the loader only flips them.
    """

    build: Callable[..., Any]
    flags: tuple[str, ...] = ()
    about: str = ""
    isda: bool = False
    loss: Callable[[Options], Loss] | None = None
    classes: bool = False
    crops: bool = False
    policy: bool = False

    @property
    def smooths(self) -> bool:
        """Whether the loss reads --label-smoothing."""
        return self.loss is None or self is METHODS["label-smoothing"]


def _k(options: Options, default: int) -> int:
    return default if options.k is None else options.k


def _alpha(options: Options, default: float) -> float:
    return default if options.alpha is None else options.alpha


def _cutout(options: Options, shape: Shape) -> Any:
    return fastmix.Cutout(shape[1] // 2 if options.length is None else options.length, prob=options.prob)


def _isda(options: Options, shape: Shape) -> Any:
    return None if options.length is None else _cutout(options, shape)


def cross_entropy(options: Options) -> Loss:
    """The loss of a method that brings none."""
    return _cross_entropy(options.label_smoothing)


def _cross_entropy(smoothing: float) -> Loss:
    return lambda logits, target, _: F.soft_cross_entropy(logits, target, label_smoothing=smoothing)


def _soft_target_kl(options: Options) -> Loss:
    def loss(logits: Tensor, target: SoftTarget | Tensor, confidence: Tensor | None) -> Tensor:
        return F.soft_target_kl(logits, target, weighting=options.weighting)
    return loss


def _focal(options: Options) -> Loss:
    criterion = fastmix.FocalLoss(options.focal_gamma)
    return lambda logits, target, _: criterion(logits, target)


# The papers' strengths, and by how much --sigma-decay divides them (Soft Augmentation B.1).
SIGMA = {"soft-crop": 0.3, "soft-resized-crop": 0.3, "soft-noise": 0.1}
DECAY = 1000


def _sigma(options: Options) -> float:
    return SIGMA[options.method] if options.sigma is None else options.sigma


def _soft_crop(options: Options, shape: Shape, classes: int) -> Any:
    return fastmix.SoftCrop(classes, _sigma(options), _k(options, 2), fill=options.fill, prob=options.prob)


def _soft_resized_crop(options: Options, shape: Shape, classes: int) -> Any:
    return fastmix.SoftResizedCrop(classes, shape[1:], _sigma(options), k=_k(options, 2), fill=options.fill,
                                   prob=options.prob)


def _soft_noise(options: Options, shape: Shape, classes: int) -> Any:
    return fastmix.SoftNoise(classes, _sigma(options), _k(options, 1), prob=options.prob)


SOFT_FLAGS = ("sigma", "sigma_decay", "weighting", "k", "prob")
ISDA_FLAGS = ("isda_kind", "isda_schedule", "strength", "length")

METHODS: dict[str, Method] = {
    "none": Method(lambda o, _: None, (), "no mixing"),
    "mixup": Method(lambda o, _: fastmix.Mixup(_alpha(o, 1.0), prob=o.prob), ("alpha", "prob"),
                    "weighted sum of two images"),
    "cutmix": Method(lambda o, _: fastmix.CutMix(_alpha(o, 1.0), prob=o.prob), ("alpha", "prob"),
                     "a box of another image"),
    "dmixup": Method(lambda o, _: fastmix.DMixup(_k(o, 3), _alpha(o, 1 / _k(o, 3)), prob=o.prob),
                     ("k", "alpha", "prob"), "weighted sum of k images (alpha 1/k)"),
    "dcutmix": Method(lambda o, _: fastmix.DCutMix(_k(o, 3), _alpha(o, 1 / _k(o, 3)), prob=o.prob),
                      ("k", "alpha", "prob"), "nested boxes of k images (alpha 1/k)"),
    "saliency-dcutmix": Method(lambda o, _: fastmix.SaliencyDCutMix(_k(o, 3), _alpha(o, 1 / _k(o, 3)), prob=o.prob),
                               ("k", "alpha", "prob"), "dcutmix's boxes, centred on the saliency's peak"),
    "manifold-mixup": Method(lambda o, _: fastmix.ManifoldMixup(_alpha(o, 1.0), o.layers or "auto", prob=o.prob),
                             ("alpha", "layers", "prob"), "mixup of what one layer of the model returns"),
    "rmix": Method(lambda o, _: fastmix.RMix(_alpha(o, 1.0), o.patches, o.levels, prob=o.prob),
                   ("alpha", "patches", "levels", "saliency", "prob"), "patches by saliency"),
    "rlmix": Method(lambda o, _: fastmix.RLMix(_alpha(o, 1.0), o.grid, o.levels, prob=o.prob),
                    ("alpha", "grid", "levels", "discount", "prob"),
                    "patches by saliency, how many is learnt by PPO (extra rl)", policy=True),
    "cutout": Method(_cutout, ("length", "prob"), "a square of zeros (half the side)"),
    "soft-crop": Method(_soft_crop, (*SOFT_FLAGS, "fill"), "windows moved, labels softened by what is still seen",
                        loss=_soft_target_kl, classes=True, crops=True),
    "soft-resized-crop": Method(_soft_resized_crop, (*SOFT_FLAGS, "fill"), "the same with windows that are resized",
                                loss=_soft_target_kl, classes=True, crops=True),
    "soft-noise": Method(_soft_noise, SOFT_FLAGS, "noise, labels softened by its strength", loss=_soft_target_kl,
                         classes=True),
    "label-smoothing": Method(lambda o, _: None, (), "no mixing, --label-smoothing 0.1",
                              loss=lambda o: _cross_entropy(o.label_smoothing or 0.1)),
    "focal": Method(lambda o, _: None, ("focal_gamma",), "no mixing, focal loss", loss=_focal),
    "isda": Method(_isda, ISDA_FLAGS, "features widened by their class's covariance", isda=True),
    "isda-semi": Method(_isda, (*ISDA_FLAGS, "labelled", "consistency"),
                        "isda on the labelled images, its consistency loss on all others", isda=True),
}
METHOD_FLAGS = ("alpha", "k", "layers", "patches", "saliency", "grid", "levels", "discount", "length", "prob",
                "isda_kind", "isda_schedule", "strength", "labelled", "consistency", "sigma", "sigma_decay",
                "weighting", "fill", "focal_gamma")


def check_flags(methods: list[str], given: set[str]) -> None:
    """UsageError for a method's flag that no chosen method reads."""
    for flag in METHOD_FLAGS:
        if flag in given and not any(flag in METHODS[name].flags for name in methods):
            readers = ", ".join(name for name, method in METHODS.items() if flag in method.flags)
            raise UsageError(f"--{flag.replace('_', '-')} means nothing to {', '.join(methods)}; it is for {readers}")
    if "label_smoothing" in given and not any(METHODS[name].smooths for name in methods):
        raise UsageError(f"--label-smoothing means nothing to {', '.join(methods)}, whose loss is another than "
                         "cross-entropy")


def needs_saliency(options: Options, shape: Shape = (3, 32, 32)) -> bool:
    """Whether the method of these options looks at an input gradient, which takes labels."""
    mixer = _make(options, shape, 10)
    return mixer is not None and mixer.needs_saliency


def _make(options: Options, shape: Shape, classes: int) -> Any:
    method = METHODS[options.method]
    return method.build(options, shape, classes) if method.classes else method.build(options, shape)


def loss(options: Options) -> Loss:
    """The loss of options.method."""
    return (METHODS[options.method].loss or cross_entropy)(options)


def begin_epoch(mixer: Any, options: Options, epoch: int) -> None:
    """Sets what depends on the epoch, counted from 1, and on nothing else, so that a resumed run needs no state of it.

    The sigma of a soft augmentation: the whole until the last ``--sigma-decay`` epochs. Only a number on the device
    changes, no mixer is built anew.
    """
    if isinstance(mixer, SoftAugmentation):
        mixer.sigma = _sigma(options) / (DECAY if epoch > options.epochs - options.sigma_decay else 1)


def build(options: Options, shape: Shape, device: torch.device, classes: int) -> Any:
    """The mixer of options.method, tried on two blank images so that a wrong value is found before training."""
    try:
        mixer = _make(options, shape, classes)
        if mixer is not None:
            mixer = mixer.to(device)
            blank = torch.zeros(2, *shape, device=device)
            mixer(blank, torch.zeros(2, dtype=torch.int64, device=device), blank if mixer.needs_saliency else None)
    except (ValueError, TypeError) as error:
        hint = ""
        if METHODS[options.method].policy and "divisible" in str(error):
            hint = f"; choose another --grid than {options.grid}"
        raise UsageError(f"method {options.method}: {error}{hint}") from None
    return mixer


def check_layers(mixer: Any, model: nn.Module) -> None:
    """UsageError for a layer of --layers that the model does not have."""
    if isinstance(mixer, fastmix.ManifoldMixup):
        try:
            mixer.names(model)
        except ValueError as error:
            raise UsageError(f"--layers: {error}") from None
