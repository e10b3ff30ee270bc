"""Refined data augmentation: the last epochs on the data as they are, and the risks on both sides of the switch.

    refinement = fastmix.Refinement(epochs=450, refine_epochs=50)
    for epoch in range(1, 451):
        refining = refinement.begin(epoch, mixer, optimizer)
        for x, y in loader:
            mixed, target = mixer(x, y)
            loss = soft_cross_entropy(model(mixed), refinement.smooth(target, 0.1, num_classes))
            ...
            if not refining:
                scheduler.step()
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .mixers import Mixer
from .mixers.labels import Labels, Target, as_target
from .ops import checks as check
from .ops.soft_target import soft_cross_entropy
from .targets import SoftTarget, check_target


class Refinement(nn.Module):
    """Trains the last epochs without mixing: hard labels, no label smoothing, a small constant learning rate.

    Moderate augmentation, random crops and flips, is kept, as in the paper: the loader does not know of the refinement.
    Nothing is rebuilt: ``mixer.enabled`` and the weight of the smoothing are flags on the device, so a compiled step is
    not compiled again and a captured CUDA graph stays valid. Under these `begin` writes the learning rate into
    the optimizer's own tensor where it is one (``SGD(..., lr=torch.tensor(0.1))``); a float there is part of a graph.
    The phase follows from the epoch alone, so there is no state to save: a resumed run calls `begin` as the first did.

    Args:
        epochs: of the whole training, N + M in Algorithm 1.
        refine_epochs: M, the last of them; 0 <= M < epochs.
        lr: learning rate of the refinement. None keeps what the optimizer has when it begins, which is the paper's
            choice after a schedule in steps: the rate of its last stage (1e-3 for PreActResNet-18 on CIFAR, 1e-4 on
            ImageNet). Schedules that end near 0 (cosine, one cycle) need a number: the paper takes a reasonably small
            value, the training command a hundredth of the largest.
    Attributes:
        refining: bool, whether the last `begin` was of an epoch of the refinement.
    Source: refined data augmentation Algorithm 1, section Refinement, Tables 1 and 3.
    """

    _augmenting: Tensor

    def __init__(self, epochs: int, refine_epochs: int, lr: float | None = None) -> None:
        super().__init__()
        check.at_least("Refinement", "epochs", epochs, 1)
        check.at_least("Refinement", "refine_epochs", refine_epochs, 0)
        if refine_epochs >= epochs:
            raise ValueError(f"Refinement: refine_epochs is {refine_epochs}, want less than epochs, {epochs}")
        if lr is not None:
            lr = check.positive("Refinement", "lr", lr)
        self.epochs, self.refine_epochs, self.lr = epochs, refine_epochs, lr
        self.refining = False
        with torch.inference_mode(False):  # written to by `begin`, wherever that is called
            self.register_buffer("_augmenting", torch.ones((), dtype=torch.bool), persistent=False)

    @property
    def first(self) -> int:
        """The first epoch of the refinement, counted from 1; epochs + 1 if there is none."""
        return self.epochs - self.refine_epochs + 1

    def begin(self, epoch: int, mixer: Mixer | None = None, optimizer: torch.optim.Optimizer | None = None) -> bool:
        """Enters an epoch, counted from 1: to be called before its first step.

        Args:
            mixer: a mixer or None; its ``enabled`` is set, True before the refinement.
            optimizer: in the refinement its groups get ``lr``, if that is not None. Step no scheduler then.
        Returns: ``refining``.
        """
        if not 1 <= check.integer("Refinement", "epoch", epoch) <= self.epochs:
            raise ValueError(f"Refinement: epoch is {epoch}, want 1 to {self.epochs}")
        if mixer is not None and not isinstance(mixer, Mixer):
            raise TypeError(f"Refinement: mixer is {check.shown(mixer)}, want a fastmix mixer or None")
        if optimizer is not None and not isinstance(getattr(optimizer, "param_groups", None), list):
            raise TypeError(f"Refinement: optimizer is {check.shown(optimizer)}, want a torch optimizer or None")
        self.refining = epoch >= self.first
        self._augmenting.fill_(not self.refining)
        if mixer is not None:
            mixer.enabled = not self.refining
        if self.refining and optimizer is not None and self.lr is not None:
            for group in optimizer.param_groups:
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(self.lr)
                else:
                    group["lr"] = self.lr
        return self.refining

    def smooth(self, target: Labels, eps: float, num_classes: int) -> Target:
        """`SoftTarget.smooth`, without effect in the refinement. Call ``refinement.to(device)`` before compiling.

        Args: target: (N,) int64, a SoftTarget of N rows, or a dense (N, J) matrix, which stays dense.
        """
        op = "Refinement.smooth"
        if isinstance(target, Tensor):
            check.tensor(op, "target", target)
        if not isinstance(target, (Tensor, SoftTarget)) or (isinstance(target, Tensor) and target.ndim == 0):
            raise TypeError(f"{op}: target is {check.shown(target)}, want labels (N,), a SoftTarget or a dense matrix")
        if isinstance(target, SoftTarget):
            check_target(op, target, "target.")
        eps, num_classes = check.share(op, "eps", eps), check.at_least(op, "num_classes", num_classes, 1)
        target = as_target(op, target, len(target), "target")
        device = target.device if isinstance(target, Tensor) else target.index.device
        if self._augmenting.device != device:
            with torch.inference_mode(False):
                self._augmenting = self._augmenting.to(device)
        eps_now = torch.where(self._augmenting, eps, 0.0)
        if isinstance(target, Tensor):
            return (target * (1 - eps_now) + eps_now / num_classes).to(target.dtype)
        return target.smooth(eps_now, num_classes)

    def extra_repr(self) -> str:
        return f"epochs={self.epochs}, refine_epochs={self.refine_epochs}, lr={self.lr}"


class RiskGap(NamedTuple):
    """Mean cross-entropy of a model on clean data and on augmented data.

    Source: R and R_aug of refined data augmentation Table 2.
    """

    clean: float
    augmented: float

    @property
    def gap(self) -> float:
        return self.augmented - self.clean


@torch.no_grad()
def risk_gap(model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]], mixer: Mixer | None) -> RiskGap:
    """The empirical risk on clean and on augmented data: how far a mixer moves the training data from the real ones.

    The model is in eval mode meanwhile. Draws as the mixer does. One read of the device at the end.

    Args:
        model: on the device of the batches.
        loader: gives (x (N, C, H, W), y (N,) int64), once through. In random order: a mixer finds partners in a batch.
        mixer: any mixer, also ManifoldMixup and those that need saliency; None leaves the gap 0.
    Returns: RiskGap of floats, cross-entropy per sample in nats; NaN for an empty loader. A mixed label has
        an entropy of its own, below which the augmented risk cannot fall.
    Source: refined data augmentation Table 2; the gap is what Eq. 5 bounds by epsilon_2.
    """
    op = "risk_gap"
    if not isinstance(model, nn.Module):
        raise TypeError(f"{op}: model is {check.shown(model)}, want a module")
    if mixer is not None and not isinstance(mixer, Mixer):
        raise TypeError(f"{op}: mixer is {check.shown(mixer)}, want a fastmix mixer or None")
    if not isinstance(loader, Iterable):
        raise TypeError(f"{op}: loader is {check.shown(loader)}, want batches (x, y)")
    sums = torch.zeros(3, dtype=torch.float64)
    with evaluating(model):
        for batch in loader:
            if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not all(isinstance(t, Tensor) for t in batch):
                raise TypeError(f"{op}: loader gives {check.shown(batch)}, want batches (x, y) of tensors")
            x, y = batch
            sums = sums.to(x.device)
            clean = soft_cross_entropy(model(x), y, reduction="sum")
            augmented = clean if mixer is None else mixed_loss(model, x, y, mixer)
            sums += torch.stack([clean.double(), augmented.double(), clean.new_full((), len(y)).double()])
    clean, augmented, count = sums.tolist()
    return RiskGap(clean / count, augmented / count) if count else RiskGap(float("nan"), float("nan"))


def mixed_loss(model: nn.Module, x: Tensor, y: Tensor, mixer: Mixer) -> Tensor:
    """The summed cross-entropy (0-d) of the model on what a mixer makes of a batch."""
    with mixer.applied(model, x, y, in_eval=True) as (images, target):
        return soft_cross_entropy(model(images), target, reduction="sum")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode inside; afterwards every module as it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
