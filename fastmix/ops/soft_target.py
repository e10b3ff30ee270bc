"""Losses against soft targets in one read of the logits: cross-entropy, KL divergence, BCE.

With ``T = sum_j t_j``, ``m = max z`` and ``lse = log sum_j exp(z_j - m)`` a row's loss is
``T lse - base sum_j (z_j - m) - sum_k weight_k (z[index_k] - m)`` and its gradient ``T softmax(z) - t``
(shifting by m keeps the difference of large terms exact). Source: K-image mixing Eq. 8; Soft Augmentation Eq. 4-6,
12-15, 17 and 18; R-Mix Sec. 3.

The gradient is computed in the forward pass when the logits require one: one read and one write of (N, J)
instead of two reads and a write. Backward hands it on as it is where the incoming gradient is 1, and multiplies it
else: rounded a second time, which is within 2^-7 of the exact one for bfloat16, and 2^-23 for float32.

float16 is the exception: gradients of a mean lie below its smallest number, and a loss scale that is applied afterwards
cannot bring them back. There backward computes the gradient, the incoming one included before the only rounding, from
another read of the logits.
"""

# bytes: N*J*(1 read + 1 write if a gradient is wanted; float16: 2 reads) * element size; flops: about 20 N*J

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..reference import functional as reference
from ..targets import IGNORED, SoftTarget
from . import checks as check
from .dispatch import must_check_values, operator_checks, select
from .enums import Loss, Reduction, Weighting, codes
from .operator import NAMESPACES, _BelowAutograd, apply_of, eager

REDUCTIONS = codes(Reduction)
_WEIGHTINGS = {"sample": Weighting.BY_SAMPLE, "none": Weighting.UNWEIGHTED, "weight": Weighting.BY_WEIGHT,
               "batch_mean": Weighting.BY_BATCH_MEAN}
WEIGHTINGS = tuple(_WEIGHTINGS)


# ---------------------------------------------------------------- registration, fake, autograd

def _fake_result(logits: Tensor, reduction: int, need_grad: bool) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    rows = logits.shape[0] if logits.ndim == 2 else logits.shape[0] * logits.shape[2]
    loss = logits.new_empty((rows,) if reduction == Reduction.NONE else (), dtype=dtype)
    return loss, logits.new_empty(logits.shape if need_grad else (0,))


def _fake(logits, index, weight, base, confidence, sample_weight, class_weight, row_grad, label_smoothing, ignore_index,
          loss, weighting, reduction, need_grad):
    torch._check(logits.ndim in (2, 3) and index.ndim == 2)
    return _fake_result(logits, reduction, need_grad)


def _fake_dense(logits, target, sample_weight, class_weight, row_grad, label_smoothing, loss, reduction, need_grad):
    torch._check(logits.ndim in (2, 3) and target.ndim == logits.ndim)
    return _fake_result(logits, reduction, need_grad)


class _Form(NamedTuple):
    """One of the two operators: (logits, tensors or None, row_grad, options, need_grad). Its formula takes logits, the
    tensors and the options."""

    name: str
    fake: Callable[..., Any]
    formula: Callable[..., Tensor]
    tensors: int  # how many


_SPARSE = _Form("soft_target", _fake, reference.soft_target, 6)
_DENSE = _Form("soft_target_dense", _fake_dense, reference.soft_target_dense, 3)


@functools.cache
def _scale_operator(namespace: str, device_type: str) -> Any:
    """``grad *= g`` in one launch that touches nothing where g, which is on the device, is 1; None without a kernel."""
    name = f"{namespace}::scale_gradient_"
    key = {"cpu": "CPU", "cuda": "CUDA"}.get(device_type)
    if key is None or not torch._C._dispatch_has_kernel_for_dispatch_key(name, key):
        return None
    return getattr(torch.ops, namespace).scale_gradient_.default


def _gradient(grad: Tensor | None, g: Tensor, logits: Tensor, tensors: Sequence[Tensor | None], form: _Form,
              overload: Any, options: tuple[Any, ...], owned: bool) -> Tensor:
    """d logits from the stored gradient (None: not computed yet, or handed out) and the incoming g.

    owned: the stored gradient is ours alone and may be scaled in place.
    """
    if torch.is_grad_enabled():  # create_graph: the second derivative needs the formula, not the stored values
        return torch.autograd.grad(form.formula(logits, *tensors, *options), logits, g, create_graph=True)[0]
    if grad is None:
        late = logits.dtype == torch.float16
        with _BelowAutograd():
            grad = overload(logits, *tensors, g.contiguous() if late else None, *options, True)[1]
        if late:
            return grad
        owned = True
    scale = _scale_operator(overload.namespace, grad.device.type) if owned and (g.ndim == 0 or grad.ndim == 2) else None
    if scale is not None:
        with _BelowAutograd():
            scale(grad, g)
        return grad
    if g.ndim == 1:
        g = g.unsqueeze(1) if grad.ndim == 2 else g.view(grad.shape[0], 1, grad.shape[2])
    return grad.mul_(g) if owned and grad.dtype == g.dtype else (grad.to(g.dtype) * g).to(grad.dtype)


