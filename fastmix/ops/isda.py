"""Implicit semantic data augmentation: logits whose loss bounds that of infinitely many augmented features.

``out[n, j] = z[n, j] + strength/2 * v^T Sigma_y v`` with ``v = w_j - w_y``: the quadratic form depends on the sample
only through its label, so it is a table T over (present class c, j). Backward: with ``e_cj = strength * sum of the
incoming gradient over the samples of class c``, ``dW_j += e_cj Sigma_c (w_j - w_c)`` and ``dW_c -=`` their sum over j.
Source: ISDA Eq. 7, Eq. 15. They are printed without lambda (strength), which their proofs' variance has.
"""

# flops, U present classes: full 2 U J A^2 forward (half of it, Sigma is symmetric) and 2 U J A^2 backward; with the
# products (U, J, A) kept 2 U J A^2 forward and 4 U J A backward;
# diag 3 U J A and 4 U J A; shared and identity as diag, shared with 2 J A^2 more each way
# bytes: U*A*A * element size read each way (diag: U*A), N*J read + written, J*A

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..reference import functional as reference
from ..reference._common import is_channels_last
from ..targets import IGNORED
from . import checks as check
from . import memory
from .covariance import KINDS, NAMES, kind_of
from .dispatch import must_check_values, select
from .enums import Reduction, codes
from .operator import Operator

Strength = Tensor | float


def _fake(logits: Tensor, weight: Tensor, cov: Tensor, labels: Tensor, strength: Tensor | None, scale: float,
          ignore_index: int, kind: int) -> Tensor:
    torch._check(logits.ndim == labels.ndim + 1 and logits.shape[1] == weight.shape[0])
    return logits.new_empty(logits.shape)


def _fake_kept(logits: Tensor, weight: Tensor, cov: Tensor, labels: Tensor, strength: Tensor | None, scale: float,
               ignore_index: int, kind: int) -> tuple[Tensor, Tensor]:
    out = _fake(logits, weight, cov, labels, strength, scale, ignore_index, kind)
    return out, weight.new_empty((slots_of(labels, weight), *weight.shape))


def _fake_kept_backward(grad: Tensor, product: Tensor, labels: Tensor, strength: Tensor | None, scale: float,
                        ignore_index: int) -> Tensor:
    return product.new_empty(product.shape[1:])


def slots_of(labels: Tensor, weight: Tensor) -> int:
    """How many classes labels can hold at most."""
    return min(labels.numel(), weight.shape[0])


