"""What comes between logits and loss: ISDA on labelled images, and its consistency loss on others: ISDA Eq. 19."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fastmix.functional as F

from ...losses.isda import ISDACovariance, isda_strength
from ...shuffling import Step
from .. import data
from ..console import UsageError
from .options import Options


class Isda:
    """The loss of `isda` and `isda-semi`.

    total: steps of the run, over which the strength rises. With unlabelled, a batch is as many labelled images followed
    by as many others, whose labels are not looked at. Source: ISDA Eq. 7 and Algorithm 1; isda-semi: Eq. 19 without its
    third term, ``consistency`` being eta_1 (of 0.5, 1 and 2 in Sec. 6.1).
    """

    def __init__(self, options: Options, model: nn.Module, classes: int, total: int, device: torch.device) -> None:
        self.options, self.total = options, total
        self.unlabelled = options.method == "isda-semi"
        self.layer, head = last_layer(model, classes, options.model, "ISDA")
        self.covariance = ISDACovariance(classes, head.in_features, options.isda_kind, device=device)
        self._over_ranks = True

    def alone(self) -> Isda:
        """A copy that one process may step by itself."""
        other = copy.deepcopy(self)
        other._over_ranks = False
        return other

    def head(self, model: nn.Module) -> nn.Linear:
        return model.get_submodule(self.layer)  # type: ignore[return-value]

    @contextmanager
    def features(self, model: nn.Module) -> Iterator[list[Tensor]]:
        """Catches what enters the classifier of the model inside."""
        found: list[Tensor] = []
        handle = self.head(model).register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
        try:
            yield found
        finally:
            handle.remove()

    def labelled(self, rows: int) -> int:
        return rows // 2 if self.unlabelled else rows

    def loss(self, logits: Tensor, features: Tensor, weight: Tensor, y: Tensor, step: int) -> Tensor:
        """features (N, A) as the classifier took them, y (N,), step counted from 0."""
        options, known = self.options, self.labelled(len(y))
        strength = isda_strength(options.strength, step, self.total, schedule=options.isda_schedule)
        self._update(features[:known].detach(), y[:known])
        cov, kind = self.covariance.cov, self.covariance.kind
        augmented = F.isda_logits(logits[:known], weight, cov, y[:known], strength, kind=kind)
        loss = F.soft_cross_entropy(augmented, y[:known], label_smoothing=options.label_smoothing)
        if self.unlabelled and options.consistency > 0:
            loss = loss + options.consistency * F.isda_consistency(logits[known:], weight, cov, strength, kind=kind)
        return loss

    def _update(self, features: Tensor, y: Tensor) -> None:
        covariance = self.covariance
        if self._over_ranks:
            covariance.update(features, y)
        else:
            F.covariance_update_(covariance.count, covariance.mean, covariance.cov, features, y, kind=covariance.kind)

    def state_dict(self) -> dict[str, Any]:
        return self.covariance.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.covariance.load_state_dict(state)


def last_layer(model: nn.Module, classes: int, name: str, need: str) -> tuple[str, nn.Linear]:
    """Path and module of the classifier. need: what asks for it. UsageError if there is none."""
    heads = [(path, m) for path, m in model.named_modules() if isinstance(m, nn.Linear) and m.out_features == classes]
    if not heads:
        raise UsageError(f"--model {name}: {need} needs a last layer that is nn.Linear with {classes} outputs")
    return heads[-1]


class LabelledDraws:
    """Which labelled images join the batches of an epoch: all of them in turn, reshuffled when they run out."""

    def __init__(self, labels: Tensor, count: int) -> None:
        self.index = data.balanced_subset(labels, count, "--labelled")

    def steps(self, steps: list[Step], seed: int) -> list[Step]:
        """Every step's images with as many labelled ones before them."""
        rng = np.random.Generator(np.random.PCG64(seed))
        wanted = sum(len(step.own) for step in steps)
        rounds = -(-wanted // len(self.index))
        drawn = torch.cat([self.index[torch.from_numpy(rng.permutation(len(self.index)))] for _ in range(rounds)])
        parts = drawn[:wanted].split([len(step.own) for step in steps])
        return [Step(torch.cat([part, step.own]), 2 * step.total) for part, step in zip(parts, steps, strict=True)]
