"""What the kernels of soft_target share: where a row lies, its target, softmax's sums over it, and the writes."""

from __future__ import annotations

import triton.language as tl

from fastmix.ops.enums import Reduction

from ._common import device, to_float, to_storage

NONE, MEAN = tl.constexpr(Reduction.NONE.value), tl.constexpr(Reduction.MEAN.value)


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
def base_of(base_ptr, row, is_row, classes, smoothing, smoothing_low, SMOOTH: tl.constexpr, ROWS: tl.constexpr,
            ACC: tl.constexpr):
    """(what every class of the row has as target, what label smoothing leaves of the rest of it)."""
    eps = tl.zeros((ROWS, 1), ACC) + smoothing + smoothing_low
    keep = 1.0 - eps
    base = tl.zeros((ROWS, 1), ACC)
    if base_ptr is not None:
        base = tl.load(base_ptr + row, mask=is_row, other=0.0).to(ACC) * keep
    if SMOOTH:
        base += eps / classes
    return base, keep


@device
def load_named(logits_ptr, index_ptr, weight_ptr, start, row, is_row, classes, columns, ignore_index, keep,
               ROWS: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr):
    """The classes that a row's target names, (ROWS, COLUMNS).

    Returns: (the classes, which lanes name one, their weights, logits, and the weights of the same class added up,
    which lanes are the first of their class, whether the row is ignored, whether all its classes exist).
    """
    index_row = index_ptr + row * columns
    k = tl.arange(0, COLUMNS)[None, :]
    is_named = (k < columns) & is_row
    named = tl.load(index_row + k, mask=is_named, other=0)
    ignored = tl.load(index_row, mask=is_row, other=0) == ignore_index.to(tl.int64)
    valid = (named >= 0) & (named < classes)
    in_range = tl.min(tl.where(is_named, valid.to(tl.int32), 1), 1)[:, None] == 1
    named = tl.where(valid, named, 0)
    if weight_ptr is not None:
        weight = tl.load(weight_ptr + row * columns + k, mask=is_named, other=0.0).to(ACC) * keep
    else:
        weight = tl.where(is_named, keep, 0.0)
    z = to_float(tl.load(logits_ptr + start + named, mask=is_named, other=0.0), ACC)
    # Weights of the same class added up, in the order of k.
    total = weight
    first_of_class = is_named
    if COLUMNS > 1:
        total = tl.zeros((ROWS, COLUMNS), ACC)
        for other in range(0, columns):
            same = tl.load(index_row + other, mask=is_row, other=0) == named
            other_weight = tl.zeros((ROWS, 1), ACC) + keep
            if weight_ptr is not None:
                other_weight = tl.load(weight_ptr + row * columns + other, mask=is_row, other=0.0).to(ACC) * keep
            total += tl.where(same, other_weight, 0.0)
            first_of_class = first_of_class & ((other >= k) | ~same)
    return named, is_named, weight, z, total, first_of_class, ignored, in_range


@device
def valid_rows(index_ptr, counts_ptr, rows, index_stride, ignore_index, BLOCK: tl.constexpr, PARTIAL: tl.constexpr):
    """The number of rows that are not ignored, from index or from the partial counts of `count_rows`."""
    at = tl.arange(0, BLOCK)
    if PARTIAL:
        counted = tl.load(counts_ptr + at)
    else:
        first = tl.load(index_ptr + at.to(tl.int64) * index_stride, mask=at < rows, other=0)
        counted = ((at < rows) & (first != ignore_index)).to(tl.int64)
    return tl.sum(counted)


@device
def times_sample_weight(scale, sample_weight_ptr, row, is_row, ACC: tl.constexpr):
    if sample_weight_ptr is not None:
        scale = scale * tl.load(sample_weight_ptr + row, mask=is_row, other=0.0).to(ACC)
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
def store_gradient(grad_ptr, at, grad, inside):
    tl.store(grad_ptr + at, to_storage(grad, grad_ptr.dtype.element_ty), mask=inside)
