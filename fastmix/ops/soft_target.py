"""Losses against soft targets in one read of the logits: cross-entropy, KL divergence, BCE.

With ``T = sum_j t_j``, ``m = max z`` and ``lse = log sum_j exp(z_j - m)`` a row's loss is
``T lse - base sum_j (z_j - m) - sum_k weight_k (z[index_k] - m)`` and its gradient ``T softmax(z) - t``
(shifting by m keeps the difference of large terms exact). Source: K-image mixing Eq. 8; Soft Augmentation Eq. 4-6,
12-15, 17 and 18; R-Mix Sec. 3.

The gradient is computed in the forward pass when the logits require one: one read and one write of (N, J)
instead of two reads and a write. Backward hands it on as it is where the incoming gradient is 1.
"""

# bytes: N*J*(1 read + 1 write if a gradient is wanted) * element size; flops: about 20 N*J

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from ..reference import functional as reference
from ..targets import SoftTarget
from . import checks as check
from .dispatch import must_check_values, select
from .enums import Loss, Reduction, codes
from .operator import NAMESPACES, _BelowAutograd

LOSSES = codes(Loss)
REDUCTIONS = codes(Reduction)
WEIGHTINGS = ("sample", "none", "weight", "batch_mean")


# ---------------------------------------------------------------- registration, fake, autograd

def _fake_result(logits: Tensor, reduction: int, need_grad: bool) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    loss = logits.new_empty((logits.shape[0],) if reduction == Reduction.NONE else (), dtype=dtype)
    return loss, logits.new_empty(logits.shape if need_grad else (0,))


def _fake(logits, index, weight, base, sample_weight, label_smoothing, ignore_index, loss, reduction, need_grad):
    torch._check(logits.ndim == 2 and index.ndim == 2 and logits.shape[0] == index.shape[0])
    return _fake_result(logits, reduction, need_grad)


def _fake_dense(logits, target, sample_weight, label_smoothing, loss, reduction, need_grad):
    torch._check(logits.ndim == 2 and target.ndim == 2)
    return _fake_result(logits, reduction, need_grad)


def _reference_loss(logits: Tensor, index: Tensor, weight: Tensor | None, base: Tensor | None,
                    sample_weight: Tensor | None, smoothing: float, ignore_index: int, loss: int,
                    reduction: int) -> Tensor:
    """What `soft_target` computes, in differentiable PyTorch, from the same arguments."""
    if weight is None:
        weight = torch.ones_like(index, dtype=torch.float32)
    return _loss_of(logits, SoftTarget(index, weight, base), sample_weight, smoothing, ignore_index, loss, reduction)


def _reference_dense_loss(logits: Tensor, target: Tensor, sample_weight: Tensor | None, smoothing: float, loss: int,
                          reduction: int) -> Tensor:
    """What `soft_target_dense` computes, in differentiable PyTorch, from the same arguments."""
    return _loss_of(logits, target, sample_weight, smoothing, -100, loss, reduction)


def _loss_of(logits: Tensor, target: SoftTarget | Tensor, sample_weight: Tensor | None, smoothing: float,
             ignore_index: int, loss: int, reduction: int) -> Tensor:
    name = tuple(REDUCTIONS)[reduction]
    if loss == Loss.BCE:
        return reference.soft_bce(logits, target, reduction=name)
    return reference.soft_cross_entropy(logits, target, sample_weight=sample_weight, label_smoothing=smoothing,
                                        ignore_index=ignore_index, reduction=name, kl=loss == Loss.KL)


# Operator -> (its fake, its formula).
_FORMS = {"soft_target": (_fake, _reference_loss), "soft_target_dense": (_fake_dense, _reference_dense_loss)}


@functools.cache
def _scale_operator(namespace: str, device_type: str) -> Any:
    """``grad *= g`` in one launch that touches nothing where g, which is on the device, is 1; None without a kernel."""
    name = f"{namespace}::scale_gradient_"
    key = {"cpu": "CPU", "cuda": "CUDA"}.get(device_type)
    if key is None or not torch._C._dispatch_has_kernel_for_dispatch_key(name, key):
        return None
    return getattr(torch.ops, namespace).scale_gradient_.default


