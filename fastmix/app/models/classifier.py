"""The last layer of a model."""

from __future__ import annotations

from torch import nn

from ..console import UsageError


def last_layer(model: nn.Module, classes: int, name: str, need: str) -> tuple[str, nn.Linear]:
    """Path and module of the classifier. need: what asks for it. UsageError if there is none."""
    heads = [(path, m) for path, m in model.named_modules() if isinstance(m, nn.Linear) and m.out_features == classes]
    if not heads:
        raise UsageError(f"--model {name}: {need} needs a last layer that is nn.Linear with {classes} outputs")
    return heads[-1]
