"""Mixers over mixers: one after the other, or one of several."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import cast

import torch
from torch import Generator, Tensor, nn

from ..ops import checks as check
from ..ops import random
from .base import Mixer
from .plans import ComposePlan, Plan


class _Group(Mixer):
    """A mixer over mixers. Its own ``enabled`` and ``prob`` (per batch) switch all of them; theirs stay as they are."""

    def __init__(self, mixers: Iterable[Mixer], prob: float, generator: Generator | None) -> None:
        super().__init__(prob=prob, generator=generator)
        if not isinstance(mixers, Iterable):
            raise TypeError(f"{self._name}: mixers is {check.shown(mixers)}, want fastmix mixers in a list")
        mixers = list(mixers)
        if not mixers:
            raise ValueError(f"{self._name}: mixers is empty, want at least one")
        for i, mixer in enumerate(mixers):
            if not isinstance(mixer, Mixer):
                raise TypeError(f"{self._name}: mixers[{i}] is {type(mixer).__name__}, want a fastmix mixer")
        self.mixers = nn.ModuleList(mixers)

    @property
    def _members(self) -> list[Mixer]:
        return cast(list[Mixer], list(self.mixers))

    @property
    def needs_saliency(self) -> bool:  # type: ignore[override]
        return any(mixer.needs_saliency for mixer in self._members)


class Compose(_Group):
    """Applies mixers one after the other; the label is that of the mixture of mixtures.

    Args:
        mixers: one or more. Only the first may need saliency: a gradient belongs to the images it was taken at.
        prob: probability that a batch is mixed at all, in [0, 1]; the mixers' own come on top.
        generator: torch.Generator on the device of the images, for prob alone (each mixer has its own); None: torch's
            own.
    """

    def __init__(self, *mixers: Mixer, prob: float = 1.0, generator: Generator | None = None) -> None:
        super().__init__(mixers, prob, generator)
        for i, mixer in enumerate(mixers):
            if i > 0 and mixer.needs_saliency:
                raise ValueError(f"{self._name}: mixers[{i}], {type(mixer).__name__}, needs the saliency of "
                                 "images that are mixed already, want it first")

    def _draw(self, x: Tensor, saliency: Tensor | None, active: Tensor) -> ComposePlan:
        active = self._with_prob(x, active)
        return ComposePlan(tuple(mixer._plan(x, saliency, active) for mixer in self._members))


class RandomChoice(_Group):
    """One of several mixers, drawn per batch: timm's ``switch_prob`` with any number of members.

    The choice is a code path, so it is drawn on the host, and ``plan`` cannot be inside a compiled graph or a captured
    CUDA graph. For these compile or capture every member and call ``choice.choose()`` to learn whose turn it is.

    Args:
        mixers: one or more.
        weights: relative frequencies, >= 0, not all 0; None: equal.
        prob: probability that a batch is mixed at all, in [0, 1], drawn on the device; the mixers' own come on top.
        generator: a CPU generator for the choice; None: torch's own. With ``prob`` below 1 on another device leave
            it None.
    """

    def __init__(self, mixers: Iterable[Mixer], weights: Iterable[float] | None = None, *, prob: float = 1.0,
                 generator: Generator | None = None) -> None:
        super().__init__(mixers, prob, generator)
        if weights is not None and (isinstance(weights, str) or not isinstance(weights, Iterable)):
            raise TypeError(f"{self._name}: weights is {check.shown(weights)}, want numbers in a list, or None")
        self.weights = [1.0] * len(self.mixers) if weights is None else [
            check.number(self._name, "weights", w) for w in weights]
        if len(self.weights) != len(self.mixers):
            raise ValueError(f"{self._name}: weights has {len(self.weights)} entries, want {len(self.mixers)}")
        if not all(0 <= w < math.inf for w in self.weights) or sum(self.weights) == 0:
            raise ValueError(f"{self._name}: weights is {self.weights}, want finite numbers >= 0, not all 0")

    def choose(self) -> Mixer:
        """Draws a member, on the host."""
        if torch.compiler.is_compiling():  # not the decorator torch.compiler.disable: it imports dynamo, 2 s
            torch._dynamo.graph_break(msg="RandomChoice draws on the host: compile its members and call choose()")
        return self._members[random.choice(self.weights, self.generator)]

    def _draw(self, x: Tensor, saliency: Tensor | None, active: Tensor) -> Plan:
        return self.choose()._plan(x, saliency, self._with_prob(x, active))
