"""ISDA: cross-entropy as if every feature were augmented along its class's covariance."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import fastmix

from ...losses.isda import SCHEDULES
from ...mixers import Mixer
from ...ops.covariance import NAMES
from ...targets import SoftTarget
from .. import arguments
from ..models.classifier import last_layer
from .base import Method, Shape
from .common import LABEL_SMOOTHING, LENGTH, PROB
from .objective import Classifier, Objective
from .option import Option

ISDA_KIND = Option("isda_kind", str, "which covariances are estimated", "ISDA Table 8", choices=NAMES,
                   target=fastmix.ISDALoss, argument="kind")
ISDA_SCHEDULE = Option("isda_schedule", str, "how the strength comes to its value over the steps", "ISDA Sec. 4.1",
                       choices=SCHEDULES, target=fastmix.isda_strength, argument="schedule")
STRENGTH = Option("strength", arguments.not_negative, "strength of the augmentation at the end", "ISDA Sec. 6.5.4",
                  default=0.5)
CUTOUT = dataclasses.replace(LENGTH, help="side of a square of zeros", source="ISDA Table 4", none="no square")


class ISDAObjective(Objective):
    """`fastmix.ISDALoss` of the labelled images, and the consistency loss of the others.

    Args:
        criterion: keeps the covariances, which a checkpoint holds.
        layer: path of the classifier in the model.
        strength: of a step, counted from 0.
        consistency: weight of the second loss; a batch is then as many labelled images followed by as many others,
            whose labels are not used. None: all images are labelled.
    Source: ISDA Eq. 7 and Algorithm 1; with unlabelled images Eq. 19 without its third term, consistency being eta_1
        (of 0.5, 1 and 2 in Sec. 6.1).
    """

    def __init__(self, criterion: fastmix.ISDALoss, layer: str, strength: Callable[[int], float | Tensor],
                 consistency: float | None = None) -> None:
        self.criterion, self.layer, self.consistency = criterion, layer, consistency
        self._strength = strength

    def classifier(self, model: nn.Module) -> nn.Module:
        return model.get_submodule(self.layer)

    @contextmanager
    def observe(self, model: nn.Module) -> Iterator[Callable[[], Classifier | None]]:
        """Catches what enters the classifier; that of the last forward pass counts."""
        found: list[Tensor] = []
        layer = self.classifier(model)
        handle = layer.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
        try:
            yield lambda: Classifier(layer, found[-1])
        finally:
            handle.remove()

    def _known(self, rows: int) -> int:
        return rows if self.consistency is None else rows // 2

    def labelled(self, logits: Tensor, target: SoftTarget | Tensor, y: Tensor) -> tuple[Tensor, SoftTarget | Tensor]:
        known = self._known(len(y))
        return logits[:known], y[:known]

    def loss(self, logits: Tensor, target: SoftTarget | Tensor, y: Tensor, step: int,
             observed: Classifier | None = None) -> Tensor:
        assert observed is not None
        layer, features = observed
        known, strength = self._known(len(y)), self._strength(step)
        loss, _ = self.criterion(features[:known], layer, y[:known], strength, logits=logits[:known])
        if self.consistency:
            loss = loss + self.consistency * self.criterion.consistency(logits[known:], layer, strength)
        return loss

    def alone(self) -> ISDAObjective:
        other = copy.deepcopy(self)
        other.criterion.covariance.synchronise = False
        return other

    def state_dict(self) -> dict[str, Any] | None:
        return self.criterion.covariance.state_dict()

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        assert state is not None
        self.criterion.covariance.load_state_dict(state)


class ISDA(Method):
    """ISDA Eq. 7, with Cutout before it where a length is given (ISDA Table 4)."""

    name, about, position = "isda", "features widened by their class's covariance", 150
    options = (ISDA_KIND, ISDA_SCHEDULE, STRENGTH, CUTOUT, PROB, LABEL_SMOOTHING)
    mixer_class = fastmix.Cutout

    def mixer(self, shape: Shape, classes: int) -> Mixer | None:
        return None if self.given("length") is None else super().mixer(shape, classes)

    def objective(self, model: nn.Module, classes: int, steps: int, device: torch.device) -> Objective:
        layer, head = last_layer(model, classes, self.settings.model, "ISDA")
        criterion = fastmix.ISDALoss(head.in_features, classes, **self.arguments(fastmix.ISDALoss),
                                     label_smoothing=self.value("label_smoothing"), device=device)
        strength, schedule = self.value("strength"), self.arguments(fastmix.isda_strength)
        return ISDAObjective(criterion, layer, lambda step: fastmix.isda_strength(strength, step, steps, **schedule),
                             self.consistency())

    def consistency(self) -> float | None:
        """The weight of the loss of unlabelled images; None without such."""
        return None
