"""Class-conditional mean and covariance of features, updated in place batch by batch: ISDA Eq. 1-3.

With n rows seen and m new ones of a class, ``d = mean - batch mean`` and r the new rows minus their mean:
``cov = n/(n+m) cov + (r^T r + n m/(n+m) d d^T) / (n+m)``. So an update is one rank-(m+1) product accumulated into
the matrices of the present classes; the others are not touched.
"""

# bytes: U*A*A*(1 read + 1 write) * element size, U present classes (diag: A instead of A*A) + N*A read; flops: 2 N A^2

from __future__ import annotations

import torch
from torch import Tensor

from ..reference import functional as reference
from ..targets import IGNORED
from . import checks as check
from .dispatch import must_check_values, select
from .enums import CovarianceKind, codes
from .operator import Operator

KINDS = codes(CovarianceKind)
NAMES = tuple(KINDS)


def cov_shape(kind: str, classes: int, features: int) -> tuple[int, ...]:
    """The shape of the covariance state: nothing is estimated for the identity."""
    return {"full": (classes, features, features), "diag": (classes, features), "shared": (features, features),
            "identity": (0,)}[kind]


def kind_of(op: str, cov: Tensor, classes: int, features: int, kind: str | None) -> str:
    """kind, checked against cov's shape; None: read from the shape. ValueError where they do not fit."""
    check.tensor(op, "cov", cov)
    given = tuple(cov.shape)
    if kind is not None:
        check.choice(op, "kind", kind, NAMES)
        want = cov_shape(kind, classes, features)
        if given != want:
            raise ValueError(f"{op}: cov has shape {given}, want {want} for kind {kind!r}")
        return kind
    fitting = [name for name in NAMES if given == cov_shape(name, classes, features)]
    if not fitting:
        wanted = ", ".join(f"{cov_shape(name, classes, features)} ({name})" for name in NAMES)
        raise ValueError(f"{op}: cov has shape {given}, want one of {wanted} for J = {classes} classes and "
                         f"A = {features} features")
    if len(fitting) > 1:
        raise ValueError(f"{op}: cov has shape {given}, which is diag as well as shared where J = A: name the kind")
    return fitting[0]


def _fake(count: Tensor, mean: Tensor, cov: Tensor, features: Tensor, labels: Tensor, ignore_index: int | None,
          kind: int) -> Tensor:
    torch._check(features.ndim == 3 and labels.ndim == 2 and features.shape[0] == labels.shape[0])
    return count.new_empty(())


_covariance_update_ = Operator("covariance_update_", _fake)


def covariance_update_(count: Tensor, mean: Tensor, cov: Tensor, features: Tensor, labels: Tensor,
                       ignore_index: int | None = IGNORED, *, kind: str | None = None) -> Tensor:
    """Enter a batch into the running statistics of its classes, in place.

    Args:
        count: (J,) int64, rows seen of every class; changed. It, mean and cov are contiguous.
        mean: (J, A) float32 or float64; changed.
        cov: population covariance (divided by the count) in mean's dtype; changed. (J, A, A) full, (J, A) diagonal,
            (A, A) one matrix around the mean of all rows, (0,) none (identity).
        features: (N, A), or pixels (N, A, ...); any float dtype and strides. No gradient flows.
        labels: (N,), or (N, ...) like the pixels; int64.
        ignore_index: rows with this label count nothing; None: every label is a class.
        kind: "full", "diag", "shared" or "identity"; needed only where J = A makes diag and shared look alike.
    Returns: 0-d int64, the rows left out because a feature is NaN or infinite, in the dtype of mean.
        Classes without a row stay as they are, bit for bit.
    Raises: ValueError for shapes and devices, TypeError for dtypes, IndexError for a label outside [0, J) (CPU,
        nothing is changed then; on a GPU the row is left out).
    Source: ISDA Eq. 1-3. The statistics do not forget; the current batch is included.
    """
    op = "covariance_update_"
    if ignore_index is not None:
        ignore_index = check.integer(op, "ignore_index", ignore_index)
    check.ndim(op, "mean", mean, 2)
    check.dtype(op, "mean", mean, torch.float32, torch.float64)
    classes, width = mean.shape
    check.shape(op, "count", count, (classes,), "(J,) like mean")
    check.dtype(op, "count", count, torch.int64)
    check.tensor(op, "features", features)
    check.dtype(op, "features", features, *check.FLOATS)
    if features.ndim < 2 or features.shape[1] != width:
        raise ValueError(f"{op}: features has shape {tuple(features.shape)}, want (N, {width}) or (N, {width}, ...): "
                         f"mean holds {width} features")
    pixels = (features.shape[0], *features.shape[2:])
    check.shape(op, "labels", labels, pixels, "one a row of features")
    check.dtype(op, "labels", labels, torch.int64)
    kind = kind_of(op, cov, classes, width, kind)
    check.dtype(op, "cov", cov, mean.dtype)
    for name, state in (("mean", mean), ("cov", cov)):
        check.no_grad_needed(op, name, state)
    for name, state in (("count", count), ("mean", mean), ("cov", cov)):
        check.contiguous(op, name, state)
    check.same_device(op, features=features, labels=labels, count=count, mean=mean, cov=cov)
    backend = select("covariance", features)
    if must_check_values(backend, features):
        flat = labels.reshape(-1)
        kept = flat if ignore_index is None else torch.where(flat == ignore_index, 0, flat)
        check.rows_in_range(op, "labels", kept, 0, classes)
    features = features.detach()
    if backend == "reference":
        with torch.no_grad():
            return reference.covariance_update_(count, mean, cov, features, labels, kind, ignore_index)
    skipped = _covariance_update_(backend, count, mean, cov, features.flatten(2) if features.ndim > 2
                                  else features.unsqueeze(2), labels.flatten(1) if labels.ndim > 1
                                  else labels.unsqueeze(1), ignore_index,
                                  KINDS[kind])
    if not torch.compiler.is_compiling():
        # The short way around the dispatcher skips the version count by which autograd finds a changed operand.
        torch.autograd.graph.increment_version((count, mean, cov))
    return skipped
