"""Implicit semantic data augmentation as modules: the running covariances, the loss, the schedule of its strength.

Source: ISDA Sec. 4 and 5. The operators under them are in `fastmix.functional`: `covariance_update_`, `isda_logits`,
`isda_consistency`, `explicit_sda`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .. import functional
from ..ops import checks as check
from ..ops import memory
from ..ops.covariance import NAMES, cov_shape
from ..targets import IGNORED
from .isda_ranks import update_over_ranks

SCHEDULES = ("linear", "constant")


class ISDACovariance(nn.Module):
    """Running mean and covariance of every class, in buffers that checkpoint and move with the model.

    Args:
        num_classes: J, >= 1.
        num_features: A, >= 1.
        kind: "full" (J, A, A); "diag" (J, A); "shared", one (A, A) around the mean of all features; "identity",
            nothing estimated.
        process_group: where torch.distributed is initialised, the ranks whose batches are one batch; None: all.
        dtype: of the buffers, float32 or float64, whatever the features are; ``.half()`` and the like leave it.
        device: of the buffers; None: torch's default.
    Attributes:
        count (J,) int64, mean (J, A), cov: as `functional.covariance_update_`. skipped: 0-d int64, rows left out so
        far because a feature was NaN or infinite.
        synchronise: bool, True; False leaves this rank's statistics its own.

    With ranks every update ends with what one process would hold after the whole batch, to rounding, and with the
    same bits on every rank. A rank's batch may be of any size, and empty. The bytes sent: `fastmix.losses.isda_ranks`.
    Inside DistributedDataParallel the buffers would be broadcast every step for nothing: pass
    ``broadcast_buffers=False``, or keep the loss outside of it.
    Source: ISDA Eq. 1-3; kinds: Table 8 (diag also for ImageNet, Sec. 6.1, and for pixels, Sec. 6.4).
    """

    count: Tensor
    mean: Tensor
    cov: Tensor
    skipped: Tensor

    def __init__(self, num_classes: int, num_features: int, kind: str = "full",
                 process_group: dist.ProcessGroup | None = None, *, dtype: torch.dtype = torch.float32,
                 device: torch.device | str | None = None) -> None:
        super().__init__()
        op = "ISDACovariance"
        check.at_least(op, "num_classes", num_classes, 1)
        check.at_least(op, "num_features", num_features, 1)
        check.choice(op, "kind", kind, NAMES)
        if not isinstance(dtype, torch.dtype) or dtype not in (torch.float32, torch.float64):
            raise TypeError(f"{op}: dtype is {check.shown(dtype)}, want torch.float32 or torch.float64")
        size = num_classes * (8 + num_features * dtype.itemsize) + math.prod(
            cov_shape(kind, num_classes, num_features)) * dtype.itemsize
        memory.check_size(op, "num_classes, num_features", f"({num_classes}, {num_features})", size, "statistics",
                          check.device(op, "device", device))
        self.num_classes, self.num_features, self.kind = num_classes, num_features, kind
        self.process_group = process_group
        self.synchronise = True
        self.register_buffer("count", torch.zeros(num_classes, dtype=torch.int64, device=device))
        self.register_buffer("mean", torch.zeros(num_classes, num_features, dtype=dtype, device=device))
        self.register_buffer("cov", torch.zeros(cov_shape(kind, num_classes, num_features), dtype=dtype,
                                                device=device))
        self.register_buffer("skipped", torch.zeros((), dtype=torch.int64, device=device))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ISDACovariance:
        def keep(t: Tensor) -> Tensor:
            moved = fn(t)
            half = moved.is_floating_point() and moved.dtype not in (torch.float32, torch.float64)
            return t.to(moved.device) if half else moved
        super()._apply(keep, recurse)  # type: ignore[no-untyped-call]
        return self

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor, ignore_index: int | None = IGNORED) -> None:
        """Enter features (N, A) or (N, A, ...) with labels (N,) or (N, ...). Errors as `covariance_update_`."""
        state = (self.count, self.mean, self.cov)
        ranks = self.synchronise and dist.is_available() and dist.is_initialized()
        if ranks and dist.get_world_size(self.process_group) > 1:
            skipped = update_over_ranks(*state, features, labels, ignore_index, self.kind, self.process_group)
        else:
            skipped = functional.covariance_update_(*state, features, labels, ignore_index, kind=self.kind)
        self.skipped.add_(skipped)

    forward = update

    if TYPE_CHECKING:  # torch types the call of a module as (...) -> Any
        def __call__(self, features: Tensor, labels: Tensor, ignore_index: int | None = IGNORED) -> None: ...

    def extra_repr(self) -> str:
        return f"num_classes={self.num_classes}, num_features={self.num_features}, kind={self.kind!r}"


class ISDALoss(nn.Module):
    """Cross-entropy of ISDA's augmented logits: ``loss, logits = criterion(features, fc, labels, strength)``.

    Args:
        num_features: A, >= 1.
        num_classes: J, >= 1.
        kind: of the covariances: "full" (J, A, A); "diag" (J, A); "shared", one (A, A) around the mean of all features;
            "identity", nothing estimated.
        label_smoothing: eps in [0, 1] of the cross-entropy.
        class_weight: (J,) float of the cross-entropy, as in torch; None: 1.
        ignore_index: labels that count nothing, in the loss and in the covariances.
        process_group: where torch.distributed is initialised, the ranks whose batches are one batch; None: all.
        dtype: of the covariances, float32 or float64, whatever the features are.
        device: of the covariances and class weights; None: torch's default.

    The mean is over the rows (pixels) that count, with class weights divided by their sum; without one the loss is
    0.
    Source: ISDA Eq. 7, in the order of Algorithm 1 (covariances first); pixels: Sec. 6.4.
    """

    class_weight: Tensor | None

    def __init__(self, num_features: int, num_classes: int, kind: str = "full", *, label_smoothing: float = 0.0,
                 class_weight: Tensor | None = None, ignore_index: int = IGNORED,
                 process_group: dist.ProcessGroup | None = None,
                 dtype: torch.dtype = torch.float32, device: torch.device | str | None = None) -> None:
        super().__init__()
        label_smoothing = check.share("ISDALoss", "label_smoothing", label_smoothing)
        ignore_index = check.integer("ISDALoss", "ignore_index", ignore_index)
        self.covariance = ISDACovariance(num_classes, num_features, kind, process_group, dtype=dtype, device=device)
        self.label_smoothing, self.ignore_index = label_smoothing, ignore_index
        if class_weight is not None:
            check.shape("ISDALoss", "class_weight", class_weight, (num_classes,), "(J,)")
            class_weight = class_weight.to(device=device)
        self.register_buffer("class_weight", class_weight, persistent=False)

    def forward(self, features: Tensor, fc: nn.Module, labels: Tensor, strength: Tensor | float, *,
                logits: Tensor | None = None, update: bool | None = None) -> tuple[Tensor, Tensor]:
        """The loss, and the logits as the classifier gave them.

        Args:
            features: (N, A), or (N, A, h, w) for a segmentation head.
            fc: the last layer, with a weight (J, A) or (J, A, 1, 1): nn.Linear, nn.Conv2d of kernel 1.
            labels: (N,) or (N, h, w) int64.
            strength: lambda of this step, a float or a 0-d tensor; see `isda_strength`.
            logits: ``fc(features)`` where the model has computed it already; None: it is computed here.
            update: whether to enter the features into the covariances first; None: while training.
        """
        weight = self._weight(fc)
        covariance = self.covariance
        check.tensor("ISDALoss", "features", features)
        if features.ndim < 2 or features.shape[1] != covariance.num_features:
            raise ValueError(f"ISDALoss: features has shape {tuple(features.shape)}, want (N, "
                             f"{covariance.num_features}) or (N, {covariance.num_features}, h, w)")
        if logits is None:
            logits = fc(features)
        if self.training if update is None else check.flag("ISDALoss", "update", update):
            covariance.update(features, labels, self.ignore_index)
        augmented = functional.isda_logits(logits, weight, covariance.cov, labels, strength,
                                           ignore_index=self.ignore_index, kind=covariance.kind)
        loss = functional.soft_cross_entropy(augmented, labels, class_weight=self.class_weight,
                                             label_smoothing=self.label_smoothing, ignore_index=self.ignore_index)
        return loss, logits

    if TYPE_CHECKING:  # torch types the call of a module as (...) -> Any
        def __call__(self, features: Tensor, fc: nn.Module, labels: Tensor, strength: Tensor | float, *,
                     logits: Tensor | None = None, update: bool | None = None) -> tuple[Tensor, Tensor]: ...

    def consistency(self, logits: Tensor, fc: nn.Module, strength: Tensor | float) -> Tensor:
        """The consistency loss of unlabelled samples, whose logits (N, J) the classifier gave, under the covariances as
        they are; 0-d. See `functional.isda_consistency`.

        Source: ISDA Eq. 15.
        """
        return functional.isda_consistency(logits, self._weight(fc), self.covariance.cov, strength,
                                           kind=self.covariance.kind)

    def _weight(self, fc: nn.Module) -> Tensor:
        """(J, A) of the classifier."""
        weight = getattr(fc, "weight", None)
        if not isinstance(weight, Tensor):
            raise TypeError(f"ISDALoss: fc is {type(fc).__name__} without a weight, want nn.Linear or nn.Conv2d")
        flat, covariance = weight.flatten(1), self.covariance
        if tuple(flat.shape) != (covariance.num_classes, covariance.num_features):
            raise ValueError(f"ISDALoss: fc.weight has shape {tuple(weight.shape)}, want "
                             f"({covariance.num_classes}, {covariance.num_features}) or with a 1x1 kernel")
        return flat


def isda_strength(strength0: float, step: int | Tensor, total: int, *, schedule: str = "linear") -> float | Tensor:
    """lambda at a step: ``strength0 * step / total`` ("linear"), or strength0 ("constant", of ISDA Table 8).

    step: counted from 0; an int, or a 0-d tensor (then the result is one, for a CUDA graph).
    Source: ISDA Sec. 4.1, after Eq. 4. Per iteration; the released classification code steps it once an epoch, so that
    its first epoch has strength 0.
    """
    op = "isda_strength"
    strength0 = check.number(op, "strength0", strength0)
    if isinstance(step, Tensor):
        check.shape(op, "step", step, (), "0-d, or a number")
    else:
        check.number(op, "step", step, "a number or a 0-d tensor")
    check.at_least(op, "total", total, 1)
    check.choice(op, "schedule", schedule, SCHEDULES)
    if schedule == "constant":
        return strength0 if not isinstance(step, Tensor) else torch.full_like(step, strength0, dtype=torch.float32)
    return strength0 * step / total
