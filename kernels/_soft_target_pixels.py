"""The kernel of soft_target over pixels: logits (N, J, P), whose classes lie P elements apart.

A program has neighbouring pixels of one image, a lane a few of them, so that every access is of whole sectors. Three
passes over the classes, for the maximum, the sums and the gradient: from memory the first time, then from the caches.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastmix.ops.enums import Loss

from ._common import to_float
from ._loss import bce_terms, sigmoid, weighted, xlogx
from ._soft_target_rows import (
    BY_BATCH_MEAN,
    MEAN,
    batch_totals,
    finish_loss,
    load_named,
    load_target,
    smoothing_of,
    store_gradient,
    store_loss,
    times_row_grad,
    times_sample_weight,
)

KL, BCE = tl.constexpr(Loss.KL.value), tl.constexpr(Loss.BCE.value)


@triton.jit(do_not_specialize=["ignore_index"])
def pixel_kernel(
    out_ptr, finished_ptr,                                      # (), (1,); see finish_loss; None = no sum
    loss_ptr, grad_ptr, logits_ptr, index_ptr, weight_ptr,      # (programs,) or (rows,); (N, J, P) x2, (rows, K) x2
    base_ptr, confidence_ptr, target_ptr, sample_weight_ptr,    # (rows,) x2, (N, J, P), (rows,); None = absent
    class_weight_ptr, row_grad_ptr, parts_ptr,                  # (J,), () or (rows,), (3 * COUNT_BLOCK,)
    rows, classes, pixels, columns,                             # rows = N * P, columns = K
    ignore_index, smoothing, smoothing_low,
    LOSS: tl.constexpr, REDUCTION: tl.constexpr, WEIGHTING: tl.constexpr, LABELS: tl.constexpr, SMOOTH: tl.constexpr,
    GRAD_STEP: tl.constexpr, ACC: tl.constexpr, PIXELS: tl.constexpr, COLUMNS: tl.constexpr,
    COUNT_BLOCK: tl.constexpr, COUNT_PARTIAL: tl.constexpr,
):  # fmt: skip
    """Against named classes, or a dense target where index is None."""
    blocks = (pixels + PIXELS - 1) // PIXELS
    image = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = tl.program_id(0) % blocks * PIXELS + tl.arange(0, PIXELS)[:, None]
    is_row = pixel < pixels
    row = image * pixels + pixel
    # Of class 0; a class further is `stride` on.
    start = image * classes * pixels + pixel
    stride = tl.zeros((1, 1), tl.int64) + pixels
    eps, keep = smoothing_of(smoothing, smoothing_low, PIXELS, ACC)
    zero = tl.zeros((PIXELS, 1), ACC)
    share = zero + 1.0
    scale = zero + 1.0
    ignored = row < 0
    in_range = row >= 0
    base = zero
    if SMOOTH:
        base = eps / classes
    divisor = tl.zeros((1, 1), ACC) + rows
    if index_ptr is not None:
        (named, counts, named_weight, named_z, named_target, of_named, first_of_class, ignored, in_range, base, share,
         scale) = load_named(logits_ptr, index_ptr, weight_ptr, base_ptr, confidence_ptr, class_weight_ptr, start,
                             stride, row, is_row, classes, columns, ignore_index, eps, keep, SMOOTH, WEIGHTING, PIXELS,
                             COLUMNS, ACC)
        if REDUCTION == MEAN or WEIGHTING == BY_BATCH_MEAN:
            counted, confidence = batch_totals(index_ptr, weight_ptr, base_ptr, confidence_ptr, class_weight_ptr,
                                               parts_ptr, rows, classes, columns, ignore_index.to(tl.int64), LABELS,
                                               WEIGHTING, COUNT_BLOCK, COUNT_PARTIAL)
            divisor = tl.zeros((1, 1), ACC) + counted.to(ACC)
            if WEIGHTING == BY_BATCH_MEAN:
                scale = scale * confidence.to(ACC)
    if REDUCTION == MEAN:
        scale = scale / divisor
        if LOSS == BCE:
            scale = scale / (zero + classes)
    scale = times_sample_weight(scale, sample_weight_ptr, row, is_row, ACC)
    live = in_range & ~ignored & is_row
    grad_scale = times_row_grad(tl.where(in_range, scale, float("nan")), row_grad_ptr, row, is_row, ACC, GRAD_STEP)

    # The sums over the classes, c the class weights. exps: of softmax; total, dot, extra: of c t, c t (z - maximum)
    # and, for KL, c t log t; weights: of c. The largest exponentials (each 1) are counted apart: many small ones added
    # to 1 would be lost.
    maximum = zero + float("-inf")
    exps = zero
    largest = zero
    total = zero
    dot = zero
    extra = zero
    weights = zero
    if LOSS != BCE:
        for j in range(0, classes):
            z = to_float(tl.load(logits_ptr + start + j * stride, mask=is_row, other=0.0), ACC)
            maximum = tl.maximum(maximum, z)
    for j in range(0, classes):
        at = start + j * stride
        z = to_float(tl.load(logits_ptr + at, mask=is_row, other=0.0), ACC)
        t = base
        if target_ptr is not None:
            t = load_target(target_ptr + at, is_row, base, keep, ACC)
        c = zero + 1.0
        if class_weight_ptr is not None:
            c = zero + tl.load(class_weight_ptr + j).to(ACC)
        if LOSS == BCE:
            dot += bce_terms(z, share * c, c * t, is_row, ACC)
            if grad_ptr is not None:
                grad = tl.where(ignored, 0.0, grad_scale * (share * c * sigmoid(z) - c * t))
                store_gradient(grad_ptr, at, grad, is_row)
        else:
            exps += tl.where(z == maximum, 0.0, tl.exp(z - maximum))
            largest += tl.where(z == maximum, 1.0, 0.0)
            total += c * t
            dot += weighted(c * t, z - maximum)
            weights += c
            if LOSS == KL:
                extra += c * xlogx(t)
    if LOSS == BCE:
        loss = dot
        if index_ptr is not None:
            loss -= tl.sum(weighted(named_weight, named_z), 1)[:, None]
    else:
        if index_ptr is not None:
            total += tl.sum(named_weight, 1)[:, None]
            dot += tl.sum(weighted(named_weight, named_z - maximum), 1)[:, None]
            if LOSS == KL:
                named_entropy = tl.where(first_of_class, of_named * xlogx(base + named_target), 0.0)
                distinct = tl.sum(tl.where(first_of_class, of_named, 0.0), 1)[:, None]
                extra = tl.sum(named_entropy, 1)[:, None] + (weights - distinct) * xlogx(base)
        exps = tl.where(is_row, largest + exps, 1.0)
        loss = total * tl.log(exps) - dot + extra
    loss = tl.where(in_range, loss, float("nan")) * scale
    store_loss(loss_ptr, tl.where(is_row & ~ignored, loss, 0.0), row, is_row, REDUCTION)

    if grad_ptr is not None:
        factor = grad_scale * total / exps
        if LOSS != BCE:
            for j in range(0, classes):
                at = start + j * stride
                z = to_float(tl.load(logits_ptr + at, mask=is_row, other=0.0), ACC)
                t = base
                if target_ptr is not None:
                    t = load_target(target_ptr + at, is_row, base, keep, ACC)
                if class_weight_ptr is not None:
                    t = t * tl.load(class_weight_ptr + j).to(ACC)
                grad = tl.where(ignored, 0.0, tl.exp(z - maximum) * factor - grad_scale * t)
                store_gradient(grad_ptr, at, grad, is_row)
        if index_ptr is not None:
            # The named classes were written above by other threads, without their weights.
            tl.debug_barrier()
            wanted = base + named_target
            if LOSS == BCE:
                named_grad = grad_scale * (of_named * (share * sigmoid(named_z) - wanted))
            else:
                named_grad = tl.exp(named_z - maximum) * factor - grad_scale * (wanted * of_named)
            store_gradient(grad_ptr, start + named * stride, named_grad, counts & live)
    finish_loss(out_ptr, loss_ptr, finished_ptr, REDUCTION)
