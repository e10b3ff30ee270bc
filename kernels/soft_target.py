"""soft_target on Triton: loss and gradient of a row of logits in one read of it. Soft Augmentation Eq. 12-15.

With m = max z, S = sum_j exp(z_j - m), T = sum_j t_j and t_j = base + sum_k weight_k [index_k == j]

    loss = T log S - base sum_j (z_j - m) - sum_k weight_k (z[index_k] - m)          (+ sum_j t_j log t_j for KL)
    d loss / d z_j = T exp(z_j - m) / S - t_j

since d(log S + m)/dz_j is softmax_j, whatever m. The gradient row is written with t_j = base; a barrier later the
few named classes are written once more, with the weights of repeated classes added up, so no element of the row
is compared with every index. BCE: softplus(z_j) - t_j z_j with gradient sigmoid(z_j) - t_j.

Kernels: softmax against the classes that a target names (sparse), softmax against a dense target, and BCE (sigmoid)
against either; and one for pixels, logits (N, J, P). One launch: every program adds up the losses of its rows, and the
last to be done, which a counter tells it (`_finished.py`), adds up those of the programs in order: the same bits every
time. What all rows amount to, the rows that count for a "mean" to begin with, is found on the device: up to
`Config.count_rows` rows every program does it for itself, above another launch does it first.

A row up to `Config.one_pass` classes lies in registers. Rows that start off a 16-byte boundary (odd J) are split into
an aligned body, read and written 16 bytes at a time, and an edge of fewer than 2 vectors. A longer row is read
twice, with a running maximum the first time; the second read comes from the L2 cache.

bytes: N*J*(1 read + 1 write if a gradient is wanted) * element size; flops: about 20 N*J. Not yet run on a GPU.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
from torch import Tensor

from fastmix.ops.enums import Loss, Reduction, Weighting

from ._common import FLOAT, launch, next_power_of_2, packed_rows, vector
from ._finished import finished_programs
from ._loss import count_rows, scale_kernel, sum_parts
from ._soft_target_kernels import dense_kernel, sigmoid_kernel, sparse_kernel
from ._soft_target_pixels import pixel_kernel
from ._soft_target_rows import SUM_BLOCK


@dataclass(frozen=True)
class Config:
    """Reasoned, not measured."""

    # A row of this many float32 values fits the registers of one program without spilling (budget_triton.json).
    one_pass: int = 32768
    # A dense target is a second row in registers; the entropy of KL takes a few that sm_100 does not have.
    one_pass_dense: int = 16384
    # Pieces of a row that is read in a loop: of BCE, and of rows that do not fit.
    piece: int = 4096
    piece_double: int = 512
    # Logits of a program with short rows: four warps with 16 logits a thread, 8 where loop or class weights want
    # registers.
    tile: int = 2048
    tile_loop: int = 1024
    # Counting costs each program a 32-byte sector a row, out of L2: below this less than another launch.
    count_rows: int = 512
    count_programs: int = 128
    # Of one image and program: a warp reads 32 neighbours of a class at a time.
    pixels: int = 256
    # Below this many classes the edge of an odd row would be most of the row: single elements instead.
    split_classes: int = 256
    # Left alone, ptxas spills 8 bytes to fit one more program; these are above what the kernels then take.
    loop_registers: int = 112
    registers: int = 168

    @staticmethod
    def warps(elements: int) -> int:
        return min(16, max(4, elements // 512))


CONFIG = Config()


# ---------------------------------------------------------------- launchers

def _alignment(logits: Tensor, classes: int) -> tuple[int, bool]:
    """(VEC, EDGES) of the kernels."""
    widest = vector(logits.element_size())
    stride = logits.stride(0) if logits.shape[0] > 1 else classes
    aligned = vector(logits.element_size(), classes, stride)
    # Logits and gradient must start on the same side of a boundary for their bodies to coincide.
    if aligned == widest or classes < CONFIG.split_classes or stride != classes:
        return aligned, False
    return widest, True


@dataclass(frozen=True)
class Target:
    """What the rows are to be: named classes (index and what goes with it), or a dense target; see schemas.def."""

    index: Tensor | None = None
    weight: Tensor | None = None
    base: Tensor | None = None
    confidence: Tensor | None = None
    dense: Tensor | None = None
    ignore_index: int = 0
    weighting: int = 0

    def contiguous(self) -> Target:
        tensors = {name: value.contiguous() for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors)


@dataclass(frozen=True)
class Options:
    """What is common to both forms."""

    sample_weight: Tensor | None
    class_weight: Tensor | None
    row_grad: Tensor | None
    smoothing: float
    loss: int
    reduction: int

    @property
    def grad_step(self) -> int:
        return 0 if self.row_grad is None or self.row_grad.ndim == 0 else 1


def _run(logits: Tensor, target: Target, o: Options, need_grad: bool) -> tuple[Tensor, Tensor]:
    (rows, classes), device, double = logits.shape, logits.device, logits.dtype == torch.float64
    dtype = torch.float64 if double else torch.float32
    grad = torch.empty(logits.shape if need_grad else (0,), dtype=logits.dtype, device=device)
    out = torch.empty((rows,) if o.reduction == Reduction.NONE else (), dtype=dtype, device=device)
    if rows == 0 or classes == 0:
        return out.zero_(), grad
    logits, index = packed_rows(logits), target.index

    block = next_power_of_2(classes)
    limit = CONFIG.one_pass if target.dense is None and o.loss != Loss.KL else CONFIG.one_pass_dense
    loop = o.loss == Loss.BCE or block > (CONFIG.piece_double if double else limit)
    if loop:
        block = min(block, CONFIG.piece_double if double else CONFIG.piece)
    full = loop or double or o.class_weight is not None
    rows_here = max(1, (CONFIG.tile_loop if full else CONFIG.tile) // (2 * block if double else block))
    programs = triton.cdiv(rows, rows_here)
    vec, edges = _alignment(logits, classes)
    parts, finished = _parts(out, programs, o)
    options = {"REDUCTION": o.reduction, "GRAD_STEP": o.grad_step, "ACC": FLOAT[logits.dtype], "ROWS": rows_here,
               "BLOCK": block, "VEC": vec, "EDGES": edges, "num_warps": CONFIG.warps(block * rows_here)}
    if loop:
        options["maxnreg"] = CONFIG.loop_registers if target.dense is None and not double else CONFIG.registers
    elif rows_here > 1:
        options["maxnreg"] = CONFIG.registers
    results, sizes = (out, finished, parts, grad if need_grad else None), (rows, classes, logits.stride(0))
    smoothings = _smoothings(o.smoothing, double)
    counts, count = _counts(target, o, classes)
    columns = 1 if index is None else index.shape[1]
    if o.loss == Loss.BCE:
        launch(sigmoid_kernel, programs, device, *results, logits, index, target.weight, target.base, target.dense,
               o.sample_weight, o.class_weight, o.row_grad, counts, *sizes, columns, target.ignore_index,
               COLUMNS=next_power_of_2(columns), **count, **options)
    elif index is None:
        launch(dense_kernel, programs, device, *results, logits, target.dense, o.sample_weight, o.class_weight,
               o.row_grad, *sizes, *smoothings, LOSS=o.loss, LOOP=loop, **options)
    else:
        launch(sparse_kernel, programs, device, *results, logits, index, target.weight, target.base,
               target.confidence, o.sample_weight, o.class_weight, o.row_grad, counts, *sizes, columns,
               target.ignore_index, *smoothings, LOSS=o.loss, WEIGHTING=target.weighting,
               LABELS=counts_class_weights(target, o), SMOOTH=o.smoothing != 0.0, LOOP=loop,
               COLUMNS=next_power_of_2(columns), **count, **options)
    if parts is not out and finished is None:
        launch(sum_parts, 1, device, out, parts, programs, BLOCK=SUM_BLOCK.value, num_warps=4)
    return out, grad


def _run_pixels(logits: Tensor, target: Target, o: Options, need_grad: bool) -> tuple[Tensor, Tensor]:
    (images, classes, pixels), device, double = logits.shape, logits.device, logits.dtype == torch.float64
    dtype = torch.float64 if double else torch.float32
    rows = images * pixels
    grad = torch.empty(logits.shape if need_grad else (0,), dtype=logits.dtype, device=device)
    out = torch.empty((rows,) if o.reduction == Reduction.NONE else (), dtype=dtype, device=device)
    if rows == 0 or classes == 0:
        return out.zero_(), grad
    logits = logits.contiguous()
    block = min(CONFIG.pixels, max(16, next_power_of_2(pixels)))
    programs = images * triton.cdiv(pixels, block)
    parts, finished = _parts(out, programs, o)
    counts, count = _counts(target, o, classes)
    columns = 1 if target.index is None else target.index.shape[1]
    launch(pixel_kernel, programs, device, out, finished, parts, grad if need_grad else None, logits, target.index,
           target.weight, target.base, target.confidence, target.dense, o.sample_weight, o.class_weight, o.row_grad,
           counts, rows, classes, pixels, columns, target.ignore_index, *_smoothings(o.smoothing, double), LOSS=o.loss,
           REDUCTION=o.reduction, WEIGHTING=target.weighting, LABELS=counts_class_weights(target, o),
           SMOOTH=o.smoothing != 0.0, GRAD_STEP=o.grad_step, ACC=FLOAT[logits.dtype], PIXELS=block,
           COLUMNS=next_power_of_2(columns), num_warps=4, maxnreg=CONFIG.registers, **count)
    if parts is not out and finished is None:
        launch(sum_parts, 1, device, out, parts, programs, BLOCK=SUM_BLOCK.value, num_warps=4)
    return out, grad


def _parts(out: Tensor, programs: int, o: Options) -> tuple[Tensor, Tensor | None]:
    """(where each program's loss goes, what counts the programs that are done: None where there is nothing to add up,
    or another launch has to do it)."""
    if o.reduction == Reduction.NONE or programs == 1:
        return out, None
    return out.new_empty(programs), finished_programs(out.device)


def _smoothings(smoothing: float, double: bool) -> tuple[float, float]:
    """Triton takes a float argument as float32; a float64 loss gets the rest of it as well."""
    high, = struct.unpack("f", struct.pack("f", smoothing))
    return high, smoothing - high if double else 0.0


def counts_class_weights(target: Target, o: Options) -> bool:
    """Whether a mean divides by the class weights of the labels, as torch does for labels."""
    return (target.weight is None and target.confidence is None and o.class_weight is not None
            and o.loss != Loss.BCE)


def _counts(target: Target, o: Options, classes: int) -> tuple[Tensor | None, dict[str, Any]]:
    """(parts of what all rows amount to, None where every program finds that itself; meta arguments for it)."""
    index, mean_confidence = target.index, target.weighting == Weighting.BY_BATCH_MEAN
    if index is None or not (mean_confidence or o.reduction == Reduction.MEAN):
        return None, {"COUNT_BLOCK": 1, "COUNT_PARTIAL": False}
    rows = index.shape[0]
    if rows <= CONFIG.count_rows:
        return None, {"COUNT_BLOCK": next_power_of_2(rows), "COUNT_PARTIAL": False}
    programs = CONFIG.count_programs
    parts = torch.empty(3 * programs, dtype=torch.float64, device=index.device)
    share = triton.cdiv(rows, programs)
    launch(count_rows, programs, index.device, parts, index, target.weight, target.base, target.confidence,
           o.class_weight, rows, classes, index.shape[1], share, target.ignore_index, MEAN_CONFIDENCE=mean_confidence,
           BLOCK=min(1024, next_power_of_2(share)), PARTS=programs)
    return parts, {"COUNT_BLOCK": programs, "COUNT_PARTIAL": True}


def soft_target(logits: Tensor, index: Tensor, weight: Tensor | None, base: Tensor | None, confidence: Tensor | None,
                sample_weight: Tensor | None, class_weight: Tensor | None, row_grad: Tensor | None,
                label_smoothing: float, ignore_index: int, loss: int, weighting: int, reduction: int,
                need_grad: bool) -> tuple[Tensor, Tensor]:
    target = Target(index, weight, base, confidence, None, ignore_index, weighting)
    return _both(logits, target, sample_weight, class_weight, row_grad, label_smoothing, loss, reduction, need_grad)


def soft_target_dense(logits: Tensor, target: Tensor, sample_weight: Tensor | None, class_weight: Tensor | None,
                      row_grad: Tensor | None, label_smoothing: float, loss: int, reduction: int,
                      need_grad: bool) -> tuple[Tensor, Tensor]:
    return _both(logits, Target(dense=target), sample_weight, class_weight, row_grad, label_smoothing, loss, reduction,
                 need_grad)


def _both(logits: Tensor, target: Target, sample_weight: Tensor | None, class_weight: Tensor | None,
          row_grad: Tensor | None, smoothing: float, loss: int, reduction: int, need_grad: bool
          ) -> tuple[Tensor, Tensor]:
    sample_weight, class_weight, row_grad = (
        t if t is None else t.contiguous() for t in (sample_weight, class_weight, row_grad))
    run = _run if logits.ndim == 2 else _run_pixels
    return run(logits, target.contiguous(), Options(sample_weight, class_weight, row_grad, smoothing, loss, reduction),
               need_grad)


def scale_gradient_(grad: Tensor, g: Tensor) -> None:
    """grad (contiguous) times g in place. A 0-d g takes one launch that touches nothing where g is 1, without a sync.

    g: 0-d, or (N,) for the rows of grad (N, J).
    """
    if g.ndim == 1:
        grad.mul_(g.unsqueeze(1))
        return
    block = 8192
    launch(scale_kernel, triton.cdiv(grad.numel(), block), grad.device, grad, g, grad.numel(), BLOCK=block,
           num_warps=8)