def _gradient(grad: Tensor | None, g: Tensor, logits: Tensor, overload: Any, formula: Any, args: tuple[Any, ...],
              owned: bool) -> Tensor:
    """d logits from the stored gradient (None: consumed by an earlier backward) and the incoming g.

    owned: the stored gradient is ours alone and may be scaled in place.
    """
    if torch.is_grad_enabled():  # create_graph: the second derivative needs the formula, not the stored values
        return torch.autograd.grad(formula(logits, *args), logits, g, create_graph=True)[0]
    if grad is None:
        with _BelowAutograd():
            grad = overload(logits, *args, True)[1]
    scale = _scale_operator(overload.namespace, grad.device.type) if owned else None
    if scale is not None:
        with _BelowAutograd():
            scale(grad, g)
        return grad
    if g.ndim == 1:
        g = g.unsqueeze(1)
    return grad.mul_(g) if owned else grad * g.to(grad.dtype)


class _Eager(torch.autograd.Function):
    """As `operator.Operator`, but the gradient stays out of the outputs, so that backward may give it away."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, overload: Any, formula: Any, args: tuple[Any, ...]) -> Tensor:
        with _BelowAutograd():
            loss, ctx.grad = overload(logits, *args, True)
        ctx.save_for_backward(logits)
        ctx.options = overload, formula, args
        return loss

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        grad, ctx.grad = ctx.grad, None
        if grad is not None and g.ndim == 0 and g.is_cpu and not torch.is_grad_enabled() and g.item() == 1.0:
            return grad, None, None, None  # multiplying by 1 would double the time at J = 21841
        return _gradient(grad, g, *ctx.saved_tensors, *ctx.options, owned=True), None, None, None


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *args, need_grad = inputs[1:]
    ctx.tensors = [i for i, a in enumerate(args) if isinstance(a, Tensor)]
    ctx.plain = [None if isinstance(a, Tensor) else a for a in args]
    ctx.save_for_backward(inputs[0], output[1] if need_grad else None, *[args[i] for i in ctx.tensors])


def _registered_backward(overload: Any, formula: Any) -> Any:
    def backward(ctx: Any, g: Tensor, _: Any) -> Any:
        logits, grad, *tensors = ctx.saved_tensors
        args = list(ctx.plain)
        for i, t in zip(ctx.tensors, tensors, strict=True):
            args[i] = t
        d = _gradient(grad, g, logits, overload, formula, tuple(args), owned=False)
        return (d, *[None] * (1 + len(args)))
    return backward


_OVERLOADS: dict[str, dict[str, Any]] = {}
_registered: set[str] = set()


def add(backend: str, namespace: str) -> None:
    """As `operator.Operator.add`."""
    _OVERLOADS[backend] = {name: getattr(getattr(torch.ops, namespace), name).default for name in _FORMS}
    if namespace in _registered:
        return
    _registered.add(namespace)
    for name, (fake, formula) in _FORMS.items():
        overload = _OVERLOADS[backend][name]
        torch.library.register_fake(f"{namespace}::{name}", fake)
        torch.library.register_autograd(f"{namespace}::{name}", _registered_backward(overload, formula),
                                        setup_context=_setup)


for _backend, _namespace in NAMESPACES.items():
    add(_backend, _namespace)


# ---------------------------------------------------------------- public functions

def _call(op: str, logits: Tensor, target: SoftTarget | Tensor, sample_weight: Tensor | None,
          label_smoothing: float, ignore_index: int, loss: str, reduction: str) -> Tensor:
    check.ndim(op, "logits", logits, 2)
    check.dtype(op, "logits", logits, *check.FLOATS)
    if reduction not in REDUCTIONS:
        check.choice(op, "reduction", reduction, tuple(REDUCTIONS))
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"{op}: label_smoothing is {label_smoothing}, want a value in [0, 1]")
    rows, classes = logits.shape
    if sample_weight is not None:
        check.shape(op, "sample_weight", sample_weight, (rows,), "(N,)")
        check.no_grad_needed(op, "sample_weight", sample_weight)
        check.same_device(op, logits=logits, sample_weight=sample_weight)
        sample_weight = sample_weight.to(torch.float32)
    backend = select("soft_target", logits)
    if isinstance(target, Tensor) and target.ndim == 2:
        check.shape(op, "target", target, (rows, classes), "(N, J) like logits")
        check.dtype(op, "target", target, *check.FLOATS)
        check.no_grad_needed(op, "target", target)
        check.same_device(op, logits=logits, target=target)
        args = (target, sample_weight, float(label_smoothing), LOSSES[loss], REDUCTIONS[reduction])
        operator = "soft_target_dense"
    else:
        index, weight, base = _fields(op, logits, target, rows)
        if must_check_values(backend, logits):
            check.rows_in_range(op, "target index", index, 0, classes, ignore_index)
        args = (index, weight, base, sample_weight, float(label_smoothing), ignore_index, LOSSES[loss],
                REDUCTIONS[reduction])
        operator = "soft_target"
    formula = _FORMS[operator][1]
    if backend == "reference":
        return formula(logits, *args)
    overload = _OVERLOADS[backend][operator]
    need_grad = logits.requires_grad and torch.is_grad_enabled()
    if torch.compiler.is_compiling():
        return overload(logits, *args, need_grad)[0]
    if need_grad:
        return _Eager.apply(logits, overload, formula, args)
    with _BelowAutograd():
        return overload(logits, *args, False)[0]


def _fields(op: str, logits: Tensor, target: SoftTarget | Tensor, rows: int) -> tuple[Any, Any, Any]:
    if isinstance(target, Tensor):
        if target.ndim != 1:
            raise ValueError(f"{op}: target has shape {tuple(target.shape)}, want a SoftTarget, labels (N,) or (N, J)")
        check.shape(op, "target", target, (rows,), "(N,) labels")
        check.dtype(op, "target", target, torch.int64)
        check.same_device(op, logits=logits, target=target)
        return target.unsqueeze(1), None, None
    if not isinstance(target, SoftTarget):
        raise TypeError(f"{op}: target is {type(target).__name__}, want a SoftTarget, labels (N,) or dense (N, J)")
    index, weight, base = target
    check.ndim(op, "target.index", index, 2)
    if index.shape[0] != rows or index.shape[1] < 1:
        raise ValueError(f"{op}: target.index has shape {tuple(index.shape)}, want ({rows}, K) with K >= 1")
    check.dtype(op, "target.index", index, torch.int64)
    check.shape(op, "target.weight", weight, index.shape, "(N, K) like index")
    check.dtype(op, "target.weight", weight, torch.float32)
    check.no_grad_needed(op, "target.weight", weight)
    if base is not None:
        check.shape(op, "target.base", base, (rows,), "(N,)")
        check.dtype(op, "target.base", base, torch.float32)
        check.no_grad_needed(op, "target.base", base)
    check.same_device(op, logits=logits, index=index, weight=weight, base=base)
    return index, weight, base


def soft_cross_entropy(logits: Tensor, target: SoftTarget | Tensor, *, sample_weight: Tensor | None = None,
                       label_smoothing: float = 0.0, ignore_index: int = -100, reduction: str = "mean") -> Tensor:
    """Cross-entropy of logits against soft targets: ``l_n = -sum_j t_nj log softmax(z_n)_j``.

    Args:
        logits: (N, J) float32, bfloat16, float16 or float64; any stride of dim 0.
        target: a SoftTarget, (N,) int64 labels, or a dense (N, J) float matrix (no gradient flows to it).
        sample_weight: (N,) multiplies ``l_n``. The mean still divides by the number of rows.
        label_smoothing: eps in [0, 1]; the target becomes ``(1 - eps) t + eps / J``.
        ignore_index: a row whose ``index[n, 0]`` holds it has loss 0 and gradient exactly 0 and is not counted.
        reduction: "mean" over the rows that count (0 of them: loss 0), "sum" or "none".
    Returns: 0-d, or (N,) for "none"; float32 (float64 for float64 logits).
    Raises: ValueError for shapes and options, TypeError for dtypes, IndexError for a class outside [0, J) (CPU; on
        a GPU the row's loss is NaN).
    Source: K-image mixing Eq. 8, the cross-entropy against sum_k phi_k l_k; of hard labels Soft Augmentation Eq. 14;
        R-Mix Eq. 1 (as its released code has it). label_smoothing: see `SoftTarget.smooth`.
    """
    return _call("soft_cross_entropy", logits, target, sample_weight, label_smoothing, ignore_index,
                 "cross_entropy", reduction)


def soft_kl(logits: Tensor, target: SoftTarget | Tensor, *, sample_weight: Tensor | None = None,
            label_smoothing: float = 0.0, ignore_index: int = -100, reduction: str = "mean") -> Tensor:
    """KL(t || softmax(z)): soft_cross_entropy plus ``sum_j t_nj log t_nj`` (0 log 0 = 0).

    Arguments, result and errors as `soft_cross_entropy`; same gradient, another value.
    Source: Soft Augmentation Eq. 12-13, where w is sample_weight.
    """
    return _call("soft_kl", logits, target, sample_weight, label_smoothing, ignore_index, "kl", reduction)


def soft_target_kl(logits: Tensor, target: SoftTarget | Tensor, confidence: Tensor | None = None, *,
                   weighting: str = "sample", reduction: str = "mean") -> Tensor:
    """The losses of Soft Augmentation: KL against softened labels, weighted by the confidence in them.

    Args:
        logits: (N, J).
        target: the SoftTarget of a soft augmentation, whose ``confidence()`` is p; or labels (N,) int64 together with
            confidence, then the target is ``SoftTarget.from_confidence(target, confidence, J)``.
        confidence: (N,) float in [0, 1], p of Eq. 7; None with a SoftTarget.
        weighting: "sample" ``mean_n p_n KL_n`` (Eq. 6, 18, the default); "none" ``mean_n KL_n`` (Eq. 4, 15);
            "weight" the one-hot loss ``mean_n -p_n log softmax_y`` (Eq. 5, 17; of a mixture, its classes in their
            proportions); "batch_mean" ``mean(p) * mean(KL)``, what Listing 2 computes because an (N, 1) weight meets an
            (N,) loss.
        reduction: "mean", "sum" or "none".
    Raises: ValueError for shapes and options, TypeError for dtypes and for labels without a confidence.
    Source: Soft Augmentation Eq. 4-6, Appendix C (Eq. 15, 17, 18), Listing 2; compared in Fig. 3.
    """
    op = "soft_target_kl"
    check.choice(op, "weighting", weighting, WEIGHTINGS)
    check.ndim(op, "logits", logits, 2)
    if isinstance(target, SoftTarget):
        if confidence is not None:
            raise TypeError(f"{op}: confidence is given, want None: a SoftTarget has its own")
        _fields(op, logits, target, logits.shape[0])
        confidence = target.confidence()
    else:
        if confidence is None:
            raise TypeError(f"{op}: confidence is None, want (N,) with labels, or a SoftTarget as the target")
        check.shape(op, "target", target, logits.shape[:1], "(N,) labels")
        check.shape(op, "confidence", confidence, logits.shape[:1], "(N,)")
        check.no_grad_needed(op, "confidence", confidence)
        confidence = confidence.to(torch.float32)
    if weighting == "weight":
        hard = _proportions(target) if isinstance(target, SoftTarget) else target
        return _call(op, logits, hard, confidence, 0.0, -100, "cross_entropy", reduction)
    if not isinstance(target, SoftTarget):
        target = SoftTarget.from_confidence(target, confidence, logits.shape[1])
    sample_weight = None
    if weighting == "sample":
        sample_weight = confidence
    elif weighting == "batch_mean" and confidence.shape[0] > 0:
        sample_weight = confidence.mean().expand(confidence.shape)
    return _call(op, logits, target, sample_weight, 0.0, -100, "kl", reduction)


def _proportions(target: SoftTarget) -> SoftTarget | Tensor:
    """The classes of a soft target in their proportions, without what every class gets: labels where it names one."""
    index, weight, _ = target
    if index.shape[1] == 1:
        return index[:, 0]
    total = weight.sum(1, keepdim=True)
    return SoftTarget(index, torch.where(total == 0, 1 / index.shape[1], weight / total))


def soft_bce(logits: Tensor, target: SoftTarget | Tensor, *, reduction: str = "mean") -> Tensor:
    """Binary cross-entropy with logits against t: ``-t log sigmoid(z) - (1 - t) log(1 - sigmoid(z))``.

    Args:
        logits: (N, J).
        target: as for `soft_cross_entropy`.
        reduction: "mean" over N * J, "sum", or "none": the (N,) sums over the classes.
    Source: R-Mix Sec. 3, after Eq. 7 (the paper names a multi-label BCE; its released code uses soft cross-entropy).
    """
    return _call("soft_bce", logits, target, None, 0.0, _NO_IGNORE, "bce", reduction)


_NO_IGNORE = -(2**63)  # no label can be this: BCE has no ignored rows
