"""What training minimises: a loss of logits and labels, and whatever the loss keeps or reads beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from ...targets import SoftTarget

Loss = Callable[[Tensor, SoftTarget | Tensor], Tensor]


class Classifier(NamedTuple):
    """The last layer of a model and what entered it in a forward pass: (N, A)."""

    layer: nn.Module
    features: Tensor


class Objective:
    """A loss of logits (N, J) and target alone. target: the mixer's SoftTarget, or the labels (N,) without a mixer."""

    def __init__(self, loss: Loss) -> None:
        self._loss = loss

    def classifier(self, model: nn.Module) -> nn.Module | None:
        """The layer whose weight and input the loss reads; None for a loss of the logits alone."""
        return None

    @contextmanager
    def observe(self, model: nn.Module) -> Iterator[Callable[[], Classifier | None]]:
        """Entered around the model's forward pass; what it yields gives afterwards what `loss` wants of that pass."""
        yield lambda: None

    def labelled(self, logits: Tensor, target: SoftTarget | Tensor, y: Tensor) -> tuple[Tensor, SoftTarget | Tensor]:
        """Logits and targets of the images whose labels are known. y: (N,) labels of the batch as it was drawn."""
        return logits, target

    def loss(self, logits: Tensor, target: SoftTarget | Tensor, y: Tensor, step: int,
             observed: Classifier | None = None) -> Tensor:
        """The loss of a batch, 0-d. step: of the run, counted from 0. observed: what `observe` gave."""
        return self._loss(logits, target)

    def alone(self) -> Objective:
        """A copy with which one process of several may try a step by itself."""
        return self

    def state_dict(self) -> dict[str, Any] | None:
        """What a checkpoint has to keep; None for nothing."""
        return None

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Takes up what `state_dict` returned."""