class _Eager(torch.autograd.Function):
    """As `operator.Operator`, but the gradient stays out of the outputs, so that backward may give it away."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, form: _Form, overload: Any, tensors: tuple[Tensor | None, ...],
                options: tuple[Any, ...]) -> Tensor:
        at_once = logits.dtype != torch.float16
        with _BelowAutograd():
            loss, grad = eager(overload)(logits, *tensors, None, *options, at_once)
        ctx.grad = grad if at_once else None
        # The targets too: a second backward, which reads them again, must notice that they were changed since.
        ctx.save_for_backward(logits, *tensors)
        ctx.options = form, overload, options
        return loss

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        grad, ctx.grad = ctx.grad, None
        if grad is not None and g.ndim == 0 and g.is_cpu and not torch.is_grad_enabled() and g.item() == 1.0:
            return grad, None, None, None, None  # multiplying by 1 would double the time at J = 21841
        logits, *tensors = ctx.saved_tensors
        return _gradient(grad, g, logits, tensors, *ctx.options, owned=True), None, None, None, None


_apply = apply_of(_Eager)


def _setup(form: _Form) -> Any:
    def setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.options = inputs[form.tensors + 2:-1]
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1] if inputs[-1] else None, *inputs[:form.tensors + 1])
    return setup


def _registered_backward(overload: Any, form: _Form) -> Any:
    def backward(ctx: Any, g: Tensor, _: Any) -> Any:
        grad, logits, *tensors = ctx.saved_tensors
        d = _gradient(grad, g, logits, tensors, form, overload, ctx.options, owned=False)
        return (d, *[None] * (form.tensors + len(ctx.options) + 2))
    return backward


_OVERLOADS: dict[str, dict[str, Any]] = {}
_registered: set[str] = set()


def add(backend: str, namespace: str) -> None:
    """As `operator.Operator.add`."""
    overloads = {form: getattr(getattr(torch.ops, namespace), form.name).default for form in (_SPARSE, _DENSE)}
    _OVERLOADS[backend] = {form.name: overload for form, overload in overloads.items()}
    if namespace in _registered:
        return
    _registered.add(namespace)
    for form, overload in overloads.items():
        torch.library.register_fake(f"{namespace}::{form.name}", form.fake)
        torch.library.register_autograd(f"{namespace}::{form.name}", _registered_backward(overload, form),
                                        setup_context=_setup(form))


for _backend, _namespace in NAMESPACES.items():
    add(_backend, _namespace)


# ---------------------------------------------------------------- public functions

def _call(op: str, loss: Loss, logits: Tensor, target: SoftTarget | Tensor, reduction: str, *,
          confidence: Tensor | None = None, sample_weight: Tensor | None = None, class_weight: Tensor | None = None,
          label_smoothing: float = 0.0, ignore_index: int = IGNORED,
          weighting: Weighting = Weighting.UNWEIGHTED) -> Tensor:
    if not isinstance(reduction, str) or reduction not in REDUCTIONS:
        check.choice(op, "reduction", reduction, tuple(REDUCTIONS))
    if label_smoothing.__class__ is not float or not 0.0 <= label_smoothing <= 1.0:
        label_smoothing = check.share(op, "label_smoothing", label_smoothing)
    if ignore_index.__class__ is not int or ignore_index != IGNORED:
        ignore_index = check.integer(op, "ignore_index", ignore_index)
    if isinstance(target, tuple):
        target = SoftTarget._of_fields(op, target)
    if confidence is sample_weight is class_weight is None and isinstance(logits, Tensor) and logits.ndim == 2:
        named = target if type(target) is SoftTarget and target.weight is not None else (target, None, None)
        index, weight, base = named
        if operator_checks("soft_target", logits, index, weight, base) and (weight is not None or index.ndim == 1):
            try:
                return _run("cpu", _SPARSE, logits, (index if weight is not None else index.unsqueeze(-1), weight, base,
                                                     None, None, None),
                            (label_smoothing, ignore_index, loss.value, weighting.value, REDUCTIONS[reduction]))
            except RuntimeError:
                pass
    check.tensor(op, "logits", logits)
    check.dtype(op, "logits", logits, *check.FLOATS)
    if logits.ndim < 2:
        raise ValueError(f"{op}: logits has shape {tuple(logits.shape)}, want (N, J), or (N, J, ...) of pixels")
    backend = select("soft_target", logits)
    shape = logits.shape
    pixels, by_rows = logits.ndim > 2, True
    rows, classes = (shape[0], *shape[2:]), shape[1]
    if classes < 1:
        raise ValueError(f"{op}: logits has shape {tuple(shape)}, want at least one class")
    if class_weight is not None:
        check.shape(op, "class_weight", class_weight, (classes,), "(J,)")
        class_weight = _numbers(op, "class_weight", class_weight, logits)
    if sample_weight is not None:
        check.shape(op, "sample_weight", sample_weight, rows, "one for each row or pixel of logits")
        sample_weight = _numbers(op, "sample_weight", sample_weight, logits).reshape(-1)
    if pixels:
        logits, by_rows = _as_rows(logits)
    if isinstance(target, Tensor) and target.is_floating_point():
        check.shape(op, "target", target, shape, "labels, or a dense target like logits")
        check.dtype(op, "target", target, *check.FLOATS)
        check.no_grad_needed(op, "target", target)
        check.same_device(op, logits=logits, target=target)
        if pixels:
            target = target.movedim(1, -1).flatten(0, -2) if by_rows else target.flatten(2)
        form, tensors, options = _DENSE, (target, sample_weight, class_weight), (
            label_smoothing, loss.value, REDUCTIONS[reduction])
    else:
        index, weight, base = _fields(op, logits, target, rows)
        if pixels:
            index, weight, base, confidence = (
                index.flatten(0, -2), None if weight is None else weight.flatten(0, -2),
                None if base is None else base.reshape(-1), None if confidence is None else confidence.reshape(-1))
        if must_check_values(backend, logits):
            check.rows_in_range(op, "target index", index, 0, classes, ignore_index)
        form, tensors, options = _SPARSE, (index, weight, base, confidence, sample_weight, class_weight), (
            label_smoothing, ignore_index, loss.value, weighting.value, REDUCTIONS[reduction])
    result = _run(backend, form, logits, tensors, options)
    return result.view(rows) if pixels and reduction == "none" else result


def _run(backend: str, form: _Form, logits: Tensor, tensors: tuple[Tensor | None, ...],
         options: tuple[Any, ...]) -> Tensor:
    if backend == "reference":
        return form.formula(logits, *tensors, *options)
    overload = _OVERLOADS[backend][form.name]
    need_grad = logits.requires_grad and torch.is_grad_enabled()
    if torch.compiler.is_compiling():
        return overload(logits, *tensors, None, *options, need_grad and logits.dtype != torch.float16)[0]
    if need_grad:
        return _apply(logits, form, overload, tensors, options)
    with _BelowAutograd():
        return eager(overload)(logits, *tensors, None, *options, False)[0]


def _as_rows(logits: Tensor) -> tuple[Tensor, bool]:
    """(N, J, ...) as (rows, J), True where the classes lie innermost in memory, else as (N, J, P), False."""
    turned = logits.movedim(1, -1)
    if turned.is_contiguous():
        return turned.flatten(0, -2), True
    return logits.reshape(logits.shape[0], logits.shape[1], math.prod(logits.shape[2:])), False


def _numbers(op: str, name: str, value: Tensor, logits: Tensor) -> Tensor:
    """Float weights as the kernels read them."""
    check.dtype(op, name, value, *check.FLOATS)
    check.no_grad_needed(op, name, value)
    check.same_device(op, logits=logits, **{name: value})
    return value.to(torch.float32)


def _fields(op: str, logits: Tensor, target: SoftTarget | Tensor, rows: tuple[int, ...]) -> tuple[Any, Any, Any]:
    """(index, weight, base) of a target; rows: the shape of what has one, (N,) or (N, ...)."""
    if isinstance(target, Tensor):
        check.tensor(op, "target", target)
        if target.ndim != len(rows):
            raise ValueError(f"{op}: target has shape {tuple(target.shape)}, want a SoftTarget, labels "
                             f"{_shape_of(rows)}, or a float target like logits")
        check.shape(op, "target", target, rows, f"{_shape_of(rows)} labels")
        check.dtype(op, "target", target, torch.int64)
        check.same_device(op, logits=logits, target=target)
        return target.unsqueeze(-1), None, None
    if not isinstance(target, SoftTarget):
        raise TypeError(f"{op}: target is {type(target).__name__}, want a SoftTarget, labels {_shape_of(rows)}, or a "
                        "float target like logits")
    index, weight, base = target.index, target.weight, target.base
    check.ndim(op, "target.index", index, len(rows) + 1)
    if index.shape[:-1] != rows or index.shape[-1] < 1:
        want = ", ".join(str(n) for n in rows)
        raise ValueError(f"{op}: target.index has shape {tuple(index.shape)}, want ({want}, K) with K >= 1")
    check.dtype(op, "target.index", index, torch.int64)
    check.shape(op, "target.weight", weight, index.shape, "(N, K) like index")
    check.dtype(op, "target.weight", weight, torch.float32)
    check.no_grad_needed(op, "target.weight", weight)
    if base is not None:
        check.shape(op, "target.base", base, rows, _shape_of(rows))
        check.dtype(op, "target.base", base, torch.float32)
        check.no_grad_needed(op, "target.base", base)
    check.same_device(op, logits=logits, index=index, weight=weight, base=base)
    return index, weight, base


def _shape_of(rows: tuple[int, ...]) -> str:
    return "(N,)" if len(rows) == 1 else "(N, ...)"


def soft_cross_entropy(logits: Tensor, target: SoftTarget | Tensor, *, sample_weight: Tensor | None = None,
                       class_weight: Tensor | None = None, label_smoothing: float = 0.0, ignore_index: int = IGNORED,
                       reduction: str = "mean") -> Tensor:
    """Cross-entropy of logits against soft targets: ``l_n = -sum_j c_j t_nj log softmax(z_n)_j``.

    Args:
        logits: (N, J), or (N, J, ...) of pixels: float32, bfloat16, float16 or float64. Not copied where the classes
            lie side by side (any stride of dim 0, channels_last) or the tensor is contiguous.
        target: a SoftTarget, (N,) int64 labels, or a dense (N, J) float matrix (no gradient flows to it); of pixels a
            SoftTarget with index (N, ..., K), labels (N, ...) or a dense (N, J, ...).
        sample_weight: (N,), or (N, ...), multiplies ``l_n``. The mean still divides by the number of rows.
        class_weight: (J,), c. The mean of labels then divides by the sum of their class weights, that of soft targets
            by the number of rows, as in torch.
        label_smoothing: eps in [0, 1]; the target becomes ``(1 - eps) t + eps / J``.
        ignore_index: a slot ``index[n, k]`` that holds it counts nothing, in the loss and in the smoothing of its
            share. A row (pixel) of such slots has loss 0 and gradient exactly 0 and is not counted.
        reduction: "mean" over the rows that count (0 of them: loss 0), "sum" or "none".
    Returns: 0-d, or (N,), (N, ...) for "none"; float32 (float64 for float64 logits).
    Raises: ValueError for shapes and options, TypeError for dtypes, IndexError for a class outside [0, J) (CPU; on
        a GPU the row's loss is NaN).
    Source: K-image mixing Eq. 8, the cross-entropy against sum_k phi_k l_k; of hard labels Soft Augmentation Eq. 14;
        R-Mix Eq. 1 (as its released code has it). label_smoothing: see `SoftTarget.smooth`.
    """
    return _call("soft_cross_entropy", Loss.CROSS_ENTROPY, logits, target, reduction, sample_weight=sample_weight,
                 class_weight=class_weight, label_smoothing=label_smoothing, ignore_index=ignore_index)


def soft_kl(logits: Tensor, target: SoftTarget | Tensor, *, sample_weight: Tensor | None = None,
            class_weight: Tensor | None = None, label_smoothing: float = 0.0, ignore_index: int = IGNORED,
            reduction: str = "mean") -> Tensor:
    """KL(t || softmax(z)): soft_cross_entropy plus ``sum_j c_j t_nj log t_nj`` (0 log 0 = 0).

    Same gradient as `soft_cross_entropy`, another value; errors as there.

    Args:
        logits: (N, J), or (N, J, ...) of pixels, any float dtype.
        target: a SoftTarget, labels (N,), (N, ...) int64, or a dense float matrix like logits.
        sample_weight: (N,), (N, ...), multiplies a row's loss. class_weight: (J,), c; the mean divides as there.
        label_smoothing: eps in [0, 1]. ignore_index: a slot that holds it counts nothing.
        reduction: "mean" over the rows that count, "sum" or "none".
    Source: Soft Augmentation Eq. 12-13, where w is sample_weight.
    """
    return _call("soft_kl", Loss.KL, logits, target, reduction, sample_weight=sample_weight, class_weight=class_weight,
                 label_smoothing=label_smoothing, ignore_index=ignore_index)


def soft_target_kl(logits: Tensor, target: SoftTarget | Tensor, confidence: Tensor | None = None, *,
                   weighting: str = "sample", class_weight: Tensor | None = None, ignore_index: int = IGNORED,
                   reduction: str = "mean") -> Tensor:
    """The losses of Soft Augmentation: KL against softened labels, weighted by the confidence in them. One launch.

    Args:
        logits: (N, J), or (N, J, ...) of pixels.
        target: the SoftTarget of a soft augmentation, whose ``confidence()`` is p; or labels (N,) int64 together with
            confidence, then the target is ``SoftTarget.from_confidence(target, confidence, J)``.
        confidence: (N,) float in [0, 1], p of Eq. 7; None with a SoftTarget.
        weighting: "sample" ``mean_n p_n KL_n`` (Eq. 6, 18, the default); "none" ``mean_n KL_n`` (Eq. 4, 15);
            "weight" the one-hot loss ``mean_n -p_n log softmax_y`` (Eq. 5, 17; of a mixture, its classes in their
            proportions); "batch_mean" ``mean(p) * mean(KL)``, what Listing 2 computes because an (N, 1) weight meets an
            (N,) loss.
        class_weight: (J,), c of a class's terms. ignore_index: a slot that holds it counts nothing.
        reduction: "mean" over the rows that count, "sum" or "none".
    Raises: ValueError for shapes and options, TypeError for dtypes and for labels without a confidence.
    Source: Soft Augmentation Eq. 4-6, Appendix C (Eq. 15, 17, 18), Listing 2; compared in Fig. 3.
    """
    op = "soft_target_kl"
    if not isinstance(weighting, str) or weighting not in WEIGHTINGS:
        check.choice(op, "weighting", weighting, WEIGHTINGS)
    if isinstance(target, tuple):
        target = SoftTarget._of_fields(op, target)
    if isinstance(target, SoftTarget):
        if confidence is not None:
            raise TypeError(f"{op}: confidence is given, want None: a SoftTarget has its own")
    else:
        check.tensor(op, "target", target)
        if confidence is None or target.is_floating_point():
            given = "None" if confidence is None else "given with a dense target"
            raise TypeError(f"{op}: confidence is {given}, want (N,) with labels, or a SoftTarget as the target")
        check.shape(op, "confidence", confidence, target.shape, "one for each label")
        confidence = _numbers(op, "confidence", confidence, target)
    options = {"confidence": confidence, "class_weight": class_weight, "ignore_index": ignore_index,
               "weighting": _WEIGHTINGS[weighting]}
    loss = Loss.CROSS_ENTROPY if weighting == "weight" else Loss.KL
    if torch.compiler.is_compiling():
        return _call(op, loss, logits, target, reduction, **options)
    try:
        return _call(op, loss, logits, target, reduction, **options)
    except IndexError as error:  # the kernel knows the loss by another name
        raise IndexError(f"{op}:{str(error).partition(':')[2]}") from None


def soft_bce(logits: Tensor, target: SoftTarget | Tensor, *, sample_weight: Tensor | None = None,
             class_weight: Tensor | None = None, ignore_index: int = IGNORED, reduction: str = "mean") -> Tensor:
    """Binary cross-entropy with logits against t: ``c_j (-t log sigmoid(z) - (1 - t) log(1 - sigmoid(z)))``.

    Args:
        logits: (N, J), or (N, J, ...) of pixels.
        target: a SoftTarget, labels (N,), (N, ...) int64, or a dense float matrix like logits, also multi-hot.
        sample_weight: (N,), (N, ...), multiplies a row's loss. class_weight: (J,), c.
        ignore_index: a slot that holds it counts nothing; the other slots' losses count in their shares of the row.
        reduction: "mean" over N * J (of the rows that count), "sum", or "none": the (N,) sums over the classes.
    Source: R-Mix Sec. 3, after Eq. 7 (the paper names a multi-label BCE; its released code uses soft cross-entropy).
    """
    return _call("soft_bce", Loss.BCE, logits, target, reduction, sample_weight=sample_weight,
                 class_weight=class_weight, ignore_index=ignore_index)