def _fake_backward(grad: Tensor, weight: Tensor, cov: Tensor, labels: Tensor, strength: Tensor | None, scale: float,
                   ignore_index: int, kind: int) -> Tensor:
    return weight.new_empty(weight.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, weight, cov, labels, strength, *ctx.options = inputs
    ctx.save_for_backward(weight, cov, labels, strength)


def _setup_kept(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, weight, cov, labels, strength, *ctx.options = inputs
    ctx.save_for_backward(weight, cov, labels, strength, output[1])


def _backward(ctx: Any, g: Tensor, *_: Any) -> tuple[Any, ...]:
    weight, cov, labels, strength, *kept = ctx.saved_tensors
    scale, ignore_index, kind = ctx.options
    _, need_weight, need_cov = ctx.needs_input_grad[:3]
    d_weight = d_cov = None
    if torch.is_grad_enabled() and (need_weight or need_cov):
        # create_graph: the formula itself. The logits enter linearly, so any will do.
        out = reference.isda_logits(torch.zeros_like(g), weight, cov, labels, _value(strength, scale), NAMES[kind],
                                    ignore_index)
        wanted = [t for t, need in ((weight, need_weight), (cov, need_cov)) if need]
        found = list(torch.autograd.grad(out, wanted, g, create_graph=True, allow_unused=True))
        d_weight = found.pop(0) if need_weight else None
        d_cov = found.pop(0) if need_cov else None
    else:
        if need_weight and kept:
            d_weight = _isda_logits_kept_backward(ctx.backend, g, kept[0], labels, strength, scale, ignore_index)
        elif need_weight:
            d_weight = _isda_logits_backward(ctx.backend, g, weight, cov, labels, strength, *ctx.options)
        if need_cov:
            d_cov = reference.isda_covariance_gradient(g, weight, cov, labels, _value(strength, scale), NAMES[kind],
                                                       ignore_index)
    return g, d_weight, d_cov, *[None] * 5


def _value(strength: Tensor | None, scale: float) -> Strength:
    return scale if strength is None else strength * scale


_isda_logits = Operator("isda_logits", _fake, setup=_setup, backward=_backward, differentiable=3)
_isda_logits_backward = Operator("isda_logits_backward", _fake_backward)
_isda_logits_kept = Operator("isda_logits_kept", _fake_kept, setup=_setup_kept, backward=_backward, differentiable=3,
                             data=(1,))
_isda_logits_kept_backward = Operator("isda_logits_kept_backward", _fake_kept_backward)

# Products V Sigma (present classes, J, A) are kept for the gradient of the weight where they are at most this part of
# the covariances, which the caller keeps anyway.
KEPT = 1 / 4


def keeps_products(backend: str, weight: Tensor, labels: Tensor, kind: str) -> bool:
    """Whether the forward pass keeps what makes backward elementwise: full covariances on Triton, of a weight that
    wants a gradient, and not too much of it."""
    if backend != "triton" or kind != "full" or not (torch.is_grad_enabled() and weight.requires_grad):
        return False
    return slots_of(labels, weight) <= KEPT * weight.shape[1]


# ---------------------------------------------------------------- consistency

REDUCTIONS = codes(Reduction)


def _fake_consistency(logits: Tensor, weight: Tensor, cov: Tensor, strength: Tensor | None, row_grad: Tensor | None,
                      scale: float, reduction: int, kind: int, need_grad: bool) -> tuple[Tensor, Tensor, Tensor]:
    loss = weight.new_empty((logits.shape[0],) if reduction == Reduction.NONE else ())
    if not need_grad:
        return loss, logits.new_empty((0,)), weight.new_empty((0,))
    return loss, logits.new_empty(logits.shape), weight.new_empty(weight.shape)


def _setup_consistency(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, weight, cov, strength, _, *ctx.options = inputs
    ctx.save_for_backward(logits, weight, cov, strength, *output[1:])
    ctx.set_materialize_grads(False)


def _backward_consistency(ctx: Any, g: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if g is None:
        return (None,) * 9
    logits, weight, cov, strength, d_logits, d_weight = ctx.saved_tensors
    scale, reduction, kind, need_grad = ctx.options
    needs = ctx.needs_input_grad[:3]
    d_cov = None
    if torch.is_grad_enabled() or needs[2]:
        inputs = (logits, weight, cov)
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            used = inputs if again else tuple(t.detach().requires_grad_(need)
                                              for t, need in zip(inputs, needs, strict=True))
            loss = reference.isda_consistency(*used, _value(strength, scale), NAMES[kind],
                                              tuple(REDUCTIONS)[reduction])
            found = iter(torch.autograd.grad(loss, [t for t, need in zip(used, needs, strict=True) if need], g,
                                             create_graph=again, allow_unused=True))
        d_logits, d_weight, d_cov = (next(found) if need else None for need in needs)
    elif not need_grad:
        rows = logits.shape[0]
        row_grad = (g / max(rows, 1) if reduction == Reduction.MEAN else g).expand(rows)
        _, d_logits, d_weight = _isda_consistency(ctx.backend, logits, weight, cov, strength, row_grad.contiguous(),
                                                  scale, REDUCTIONS["none"], kind, True)
    else:
        d_logits, d_weight = (d_logits.to(g.dtype) * g).to(d_logits.dtype), d_weight * g
    return d_logits, d_weight, d_cov, *[None] * 6


_isda_consistency = Operator("isda_consistency", _fake_consistency, setup=_setup_consistency,
                             backward=_backward_consistency, differentiable=3, data=(1, 2))


# ---------------------------------------------------------------- public functions

def _check(op: str, logits: Tensor, weight: Tensor, cov: Tensor | None, strength: Strength,
           kind: str | None) -> tuple[Tensor, Tensor, Tensor | None, float, str]:
    """weight and cov in the type of the arithmetic, strength as (tensor, factor), the kind."""
    check.tensor(op, "logits", logits)
    check.dtype(op, "logits", logits, *check.FLOATS)
    check.ndim(op, "weight", weight, 2)
    check.dtype(op, "weight", weight, *check.FLOATS)
    classes, width = weight.shape
    if logits.ndim < 2 or logits.shape[1] != classes:
        raise ValueError(f"{op}: logits has shape {tuple(logits.shape)}, want (N, {classes}): weight holds {classes} "
                         "classes")
    if classes < 1:
        raise ValueError(f"{op}: weight has shape {tuple(weight.shape)}, want at least one class")
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    if cov is None:
        if kind is not None:
            check.choice(op, "kind", kind, NAMES)
        if kind not in (None, "identity"):
            raise ValueError(f"{op}: cov is None, want a covariance for kind {kind!r}")
        cov = weight.new_empty((0,), dtype=dtype)
    kind = kind_of(op, cov, classes, width, kind)
    check.dtype(op, "cov", cov, torch.float32, torch.float64)
    factor = 1.0
    tensor = None
    if torch.compiler.is_compiling() and isinstance(strength, (int, float)):
        # As an argument of the operator every value would be compiled anew.
        strength = torch.ones((), dtype=torch.float64, device=logits.device) * strength
    if isinstance(strength, Tensor):
        check.shape(op, "strength", strength, (), "0-d, or a float")
        check.dtype(op, "strength", strength, torch.float32, torch.float64)
        check.no_grad_needed(op, "strength", strength)
        tensor = strength
    else:
        factor = _number(op, strength)
    check.same_device(op, logits=logits, weight=weight, cov=cov, strength=tensor)
    return weight.to(dtype), cov.to(dtype), tensor, factor, kind


def _number(op: str, strength: object) -> float:
    return check.number(op, "strength", strength, "a float or a 0-d tensor")


def isda_logits(logits: Tensor, weight: Tensor, cov: Tensor | None, labels: Tensor, strength: Strength, *,
                ignore_index: int = -100, kind: str | None = None) -> Tensor:
    """Logits whose cross-entropy bounds the expected loss over features drawn from N(a, strength * Sigma_y).

    Args:
        logits: (N, J), or pixels (N, J, ...); any float dtype and strides.
        weight: (J, A), of the classifier that gave the logits (a 1x1 convolution's, flattened).
        cov: symmetric covariances: (J, A, A) full, (J, A) diagonal, (A, A) shared, None or (0,) identity;
            float32 or float64, the kind that `covariance_update_` keeps. Sums are in float32 (float64 for float64
            logits).
        labels: (N,), or (N, ...) like the pixels; int64. The column of the label is returned as it is, bit for bit.
        strength: lambda, a float or a 0-d tensor on the logits' device (a CUDA graph then reads it anew).
        ignore_index: rows with this label are returned as they are.
        kind: needed only where J = A makes diag and shared look alike.
    Returns: like logits (contiguous, or channels_last where they are). Gradients flow to logits and to weight,
        through both w_j and w_y, and to cov if it requires one; any order. Memory beyond that: a table of
        (present classes, J) and a few (J, A). On a GPU, full covariances: (w_j - w_c) Sigma_c of the batch's classes
        as well, min(N, J) J A numbers, until backward, where that is at most a quarter of cov; backward then takes
        none of the products again.
    Raises: ValueError for shapes and devices, TypeError for dtypes, IndexError for a label outside [0, J) (CPU; on a
        GPU the row is NaN).
    Source: ISDA Eq. 7, with the lambda that Eq. 4 has and its print leaves out.
    """
    op = "isda_logits"
    ignore_index = check.integer(op, "ignore_index", ignore_index)
    weight, cov, tensor, factor, kind = _check(op, logits, weight, cov, strength, kind)
    check.shape(op, "labels", labels, (logits.shape[0], *logits.shape[2:]), "one a row or pixel of logits")
    check.dtype(op, "labels", labels, torch.int64)
    check.same_device(op, logits=logits, labels=labels)
    backend = select("isda", logits, kind)
    if must_check_values(backend, logits):
        flat = labels.reshape(-1)
        check.rows_in_range(op, "labels", torch.where(flat == ignore_index, 0, flat), 0, weight.shape[0])
    shape = logits.shape
    channels_last = is_channels_last(logits)
    if channels_last:  # pixels are rows
        flat_logits, flat_labels = logits.permute(0, 2, 3, 1).flatten(0, 2), labels.reshape(-1)
    elif logits.ndim > 2:
        flat_logits, flat_labels = logits.flatten(2), labels.flatten(1)
    else:
        flat_logits, flat_labels = logits, labels
    if backend == "reference":
        out = reference.isda_logits(flat_logits, weight, cov, flat_labels, _value(tensor, factor), kind, ignore_index)
    elif keeps_products(backend, weight, flat_labels, kind):
        out, _ = _isda_logits_kept(backend, flat_logits, weight, cov, flat_labels, tensor, factor, ignore_index,
                                   KINDS[kind])
    else:
        out = _isda_logits(backend, flat_logits, weight, cov, flat_labels, tensor, factor, ignore_index, KINDS[kind])
    if channels_last:
        return out.view(shape[0], shape[2], shape[3], shape[1]).permute(0, 3, 1, 2)
    return out.view(shape)


def isda_consistency(logits: Tensor, weight: Tensor, cov: Tensor | None, strength: Strength, *,
                     reduction: str = "mean", kind: str | None = None) -> Tensor:
    """The loss of unlabelled samples: bounds the expected cross-entropy of prediction and augmented prediction.

    ``L_n = sum_k p_nk [lse_j(z_nj + strength/2 (w_j - w_k)^T Sigma_c (w_j - w_k)) - z_nk]`` with the pseudo label
    c = argmax z_n (the first on ties) and p = softmax(z) a constant.

    Args:
        logits: (N, J) of the unlabelled samples, any float dtype.
        weight: (J, A), of the classifier that gave the logits.
        cov: symmetric covariances of the labelled samples: (J, A, A) full, (J, A) diagonal, (A, A) shared, None or (0,)
            identity; float32 or float64.
        strength: lambda, a float or a 0-d tensor on the logits' device.
        kind: needed only where J = A makes diag and shared look alike.
        reduction: "mean", "sum" or "none" (N,).
    Returns: float32 (float64 for float64 logits). Gradients flow to logits, weight, and to cov if it requires one.
        Memory: one J x J table a thread, two with a gradient.
    Raises: ValueError for shapes, devices and options, TypeError for dtypes.
    Source: ISDA Eq. 12-15 (lambda as in `isda_logits`).
    """
    op = "isda_consistency"
    check.ndim(op, "logits", logits, 2)
    weight, cov, tensor, factor, kind = _check(op, logits, weight, cov, strength, kind)
    check.choice(op, "reduction", reduction, tuple(REDUCTIONS))
    backend = select("isda", logits, "consistency")
    if backend == "reference":
        return reference.isda_consistency(logits, weight, cov, _value(tensor, factor), kind, reduction)
    # float16 logits: as in soft_target, backward computes the gradient where it knows the loss scale.
    need_grad = reduction != "none" and logits.dtype != torch.float16 and torch.is_grad_enabled() and (
        logits.requires_grad or weight.requires_grad)
    return _isda_consistency(backend, logits, weight, cov, tensor, None, factor, REDUCTIONS[reduction], KINDS[kind],
                             need_grad)[0]


def explicit_sda(features: Tensor, weight: Tensor, bias: Tensor | None, cov: Tensor | None, labels: Tensor,
                 strength: Strength, samples: int, generator: torch.Generator | None = None, *,
                 ignore_index: int = IGNORED, kind: str | None = None) -> Tensor:
    """The loss that `isda_logits` bounds, by sampling: the mean cross-entropy of augmented features.

    For checking the bound and for experiments, not for training: it takes the root of every covariance (a sync on
    CUDA) and draws N * samples * A numbers. Not under ``torch.func.vmap``: it drops the ignored rows.

    Args:
        features: (N, A). weight: (J, A). bias: (J,) or None. labels: (N,) int64.
        cov: symmetric covariances: (J, A, A) full, (J, A) diagonal, (A, A) shared, None or (0,) identity.
        strength: lambda, a float or a 0-d tensor, >= 0. samples: copies of every row.
        kind: needed only where J = A makes diag and shared look alike.
        generator: of the draws. ignore_index: rows with this label are left out.
    Returns: 0-d float32 (float64 for float64 features), differentiable in features, weight and bias.
    Raises: ValueError for shapes and devices, and for more samples than half of the memory has room for; TypeError for
        dtypes, IndexError for labels outside [0, J).
    Source: ISDA Eq. 4-5; against the bound: Sec. 6.5.2 and 6.5.3, Fig. 9 and 10.
    """
    op = "explicit_sda"
    check.ndim(op, "features", features, 2)
    check.dtype(op, "features", features, *check.FLOATS)
    check.ndim(op, "weight", weight, 2)
    check.dtype(op, "weight", weight, *check.FLOATS)
    check.shape(op, "weight", weight, (weight.shape[0], features.shape[1]), "(J, A) with A of features")
    if bias is not None:
        check.shape(op, "bias", bias, weight.shape[:1], "(J,) like weight")
        check.dtype(op, "bias", bias, *check.FLOATS)
    check.shape(op, "labels", labels, features.shape[:1], "(N,) like features")
    check.dtype(op, "labels", labels, torch.int64)
    check.at_least(op, "samples", samples, 1)
    check.generator(op, "generator", generator)
    ignore_index = check.integer(op, "ignore_index", ignore_index)
    if isinstance(strength, Tensor):
        check.shape(op, "strength", strength, (), "0-d, or a float")
    elif not _number(op, strength) >= 0:
        raise ValueError(f"{op}: strength is {strength}, want at least 0: the features vary by its root")
    if cov is None:
        cov = features.new_empty((0,))
    kind = kind_of(op, cov, *weight.shape, kind)
    check.same_device(op, features=features, weight=weight, bias=bias, cov=cov, labels=labels)
    counts = labels != ignore_index
    features, labels = features[counts], labels[counts]
    check.rows_in_range(op, "labels", labels, 0, weight.shape[0])
    each = max(1, len(features)) * (features.shape[1] + weight.shape[0]) * max(4, features.element_size())
    memory.check(op, "samples", samples, each, "random numbers and logits", features.device)
    try:
        return reference.explicit_sda(features, weight, bias, cov, labels, strength, samples, kind, generator)
    except torch.linalg.LinAlgError:
        raise ValueError(f"{op}: cov has a matrix without a root, want finite symmetric ones") from None
