"""Argument checks shared by every public function: host-side, without reading a tensor's values.

Each raises with ``op: argument has ..., want ...``. They cost a few hundred nanoseconds and trace away under
``torch.compile``.
"""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .enums import FLOAT_TYPES

FLOATS = FLOAT_TYPES
FLOAT32_MAX, FLOAT32_TINY = torch.finfo(torch.float32).max, torch.finfo(torch.float32).tiny


def tensor(op: str, name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} is {type(value).__name__}, want a tensor")
    if value.layout is not torch.strided or value.is_quantized or value.is_nested:
        kind = "nested" if value.is_nested else "quantized" if value.is_quantized else str(value.layout).split(".")[1]
        raise TypeError(f"{op}: {name} is a {kind.lstrip('_')} tensor, want a plain one (strided)")


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


# ---------------------------------------------------------------- numbers and choices

def shown(value: object) -> str:
    """A value in a message: short, whatever it is, and without an address."""
    text = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
    if " at 0x" in text:
        text = f"{type(value).__module__}.{type(value).__name__}".removeprefix("builtins.")
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def number(op: str, name: str, value: Any, want: str = "a number") -> float:
    """A real number as a float, itself where it is one. TypeError for bools, strings, lists and tensors."""
    if value.__class__ is float or torch.compiler.is_compiling() or isinstance(value, (torch.SymFloat, torch.SymInt)):
        return value  # type: ignore[no-any-return]
    if value.__class__ is not int and (isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real)):
        raise TypeError(f"{op}: {name} is {shown(value)}, want {want}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{op}: {name} is {shown(value)}, want {want}") from None


def share(op: str, name: str, value: Any) -> float:
    found = number(op, name, value, "a value in [0, 1]")
    if not 0.0 <= found <= 1.0:
        raise ValueError(f"{op}: {name} is {value}, want a value in [0, 1]")
    return found


def positive(op: str, name: str, value: Any) -> float:
    """Above 0 and a float32 (one of full precision), in which random numbers are drawn."""
    found = number(op, name, value, "a finite number above 0")
    if not FLOAT32_TINY <= found <= FLOAT32_MAX:
        kept = " that float32 holds" if 0.0 < found < math.inf else ""
        raise ValueError(f"{op}: {name} is {value}, want a finite number above 0{kept}")
    return found


def not_negative(op: str, name: str, value: Any) -> float:
    found = number(op, name, value, "a finite number >= 0")
    if not 0.0 <= found <= FLOAT32_MAX:
        raise ValueError(f"{op}: {name} is {value}, want a finite number >= 0")
    return found


def integer(op: str, name: str, value: Any, want: str = "a whole number") -> int:
    """An int64. TypeError for what is no whole number, bools among it."""
    if torch.compiler.is_compiling() or isinstance(value, torch.SymInt):  # what is compared becomes a guard
        return value  # type: ignore[no-any-return]
    whole = value
    if value.__class__ is not int:
        try:
            if isinstance(value, (bool, np.bool_, Tensor)):
                raise TypeError
            whole = operator.index(value)
        except TypeError:
            raise TypeError(f"{op}: {name} is {shown(value)}, want {want}") from None
    if not -2**63 <= whole < 2**63:
        raise ValueError(f"{op}: {name} is {shown(value)}, want {want} of 64 bits")
    return whole  # type: ignore[no-any-return]


def at_least(op: str, name: str, value: Any, low: int) -> int:
    value = integer(op, name, value)
    if value < low:
        raise ValueError(f"{op}: {name} is {value}, want at least {low}")
    return value


def pair(op: str, name: str, value: Any, want: str, low: int = 1) -> tuple[int, int]:
    """Two whole numbers, each at least low; want: ``(height, width)``."""
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"{op}: {name} is {shown(value)}, want {want}, two whole numbers")
    if len(value) != 2:
        raise ValueError(f"{op}: {name} is {shown(value)}, want {want}, two whole numbers")
    first, second = (integer(op, name, each, f"{want}, two whole numbers") for each in value)
    if first < low or second < low:
        raise ValueError(f"{op}: {name} is {shown(value)}, want {want}, each at least {low}")
    return first, second


def choice(op: str, name: str, value: Any, options: Sequence[str]) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{op}: {name} is {shown(value)}, want one of {', '.join(map(repr, options))}")
    if value not in options:
        raise ValueError(f"{op}: {name} is {value!r}, want one of {', '.join(map(repr, options))}")


def flag(op: str, name: str, value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{op}: {name} is {shown(value)}, want True or False")
    return bool(value)


def generator(op: str, name: str, value: object) -> None:
    if value is not None and not isinstance(value, torch.Generator):
        raise TypeError(f"{op}: {name} is {shown(value)}, want a torch.Generator or None")


def device(op: str, name: str, value: Any) -> torch.device:
    """A device; None is torch's default one."""
    if value is None:
        return torch.get_default_device()
    want = "a torch.device, its name or its number"
    if not isinstance(value, (str, int, torch.device)) or isinstance(value, bool):
        raise TypeError(f"{op}: {name} is {shown(value)}, want {want}")
    try:
        return torch.device(value)
    except RuntimeError:  # among others a number where there is no accelerator
        raise ValueError(f"{op}: {name} is {shown(value)}, want {want}") from None


# ---------------------------------------------------------------- values of tensors

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
