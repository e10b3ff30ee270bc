"""``out[n] = sum_k weight[n, k] * x[index[n, k]]``: Mixup at K = 2, DMixup at any K, Manifold Mixup on features.

Source: K-image mixing Eq. 2. Backward scatters ``weight[n, k] g[n]`` to the sources, gathered per source and in
the order of (n, k), so it is deterministic without atomics.
"""

# bytes: N*D*(K distinct sources at most, one read each at least) read + N*D written; flops: 2 N*D*K

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..reference import functional as reference
from . import checks as check
from .dispatch import must_check_values, select
from .operator import Operator
from .planes import is_clip, not_a_mask, on_frames
from .view import View, check_view, read_through, view_of_frames


def _fake(x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    torch._check(index.ndim == 2 and index.shape[0] == x.shape[0])
    torch._check(weight.shape == index.shape)
    return torch.empty_like(x)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return _blend_backward(ctx.backend, grad, *ctx.saved_tensors), None, None


def _backward_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return _blend(ctx.backend, grad, *ctx.saved_tensors), None, None


_blend = Operator("blend", _fake, setup=_setup, backward=_backward)
_blend_backward = Operator("blend_backward", _fake, setup=_setup, backward=_backward_backward)


def blend(x: Tensor, index: Tensor, weight: Tensor, *, view: View | None = None) -> Tensor:
    """Weighted sums of rows of a batch.

    Args:
        x: (N, ...) float32, bfloat16, float16 or float64; any strides. With a view (N, C, H, W) uint8.
        index: (N, K) int64 rows of x.
        weight: (N, K) float32; must not require grad.
        view: reads every source as a normalised image, in the same pass. See `fastmix.View`.
    Returns: like x, in x's memory format (with a view: of its dtype and memory format). Sums are float32 (float64 for
        float64). Differentiable in x, any order.
    Raises: ValueError for shapes, devices and a weight that requires grad; TypeError for dtypes; IndexError for an
        index outside the batch (CPU; on a GPU the row is NaN).
    Source: refined data augmentation Eq. 1 (Mixup); K-image mixing Eq. 2.
    """
    if view is None:
        found = _blend.checked(x, index, weight)
        if found is not None:
            return found
    if view is not None and is_clip(x):
        return on_frames(lambda frames: blend(frames, index, weight, view=view_of_frames("blend", view, x)), x)
    if view is not None:
        check_view("blend", x, view)
    else:
        check.tensor("blend", "x", x)
        not_a_mask("blend", x)
        check.dtype("blend", "x", x, *check.FLOATS)
        if x.ndim == 0:
            raise ValueError("blend: x has shape (), want (N, ...)")
    check_index("blend", index, x)
    check.shape("blend", "weight", weight, index.shape, "(N, K) like index")
    check.dtype("blend", "weight", weight, torch.float32)
    check.no_grad_needed("blend", "weight", weight)
    check.same_device("blend", x=x, index=index, weight=weight)
    backend = select("blend" if view is None else "view", x)
    if must_check_values(backend, x):
        check.rows_in_range("blend", "index", index, 0, x.shape[0])
    if view is not None:
        return read_through(backend, "view_blend", x, (index, weight), view)
    if backend == "reference":
        return reference.blend(x, index, weight)
    return _blend(backend, x, index, weight)


def check_index(op: str, index: Tensor, x: Tensor) -> None:
    """index is (N, K) int64 with K >= 1 and N of x."""
    check.tensor(op, "index", index)
    if index.ndim != 2 or index.shape[0] != x.shape[0] or index.shape[1] < 1:
        raise ValueError(f"{op}: index has shape {tuple(index.shape)}, want ({x.shape[0]}, K) with K >= 1")
    check.dtype(op, "index", index, torch.int64)
