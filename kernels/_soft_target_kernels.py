"""The kernels of soft_target over rows (N, J): softmax against named classes, softmax against a dense target, BCE."""

from __future__ import annotations

import triton
import triton.language as tl

from fastmix.ops.enums import Loss

from ._loss import bce_terms, sigmoid, weighted, xlogx
from ._soft_target_rows import (
    BY_BATCH_MEAN,
    MEAN,
    batch_totals,
    finish_loss,
    load_class_weights,
    load_edge,
    load_named,
    load_piece,
    load_target,
    row_layout,
    running_softmax,
    smoothing_of,
    store_gradient,
    store_loss,
    times_row_grad,
    times_sample_weight,
)

KL = tl.constexpr(Loss.KL.value)


@triton.jit(do_not_specialize=["ignore_index"])
def sparse_kernel(
    out_ptr, finished_ptr,                                      # (), (1,); see finish_loss; None = no sum
    loss_ptr, grad_ptr, logits_ptr, index_ptr, weight_ptr,      # (programs,) or (N,); (N, J) x2, (N, K) x2
    base_ptr, confidence_ptr, sample_weight_ptr,                # (N,) x3; None = absent
    class_weight_ptr, row_grad_ptr, parts_ptr,                  # (J,), () or (N,), (3 * COUNT_BLOCK,)
    rows, classes, row_stride, columns,                         # columns = K
    ignore_index, smoothing, smoothing_low,                     # label smoothing = smoothing + smoothing_low
    LOSS: tl.constexpr, REDUCTION: tl.constexpr, WEIGHTING: tl.constexpr, LABELS: tl.constexpr, SMOOTH: tl.constexpr,
    GRAD_STEP: tl.constexpr, ACC: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, VEC: tl.constexpr,
    EDGES: tl.constexpr, LOOP: tl.constexpr, COLUMNS: tl.constexpr, COUNT_BLOCK: tl.constexpr,
    COUNT_PARTIAL: tl.constexpr,
):  # fmt: skip
    """Softmax against the K classes that each row names, and one base (times class weights) for all others."""
    BASE: tl.constexpr = SMOOTH or base_ptr is not None or confidence_ptr is not None
    WEIGHTED: tl.constexpr = BASE and class_weight_ptr is not None
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    is_row = row < rows
    start, body_start, grad_start, head, body = row_layout(row, classes, row_stride, ROWS, VEC, EDGES)
    lane = tl.arange(0, BLOCK)[None, :]
    if EDGES:
        edge_class, is_edge, edge_z = load_edge(logits_ptr, start, head, body, classes, is_row, VEC, ACC)
    eps, keep = smoothing_of(smoothing, smoothing_low, ROWS, ACC)
    (named, counts, named_weight, named_z, named_target, of_named, first_of_class, ignored, in_range, base, _,
     scale) = load_named(logits_ptr, index_ptr, weight_ptr, base_ptr, confidence_ptr, class_weight_ptr, start, 1, row,
                         is_row, classes, columns, ignore_index, eps, keep, SMOOTH, WEIGHTING, ROWS, COLUMNS, ACC)
    # What is left of them later: fewer registers beside the row.
    named_wanted = (base + named_target) * of_named
    if LOSS == KL:
        named_entropy = tl.sum(tl.where(first_of_class, of_named * xlogx(base + named_target), 0.0), 1)[:, None]
        distinct = tl.sum(tl.where(first_of_class, of_named, 0.0), 1)[:, None]
        if not WEIGHTED:
            named_entropy += (classes - distinct) * xlogx(base)
    if REDUCTION == MEAN or WEIGHTING == BY_BATCH_MEAN:
        divisor, confidence = batch_totals(index_ptr, weight_ptr, base_ptr, confidence_ptr, class_weight_ptr, parts_ptr,
                                           rows, classes, columns, ignore_index.to(tl.int64), LABELS, WEIGHTING,
                                           COUNT_BLOCK, COUNT_PARTIAL)
        if REDUCTION == MEAN:
            scale = scale / divisor.to(ACC)
        if WEIGHTING == BY_BATCH_MEAN:
            scale = scale * confidence.to(ACC)
    scale = times_sample_weight(scale, sample_weight_ptr, row, is_row, ACC)

    # The sums over the row. exps: of softmax; spread: of class weights times z - maximum; weights: of class weights.
    maximum = tl.zeros((ROWS, 1), ACC) + float("-inf")
    exps = tl.zeros((ROWS, 1), ACC)
    spread = tl.zeros((ROWS, 1), ACC)
    weights = tl.zeros((ROWS, 1), ACC)
    if EDGES:
        maximum = tl.max(edge_z, 1)[:, None]
    if LOOP:
        for at in range(0, classes, BLOCK):
            inside, z, t = load_piece(logits_ptr, None, body_start, grad_start, at + lane, body, is_row, base, keep,
                                      ACC)
            maximum, exps, moved, shifted = running_softmax(maximum, exps, z, at)
            if WEIGHTED:
                c = load_class_weights(class_weight_ptr, head + at + lane, inside, ACC)
                spread += weighted(weights, moved) + tl.sum(weighted(c, shifted), 1)[:, None]
                weights += tl.sum(c, 1)[:, None]
            elif BASE:
                spread += at * moved + tl.sum(tl.where(inside, shifted, 0.0), 1)[:, None]
    else:
        inside, z, t = load_piece(logits_ptr, None, body_start, grad_start, lane, body, is_row, base, keep, ACC)
        maximum = tl.maximum(maximum, tl.max(z, 1)[:, None])
        e = tl.exp(z - maximum)
        exps = tl.sum(e, 1)[:, None]
        if WEIGHTED:
            c = load_class_weights(class_weight_ptr, head + lane, inside, ACC)
            spread = tl.sum(weighted(c, z - maximum), 1)[:, None]
            weights = tl.sum(c, 1)[:, None]
        elif BASE:
            spread = tl.sum(tl.where(inside, z - maximum, 0.0), 1)[:, None]
    if EDGES:
        edge_shifted = edge_z - maximum
        exps += tl.sum(tl.exp(edge_shifted), 1)[:, None]
        if WEIGHTED:
            edge_c = load_class_weights(class_weight_ptr, edge_class, is_edge, ACC)
            spread += tl.sum(weighted(edge_c, edge_shifted), 1)[:, None]
            weights += tl.sum(edge_c, 1)[:, None]
        elif BASE:
            spread += tl.sum(tl.where(is_edge, edge_shifted, 0.0), 1)[:, None]
    if not WEIGHTED:
        weights += classes

    total = weighted(base, weights) + tl.sum(named_weight, 1)[:, None]
    dot = weighted(base, spread) + tl.sum(weighted(named_weight, named_z - maximum), 1)[:, None]
    extra = tl.zeros((ROWS, 1), ACC)
    if LOSS == KL:
        extra = named_entropy
        if WEIGHTED:
            extra += (weights - distinct) * xlogx(base)
    loss = tl.where(in_range, total * tl.log(exps) - dot + extra, float("nan")) * scale
    store_loss(loss_ptr, tl.where(is_row & ~ignored, loss, 0.0), row, is_row, REDUCTION)

    if grad_ptr is not None:
        scale = times_row_grad(scale, row_grad_ptr, row, is_row, ACC, GRAD_STEP)
        scale = tl.where(in_range, scale, float("nan"))
        factor = scale * total / exps
        if LOOP:
            for at in range(0, classes, BLOCK):
                inside, z, t = load_piece(logits_ptr, None, body_start, grad_start, at + lane, body, is_row, base, keep,
                                          ACC)
                if WEIGHTED:
                    t = t * load_class_weights(class_weight_ptr, head + at + lane, inside, ACC)
                grad = tl.where(ignored, 0.0, tl.exp(z - maximum) * factor - scale * t)
                store_gradient(grad_ptr, grad_start + (at + lane), grad, inside)
        else:
            if WEIGHTED:
                t = t * c
            store_gradient(grad_ptr, grad_start + lane, tl.where(ignored, 0.0, e * factor - scale * t), inside)
        if EDGES:
            edge_t = base
            if WEIGHTED:
                edge_t = base * edge_c
            edge_grad = tl.where(ignored, 0.0, tl.exp(edge_z - maximum) * factor - scale * edge_t)
            store_gradient(grad_ptr, start + edge_class, edge_grad, is_edge)
        # The named classes were written above by other threads, without their weights.
        tl.debug_barrier()
        named_grad = tl.exp(named_z - maximum) * factor - scale * named_wanted
        store_gradient(grad_ptr, row * classes + named, named_grad, counts & in_range)
    finish_loss(out_ptr, loss_ptr, finished_ptr, REDUCTION)


