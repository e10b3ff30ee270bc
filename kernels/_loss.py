"""Terms of the losses, and the small launches of soft_target beside its rows: count, sum, scale."""

from __future__ import annotations

import triton
import triton.language as tl

from ._common import device, to_float, to_storage


@device
def xlogx(t):
    return tl.where(t == 0, 0.0, t * tl.log(tl.where(t == 0, 1.0, t)))


@device
def weighted(w, value):
    # A weight of 0 counts nothing, not even times infinity.
    return tl.where(w == 0, 0.0, w * value)


@device
def log1p_unit(u, ACC: tl.constexpr):
    """log(1 + u) for u in [0, 1], relative error of a few ulp, without libdevice."""
    if ACC == tl.float64:
        w = 1.0 + u
        result = tl.log(w) - ((w - 1.0) - u) / w
    else:
        s = u / (2.0 + u)
        s2 = s * s
        p = s2 * 0.06666666666666667 + 0.07692307692307693
        p = p * s2 + 0.09090909090909091
        p = p * s2 + 0.1111111111111111
        p = p * s2 + 0.14285714285714285
        p = p * s2 + 0.2
        p = p * s2 + 0.3333333333333333
        result = 2.0 * s + 2.0 * s * (s2 * p)
    return result


@device
def sigmoid(z):
    e = tl.exp(-tl.abs(z))
    return tl.where(z >= 0, 1.0, e) / (1.0 + e)


@device
def bce_terms(z, kept, wanted, inside, ACC: tl.constexpr):
    """``kept softplus(z) - wanted z``; 0 outside."""
    e = tl.exp(-tl.abs(z))
    terms = kept * (tl.where(z > 0, z, 0.0) + log1p_unit(e, ACC)) - weighted(wanted, z)
    return tl.where(inside, terms, 0.0)


@device
def batch_sums(index_ptr, weight_ptr, base_ptr, confidence_ptr, class_weight_ptr, row, inside, classes, columns,
               ignore_index, MEAN_CONFIDENCE: tl.constexpr, BLOCK: tl.constexpr):
    """(which rows count, the class weights of their labels, their confidences), each (BLOCK,) float64; 0 elsewhere."""
    counts = row < 0
    confidence = tl.zeros((BLOCK,), tl.float64)
    for k in range(0, columns):
        index = tl.load(index_ptr + row * columns + k, mask=inside, other=0)
        counts = counts | (index != ignore_index)
        if MEAN_CONFIDENCE and confidence_ptr is None:
            if weight_ptr is not None:
                confidence += tl.load(weight_ptr + row * columns + k, mask=inside, other=0.0).to(tl.float64)
            else:
                confidence += 1.0
    counts = counts & inside
    if MEAN_CONFIDENCE:
        if confidence_ptr is not None:
            confidence = tl.load(confidence_ptr + row, mask=inside, other=0.0).to(tl.float64)
        elif base_ptr is not None:
            confidence += tl.load(base_ptr + row, mask=inside, other=0.0).to(tl.float64)
    counted = counts.to(tl.float64)
    weights = counted
    if class_weight_ptr is not None:
        label = tl.load(index_ptr + row * columns, mask=counts, other=0)
        known = counts & (label >= 0) & (label < classes)
        weights = tl.load(class_weight_ptr + tl.where(known, label, 0), mask=known, other=0.0).to(tl.float64)
    return counted, weights, tl.where(counts, confidence, 0.0)


@triton.jit(do_not_specialize=["ignore_index"])
def count_rows(parts_ptr, index_ptr, weight_ptr, base_ptr, confidence_ptr, class_weight_ptr, rows, classes, columns,
               share, ignore_index, MEAN_CONFIDENCE: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr):
    """Of rows [p * share, (p + 1) * share): parts[p] counts them, parts[PARTS + p] adds up their class weights, and
    parts[2 * PARTS + p] their confidences."""
    pid = tl.program_id(0).to(tl.int64)
    counted = tl.zeros((BLOCK,), tl.float64)
    weights = tl.zeros((BLOCK,), tl.float64)
    confidences = tl.zeros((BLOCK,), tl.float64)
    for at in range(0, share, BLOCK):
        row = pid * share + at + tl.arange(0, BLOCK)
        inside = (at + tl.arange(0, BLOCK) < share) & (row < rows)
        count, weight, confidence = batch_sums(
            index_ptr, weight_ptr, base_ptr, confidence_ptr, class_weight_ptr, row, inside, classes, columns,
            ignore_index.to(tl.int64), MEAN_CONFIDENCE, BLOCK)
        counted += count
        weights += weight
        confidences += confidence
    tl.store(parts_ptr + pid, tl.sum(counted))
    tl.store(parts_ptr + PARTS + pid, tl.sum(weights))
    tl.store(parts_ptr + 2 * PARTS + pid, tl.sum(confidences))


@triton.jit
def sum_parts(out_ptr, parts_ptr, parts, BLOCK: tl.constexpr):
    """out = sum of parts, in one program and one order."""
    total = tl.zeros((BLOCK,), tl.float64)
    for at in range(0, parts, BLOCK):
        i = at + tl.arange(0, BLOCK)
        total += tl.load(parts_ptr + i, mask=i < parts, other=0.0).to(tl.float64)
    tl.store(out_ptr, tl.sum(total).to(out_ptr.dtype.element_ty))


@triton.jit
def scale_kernel(grad_ptr, g_ptr, total, BLOCK: tl.constexpr):
    """grad *= g, or nothing at all where g is 1."""
    g = tl.load(g_ptr)
    if g != 1.0:
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        value = to_float(tl.load(grad_ptr + at, mask=at < total), g.dtype)
        tl.store(grad_ptr + at, to_storage(value * g, grad_ptr.dtype.element_ty), mask=at < total)
