"""What every reference function shares: the accumulation type, and rows whose index leaves the batch."""

from __future__ import annotations

import torch
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def inside(index: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """(index with values outside [0, size) replaced by 0, whether each value was inside).

    A gather with a bad index would kill the CUDA context; the caller makes those rows NaN instead.
    """
    valid = (index >= 0) & (index < size)
    return torch.where(valid, index, 0), valid


def poison(out: Tensor, valid: Tensor) -> Tensor:
    """NaN in the rows of out (N, ...) whose entry in valid (N,) or (N, K) is False."""
    rows = valid if valid.ndim == 1 else valid.all(1)
    return torch.where(rows.view(-1, *[1] * (out.ndim - 1)), out, float("nan"))


def in_vmap() -> bool:
    """Whether tensors stand for batches of them (``torch.func.vmap``), whose values nobody can look at."""
    if torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active():
        return False
    functorch = torch._C._functorch
    return any(each.key() == functorch.TransformType.Vmap for each in functorch.get_interpreter_stack() or ())


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of images (N, C, H, W) lie innermost in memory, and not in the default order as well."""
    if x.ndim != 4 or x.is_contiguous() or in_vmap():  # torch tells no memory format there
        return False
    return x.is_contiguous(memory_format=torch.channels_last)
