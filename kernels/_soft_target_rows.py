"""What the kernels of soft_target share: where a row lies, its target, softmax's sums over it, and the writes."""

from __future__ import annotations

import triton.language as tl

from fastmix.ops.enums import Reduction, Weighting

from ._common import device, to_float, to_storage
from ._loss import batch_sums

NONE, MEAN = tl.constexpr(Reduction.NONE.value), tl.constexpr(Reduction.MEAN.value)
BY_SAMPLE, BY_BATCH_MEAN, BY_WEIGHT = (tl.constexpr(w.value) for w in (Weighting.BY_SAMPLE, Weighting.BY_BATCH_MEAN,
                                                                      Weighting.BY_WEIGHT))
SUM_BLOCK = tl.constexpr(1024)  # programs of which the last one adds up the losses at a time


@device
def row_layout(row, classes, row_stride, ROWS: tl.constexpr, VEC: tl.constexpr, EDGES: tl.constexpr):
    """(start of the row, of its body in logits and in the gradient, classes before the body, classes of it).

    The body is aligned to VEC elements; VEC = 1 or an aligned row has no edge.
    """
    if EDGES:
        start = row * row_stride
        body_start = (start + VEC - 1) // VEC * VEC
        head = tl.minimum(body_start - start, classes)
        body = (classes - head) // VEC * VEC
        grad_start = body_start
    else:
        head = tl.zeros((ROWS, 1), tl.int64)
        start = row * (row_stride // VEC * VEC)
        body_start = start
        body = tl.zeros((ROWS, 1), tl.int64) + classes // VEC * VEC
        grad_start = row * (classes // VEC * VEC)
    return start, body_start, grad_start, head, body


@device
def load_edge(logits_ptr, start, head, body, classes, is_row, VEC: tl.constexpr, ACC: tl.constexpr):
    """(the classes on either side of the body, which lanes are classes, their logits)."""
    edge = tl.arange(0, 2 * VEC)[None, :]
    edge_class = tl.where(edge < VEC, edge, head + body + edge - VEC)
    is_edge = tl.where(edge < VEC, edge < head, edge_class < classes) & is_row
    z = to_float(tl.load(logits_ptr + start + edge_class, mask=is_edge, other=float("-inf")), ACC)
    return edge_class, is_edge, z


@device
def load_piece(logits_ptr, target_ptr, start, target_start, at, body, is_row, base, keep, ACC: tl.constexpr):
    """(which lanes are classes, logits, targets) of a piece of each row; lanes outside hold -inf and target 0."""
    inside = (at < body) & is_row
    z = to_float(tl.load(logits_ptr + start + at, mask=inside, other=float("-inf")), ACC)
    t = base
    if target_ptr is not None:
        t = load_target(target_ptr + target_start + at, inside, base, keep, ACC)
    return inside, z, t


@device
def load_target(target_ptr, inside, base, keep, ACC: tl.constexpr):
    """Targets of a dense row, smoothed; 0 outside."""
    t = to_float(tl.load(target_ptr, mask=inside, other=0.0), ACC)
    return tl.where(inside, t * keep + base, 0.0)


@device
def load_class_weights(class_weight_ptr, classes, inside, ACC: tl.constexpr):
    """Weights of these classes; 1 where there are none, 0 outside."""
    if class_weight_ptr is not None:
        weights = tl.load(class_weight_ptr + classes, mask=inside, other=0.0).to(ACC)
    else:
        weights = inside.to(ACC)
    return weights


@device
def smoothing_of(smoothing, smoothing_low, ROWS: tl.constexpr, ACC: tl.constexpr):
    """(eps, 1 - eps), each (ROWS, 1)."""
    eps = tl.zeros((ROWS, 1), ACC) + smoothing + smoothing_low
    return eps, 1.0 - eps


@device
def load_named(logits_ptr, index_ptr, weight_ptr, base_ptr, confidence_ptr, class_weight_ptr, start, class_stride, row,
               is_row, classes, columns, ignore_index, eps, keep, SMOOTH: tl.constexpr, WEIGHTING: tl.constexpr,
               ROWS: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr):
    """What a row's target says: its named classes, (ROWS, COLUMNS), and the rest, (ROWS, 1).

    Returns: (the classes; which lanes name one that counts; their weights in the loss; their logits; the target of the
    same class added up, without base and class weight; class weights; which lanes are the first of their class;
    whether the row is ignored; whether all its classes exist; base; the row's share that counts; what its loss is
    multiplied by).
    """
    index_row = index_ptr + row * columns
    k = tl.arange(0, COLUMNS)[None, :]
    is_named = (k < columns) & is_row
    named = tl.load(index_row + k, mask=is_named, other=0)
    counts = is_named & (named != ignore_index.to(tl.int64))
    counted = tl.sum(counts.to(tl.int32), 1)[:, None]
    valid = (named >= 0) & (named < classes)
    in_range = tl.min(tl.where(counts, valid.to(tl.int32), 1), 1)[:, None] == 1
    named = tl.where(valid & counts, named, 0)

    base = tl.zeros((ROWS, 1), ACC)
    if base_ptr is not None:
        base = tl.load(base_ptr + row, mask=is_row, other=0.0).to(ACC)
    given = tl.where(is_named, 1.0, 0.0).to(ACC)
    if weight_ptr is not None:
        given = tl.load(weight_ptr + row * columns + k, mask=is_named, other=0.0).to(ACC)
    if confidence_ptr is not None:
        confidence = tl.load(confidence_ptr + row, mask=is_row, other=0.0).to(ACC)
        base = tl.where(classes > 1, (1.0 - confidence) / tl.maximum(classes - 1, 1), 0.0)
        given = tl.where(is_named, confidence - base, 0.0)
    total = tl.sum(given, 1)[:, None]
    scale = tl.zeros((ROWS, 1), ACC) + 1.0
    if WEIGHTING == BY_SAMPLE or WEIGHTING == BY_WEIGHT:  # noqa: SIM109 (Triton has no `in`)
        scale = total + base
    kept = tl.sum(tl.where(counts, given, 0.0), 1)[:, None]
    share = tl.where(total != 0, kept / tl.where(total != 0, total, 1.0), counted.to(ACC) / columns)
    share = tl.where(counted == columns, 1.0, share)
    if WEIGHTING == BY_WEIGHT:
        base = tl.zeros((ROWS, 1), ACC)
        given = tl.where(total != 0, given / tl.where(total != 0, total, 1.0), 1.0 / columns)
    base = base * keep
    if SMOOTH:
        base += share * (eps / classes)

    of_class = load_class_weights(class_weight_ptr, named, counts & valid, ACC)
    target = tl.where(counts, given, 0.0) * keep
    weight = target * of_class
    z = to_float(tl.load(logits_ptr + start + named * class_stride, mask=counts, other=0.0), ACC)
    # Targets of the same class added up, in the order of k.
    first_of_class = counts
    if COLUMNS > 1:
        own = target
        target = tl.zeros((ROWS, COLUMNS), ACC)
        for other in range(0, columns):
            same = (tl.load(index_row + other, mask=is_row, other=0) == named) & counts
            of_other = tl.sum(tl.where(k == other, own, 0.0), 1)[:, None]
            target += tl.where(same, of_other, 0.0)
            first_of_class = first_of_class & ((other >= k) | ~same)
    return (named, counts, weight, z, target, of_class, first_of_class, counted == 0, in_range, base, share, scale)


@device
def batch_totals(index_ptr, weight_ptr, base_ptr, confidence_ptr, class_weight_ptr, parts_ptr, rows, classes, columns,
                 ignore_index, LABELS: tl.constexpr, WEIGHTING: tl.constexpr, BLOCK: tl.constexpr,
                 PARTIAL: tl.constexpr):
    """(what a mean divides by, the mean confidence of the rows that count), from the target or the parts of
    `count_rows`."""
    at = tl.arange(0, BLOCK)
    if PARTIAL:
        counted = tl.load(parts_ptr + at)
        weights = tl.load(parts_ptr + BLOCK + at)
        confidences = tl.load(parts_ptr + 2 * BLOCK + at)
    else:
        counted, weights, confidences = batch_sums(
            index_ptr, weight_ptr, base_ptr, confidence_ptr, class_weight_ptr, at.to(tl.int64), at < rows, classes,
            columns, ignore_index, WEIGHTING == BY_BATCH_MEAN, BLOCK)
    count = tl.sum(counted)
    divisor = count
    if LABELS:
        divisor = tl.sum(weights)
    return tl.where(divisor == 0, 1.0, divisor), tl.sum(confidences) / tl.maximum(count, 1.0)


@device
def times_sample_weight(scale, sample_weight_ptr, row, is_row, ACC: tl.constexpr):
    if sample_weight_ptr is not None:
        scale = scale * tl.load(sample_weight_ptr + row, mask=is_row, other=0.0).to(ACC)
    return scale


@device
def times_row_grad(scale, row_grad_ptr, row, is_row, ACC: tl.constexpr, STEP: tl.constexpr):
    """What gradients are multiplied by: scale, and the incoming gradient, of every row (STEP 1) or of all."""
    if row_grad_ptr is not None:
        scale = scale * tl.load(row_grad_ptr + row * STEP, mask=is_row, other=0.0).to(ACC)
    return scale


# ---------------------------------------------------------------- softmax

@device
def running_softmax(maximum, exps, z, at):
    """(maximum, sum of exponentials, by how much the maximum moved down, z minus it) with another piece of the row."""
    before = maximum
    maximum = tl.maximum(before, tl.max(z, 1)[:, None])
    # At first nothing is summed; where all so far is -inf, -inf - -inf would be NaN.
    moved = tl.where((at == 0) | (before == maximum), 0.0, before - maximum)
    shifted = z - tl.where(maximum == float("-inf"), 0.0, maximum)
    exps = exps * tl.exp(moved) + tl.sum(tl.exp(shifted), 1)[:, None]
    return maximum, exps, moved, shifted


# ---------------------------------------------------------------- results

@device
def store_loss(loss_ptr, loss, row, is_row, REDUCTION: tl.constexpr):
    """The losses of the program's rows, or their sum."""
    if REDUCTION == NONE:
        tl.store(loss_ptr + row, loss, mask=is_row)
    else:
        tl.store(loss_ptr + tl.program_id(0), tl.sum(tl.sum(loss, 1), 0))


@device
def finish_loss(out_ptr, parts_ptr, finished_ptr, REDUCTION: tl.constexpr):
    """The last program to come here adds up the losses of all, in their order. finished_ptr: how many have come, 0
    before and after the launch; None where another launch adds up."""
    if REDUCTION != NONE:  # noqa: SIM102 (a condition on None wants an `if` of its own)
        if finished_ptr is not None:
            tl.debug_barrier()
            # Releases this program's loss, and acquires those of the programs that came before.
            if tl.atomic_add(finished_ptr, 1, sem="acq_rel", scope="gpu") == tl.num_programs(0) - 1:
                total = tl.zeros((SUM_BLOCK,), tl.float64)
                for at in range(0, tl.num_programs(0), SUM_BLOCK):
                    i = at + tl.arange(0, SUM_BLOCK)
                    part = tl.load(parts_ptr + i, mask=i < tl.num_programs(0), other=0.0, cache_modifier=".cg")
                    total += part.to(tl.float64)
                tl.store(out_ptr, tl.sum(total).to(out_ptr.dtype.element_ty))
                tl.store(finished_ptr, 0)


@device
def store_gradient(grad_ptr, at, grad, inside):
    tl.store(grad_ptr + at, to_storage(grad, grad_ptr.dtype.element_ty), mask=inside)
