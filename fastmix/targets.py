"""Soft labels without the (N, J) matrix: a few (class, weight) pairs and one common base value per row."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .ops import checks as check


class SoftTarget(NamedTuple):
    """A batch of soft labels: ``t[n, j] = base[n] + sum_k weight[n, k] * [index[n, k] == j]``.

    Fields:
        index: (N, K) int64 class indices; a class may appear twice in a row, its weights then add.
        weight: (N, K) float32, whatever the dtype of images and logits.
        base: (N,) float32 added to every class, or None for 0.

    A NamedTuple, hence a pytree: it passes through ``torch.compile``, DataLoader workers and ``pickle``.
    The (N, J) matrix is built by :meth:`dense` only.
    Source: K-image mixing, the label l_c of Eq. 6; refined data augmentation Eq. 1-2; base: Soft Augmentation Eq. 4.
    """

    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    weight: Tensor
    base: Tensor | None = None

    @classmethod
    def from_labels(cls, y: Tensor) -> SoftTarget:
        """Hard labels y (N,) int64 as a target of weight one."""
        check.ndim("SoftTarget.from_labels", "y", y, 1)
        check.dtype("SoftTarget.from_labels", "y", y, torch.int64)
        return cls(y.unsqueeze(1), torch.ones(y.shape[0], 1, dtype=torch.float32, device=y.device))

    @classmethod
    def from_confidence(cls, y: Tensor, p: Tensor, num_classes: int) -> SoftTarget:
        """Class y keeps p, every other class (1 - p) / (J - 1).

        Args:
            y: (N,) int64 labels.
            p: (N,) float confidences in [0, 1].
            num_classes: J; at J = 1 there is no other class and the target is p itself.
        Source: Soft Augmentation Eq. 4, written out before Eq. 15.
        """
        op = "SoftTarget.from_confidence"
        check.ndim(op, "y", y, 1)
        check.dtype(op, "y", y, torch.int64)
        check.shape(op, "p", p, (y.shape[0],), "(N,) like y")
        check.same_device(op, y=y, p=p)
        check.at_least(op, "num_classes", num_classes, 1)
        p = p.to(torch.float32)
        if num_classes == 1:
            return cls(y.unsqueeze(1), p.unsqueeze(1))
        base = (1 - p) / (num_classes - 1)
        return cls(y.unsqueeze(1), (p - base).unsqueeze(1), base)

    def dense(self, num_classes: int) -> Tensor:
        """The (N, J) float32 matrix. Indices outside [0, J), an ignore_index for one, match no class."""
        index, weight, base = self
        valid = (index >= 0) & (index < num_classes)
        out = torch.zeros(index.shape[0], num_classes, dtype=torch.float32, device=index.device)
        if base is not None:
            out = out + base.unsqueeze(1)
        weight = torch.where(valid, weight.to(torch.float32), 0.0)
        # One class more than asked for takes the weights that match none, so that J = 0 and 1 need no branch.
        out = torch.nn.functional.pad(out, (0, 1))
        return out.scatter_add(1, torch.where(valid, index, num_classes), weight)[:, :num_classes]

    def confidence(self) -> Tensor:
        """``weight.sum(1) + base``, (N,) float32: 1 for labels and their mixtures, p where `from_confidence` made it.

        Source: Soft Augmentation Eq. 4 and 7, p.
        """
        named = self.weight.sum(1)
        return named if self.base is None else named + self.base

    def hard(self) -> Tensor:
        """The class of largest total weight, (N,) int64; the smallest class on ties, as ``dense(J).argmax(1)``."""
        index, weight, _ = self
        same = index.unsqueeze(2) == index.unsqueeze(1)
        total = (same * weight.to(torch.float32).unsqueeze(1)).sum(2)
        # A class that is not named has total 0, which wins where every named one is negative (p below chance).
        size = index.shape[1]
        candidates = torch.arange(size + 1, device=index.device)
        named = (index.unsqueeze(1) == candidates.view(1, -1, 1)).any(2)
        unnamed = named.to(torch.int8).argmin(1, keepdim=True)
        classes = torch.cat([index, unnamed], 1)
        total = torch.cat([total, torch.zeros_like(total[:, :1])], 1)
        best = total.max(1, keepdim=True).values
        big = torch.iinfo(torch.int64).max
        return torch.where(total == best, classes, big).amin(1)

    def smooth(self, eps: float | Tensor, num_classes: int) -> SoftTarget:
        """Label smoothing: ``(1 - eps) * t + eps / J``.

        Source: Szegedy et al. 2016. Soft Augmentation Eq. 3 takes alpha from the label's class and gives it to the
        others alone: for labels the same at ``alpha = eps (J - 1) / J``, or ``from_confidence(y, 1 - alpha, J)``.
        """
        base = 0.0 if self.base is None else self.base * (1 - eps)
        filled = torch.zeros(self.index.shape[0], dtype=torch.float32, device=self.index.device)
        return SoftTarget(self.index, self.weight * (1 - eps), filled + base + eps / num_classes)

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> SoftTarget:
        """The same target on another device."""
        index, weight, base = self
        return SoftTarget(index.to(device, non_blocking=non_blocking), weight.to(device, non_blocking=non_blocking),
                          None if base is None else base.to(device, non_blocking=non_blocking))