@triton.jit
def dense_kernel(
    out_ptr, finished_ptr,                                      # (), (1,); see finish_loss; None = no sum
    loss_ptr, grad_ptr, logits_ptr, target_ptr, sample_weight_ptr,  # (programs,) or (N,); (N, J) x3, (N,)
    class_weight_ptr, row_grad_ptr,                                 # (J,), () or (N,); None = absent
    rows, classes, row_stride, smoothing, smoothing_low,
    LOSS: tl.constexpr, REDUCTION: tl.constexpr, GRAD_STEP: tl.constexpr, ACC: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr, VEC: tl.constexpr, EDGES: tl.constexpr, LOOP: tl.constexpr,
):  # fmt: skip
    """Softmax against a target of (N, J)."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    is_row = row < rows
    start, body_start, grad_start, head, body = row_layout(row, classes, row_stride, ROWS, VEC, EDGES)
    lane = tl.arange(0, BLOCK)[None, :]
    if EDGES:
        edge_class, is_edge, edge_z = load_edge(logits_ptr, start, head, body, classes, is_row, VEC, ACC)
    eps, keep = smoothing_of(smoothing, smoothing_low, ROWS, ACC)
    base = eps / classes
    scale = tl.zeros((ROWS, 1), ACC) + 1.0
    if REDUCTION == MEAN:
        scale = scale / (tl.zeros((ROWS, 1), ACC) + rows)
    scale = times_sample_weight(scale, sample_weight_ptr, row, is_row, ACC)

    # The sums over the row, c the class weights. exps: of softmax; total, dot, extra: of c t, c t (z - maximum) and,
    # for KL, c t log t.
    maximum = tl.zeros((ROWS, 1), ACC) + float("-inf")
    exps = tl.zeros((ROWS, 1), ACC)
    total = tl.zeros((ROWS, 1), ACC)
    dot = tl.zeros((ROWS, 1), ACC)
    extra = tl.zeros((ROWS, 1), ACC)
    if EDGES:
        edge_t = load_target(target_ptr + start + edge_class, is_edge, base, keep, ACC)
        edge_c = load_class_weights(class_weight_ptr, edge_class, is_edge, ACC)
        maximum = tl.max(edge_z, 1)[:, None]
    if LOOP:
        for at in range(0, classes, BLOCK):
            inside, z, t = load_piece(logits_ptr, target_ptr, body_start, grad_start, at + lane, body, is_row, base,
                                      keep, ACC)
            c = load_class_weights(class_weight_ptr, head + at + lane, inside, ACC)
            maximum, exps, moved, shifted = running_softmax(maximum, exps, z, at)
            dot += weighted(total, moved) + tl.sum(weighted(c * t, shifted), 1)[:, None]
            total += tl.sum(c * t, 1)[:, None]
            if LOSS == KL:
                extra += tl.sum(c * xlogx(t), 1)[:, None]
    else:
        inside, z, t = load_piece(logits_ptr, target_ptr, body_start, grad_start, lane, body, is_row, base, keep, ACC)
        c = load_class_weights(class_weight_ptr, head + lane, inside, ACC)
        maximum = tl.maximum(maximum, tl.max(z, 1)[:, None])
        e = tl.exp(z - maximum)
        exps = tl.sum(e, 1)[:, None]
        if LOSS == KL:
            extra = tl.sum(c * xlogx(t), 1)[:, None]
        t = c * t
        total = tl.sum(t, 1)[:, None]
        dot = tl.sum(weighted(t, z - maximum), 1)[:, None]
    if EDGES:
        edge_shifted = edge_z - maximum
        exps += tl.sum(tl.exp(edge_shifted), 1)[:, None]
        if LOSS == KL:
            extra += tl.sum(edge_c * xlogx(edge_t), 1)[:, None]
        edge_t = edge_c * edge_t
        total += tl.sum(edge_t, 1)[:, None]
        dot += tl.sum(weighted(edge_t, edge_shifted), 1)[:, None]

    loss = (total * tl.log(exps) - dot + extra) * scale
    store_loss(loss_ptr, tl.where(is_row, loss, 0.0), row, is_row, REDUCTION)

    if grad_ptr is not None:
        scale = times_row_grad(scale, row_grad_ptr, row, is_row, ACC, GRAD_STEP)
        factor = scale * total / exps
        if LOOP:
            for at in range(0, classes, BLOCK):
                inside, z, t = load_piece(logits_ptr, target_ptr, body_start, grad_start, at + lane, body, is_row, base,
                                          keep, ACC)
                t = t * load_class_weights(class_weight_ptr, head + at + lane, inside, ACC)
                store_gradient(grad_ptr, grad_start + (at + lane), tl.exp(z - maximum) * factor - scale * t, inside)
        else:
            store_gradient(grad_ptr, grad_start + lane, e * factor - scale * t, inside)
        if EDGES:
            edge_grad = tl.exp(edge_z - maximum) * factor - scale * edge_t
            store_gradient(grad_ptr, start + edge_class, edge_grad, is_edge)
    finish_loss(out_ptr, loss_ptr, finished_ptr, REDUCTION)


@triton.jit(do_not_specialize=["ignore_index"])
def sigmoid_kernel(
    out_ptr, finished_ptr,                                      # (), (1,); see finish_loss; None = no sum
    loss_ptr, grad_ptr, logits_ptr, index_ptr, weight_ptr,      # as of `sparse_kernel`
    base_ptr, target_ptr, sample_weight_ptr,                    # target: (N, J), or None and index (N, K)
    class_weight_ptr, row_grad_ptr, parts_ptr,
    rows, classes, row_stride, columns, ignore_index,
    REDUCTION: tl.constexpr, GRAD_STEP: tl.constexpr, ACC: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    VEC: tl.constexpr, EDGES: tl.constexpr, COLUMNS: tl.constexpr, COUNT_BLOCK: tl.constexpr,
    COUNT_PARTIAL: tl.constexpr,
):  # fmt: skip
    """BCE. Nothing of the row as a whole is needed for the gradient: one loop for both."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    is_row = row < rows
    start, body_start, grad_start, head, body = row_layout(row, classes, row_stride, ROWS, VEC, EDGES)
    lane = tl.arange(0, BLOCK)[None, :]
    if EDGES:
        edge_class, is_edge, edge_z = load_edge(logits_ptr, start, head, body, classes, is_row, VEC, ACC)
    eps, keep = smoothing_of(0.0, 0.0, ROWS, ACC)
    base = tl.zeros((ROWS, 1), ACC)
    share = base + 1.0
    scale = base + 1.0
    ignored = row < 0
    in_range = row >= 0
    divisor = tl.zeros((1, 1), ACC) + rows
    if index_ptr is not None:
        (named, counts, named_weight, named_z, named_target, of_named, _, ignored, in_range, base, share,
         scale) = load_named(logits_ptr, index_ptr, weight_ptr, base_ptr, None, class_weight_ptr, start, 1, row, is_row,
                             classes, columns, ignore_index, eps, keep, False, 0, ROWS, COLUMNS, ACC)
        if REDUCTION == MEAN:
            counted, _ = batch_totals(index_ptr, weight_ptr, base_ptr, None, None, parts_ptr, rows, classes,
                                               columns, ignore_index.to(tl.int64), False, 0, COUNT_BLOCK,
                                               COUNT_PARTIAL)
            divisor = tl.zeros((1, 1), ACC) + counted.to(ACC)
    if REDUCTION == MEAN:
        scale = scale / divisor / (tl.zeros((ROWS, 1), ACC) + classes)
    scale = times_sample_weight(scale, sample_weight_ptr, row, is_row, ACC)

    loss = tl.zeros((ROWS, 1), ACC)
    grad_scale = times_row_grad(tl.where(in_range, scale, float("nan")), row_grad_ptr, row, is_row, ACC, GRAD_STEP)
    if EDGES:
        edge_c = load_class_weights(class_weight_ptr, edge_class, is_edge, ACC)
        edge_t = edge_c * base
        if target_ptr is not None:
            edge_t = edge_c * load_target(target_ptr + start + edge_class, is_edge, base, keep, ACC)
        loss = tl.sum(bce_terms(edge_z, share * edge_c, edge_t, is_edge, ACC), 1)[:, None]
        if grad_ptr is not None:
            edge_grad = tl.where(ignored, 0.0, grad_scale * (share * edge_c * sigmoid(edge_z) - edge_t))
            store_gradient(grad_ptr, start + edge_class, edge_grad, is_edge)
    for at in range(0, classes, BLOCK):
        inside, z, t = load_piece(logits_ptr, target_ptr, body_start, grad_start, at + lane, body, is_row, base, keep,
                                  ACC)
        c = load_class_weights(class_weight_ptr, head + at + lane, inside, ACC)
        loss += tl.sum(bce_terms(z, share * c, c * t, inside, ACC), 1)[:, None]
        if grad_ptr is not None:
            grad = tl.where(ignored, 0.0, grad_scale * (share * c * sigmoid(z) - c * t))
            store_gradient(grad_ptr, grad_start + (at + lane), grad, inside)
    if index_ptr is not None:
        loss -= tl.sum(weighted(named_weight, named_z), 1)[:, None]
    loss = tl.where(in_range, loss, float("nan")) * scale
    store_loss(loss_ptr, tl.where(is_row & ~ignored, loss, 0.0), row, is_row, REDUCTION)

    if grad_ptr is not None and index_ptr is not None:
        # The named classes were written above by other threads, without their weights.
        tl.debug_barrier()
        named_grad = grad_scale * (of_named * (share * sigmoid(named_z) - base - named_target))
        store_gradient(grad_ptr, row * classes + named, named_grad, counts & in_range)
    finish_loss(out_ptr, loss_ptr, finished_ptr, REDUCTION)
