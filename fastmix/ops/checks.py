"""Argument checks shared by every public function: host-side, without reading a tensor's values.

Each raises with ``op: argument has ..., want ...``. They cost a few hundred nanoseconds and trace away under
``torch.compile``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .enums import FLOAT_TYPES

FLOATS = FLOAT_TYPES


def tensor(op: str, name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} is {type(value).__name__}, want a tensor")


def ndim(op: str, name: str, value: Tensor, want: int) -> None:
    tensor(op, name, value)
    if value.ndim != want:
        raise ValueError(f"{op}: {name} has shape {tuple(value.shape)}, want {want} dimensions")


def shape(op: str, name: str, value: Tensor, want: tuple[int, ...], text: str) -> None:
    """want is compared, text explains it: ``shape("blend", "index", index, (8, 2), "(8, K)")``."""
    tensor(op, name, value)
    if value.shape != want:
        raise ValueError(f"{op}: {name} has shape {tuple(value.shape)}, want {tuple(want)}, {text}")


def dtype(op: str, name: str, value: Tensor, *want: torch.dtype) -> None:
    if value.dtype not in want:
        names = " or ".join(str(d).removeprefix("torch.") for d in want)
        raise TypeError(f"{op}: {name} has dtype {str(value.dtype).removeprefix('torch.')}, want {names}")


def same_device(op: str, **tensors: Tensor | None) -> None:
    for value in tensors.values():
        if value is not None and not value.is_cpu:
            break
    else:
        return
    first_name, first = next(iter(tensors.items()))
    for name, value in tensors.items():
        if value is not None and value.device != first.device:
            raise ValueError(f"{op}: {name} is on {value.device}, want {first.device} like {first_name}")


def images(op: str, name: str, value: Tensor) -> None:
    ndim(op, name, value, 4)
    dtype(op, name, value, *FLOATS)


def no_grad_needed(op: str, name: str, value: Tensor) -> None:
    """Mixing weights are data: a gradient asked of them would be silently absent."""
    if value.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{op}: {name} requires grad, want a tensor that does not: no gradient flows to it")


def contiguous(op: str, name: str, value: Tensor) -> None:
    if not value.is_contiguous():
        raise ValueError(f"{op}: {name} has strides {value.stride()}, want a contiguous tensor of shape "
                         f"{tuple(value.shape)}")


def at_least(op: str, name: str, value: int, low: int) -> None:
    if not hasattr(value, "__index__"):
        raise TypeError(f"{op}: {name} is {value!r}, want a whole number")
    if value < low:
        raise ValueError(f"{op}: {name} is {value}, want at least {low}")


def choice(op: str, name: str, value: str, options: Sequence[str]) -> None:
    if value not in options:
        raise ValueError(f"{op}: {name} is {value!r}, want one of {', '.join(map(repr, options))}")


def rows_in_range(op: str, name: str, value: Tensor, low: int, high: int, ignore: int | None = None) -> None:
    """Raises IndexError naming the first row with a value outside [low, high). Reads the values (a sync on CUDA).

    ignore: this value passes.
    """
    rows = value.unsqueeze(1) if value.ndim == 1 else value.flatten(1)
    bad = (rows < low) | (rows >= high)
    if ignore is not None:
        bad &= rows != ignore
    if bool(bad.any()):
        row, column = (int(i) for i in bad.nonzero()[0])
        raise IndexError(f"{op}: {name} of row {row} is {int(rows[row, column])}, want a value in [{low}, {high})")
