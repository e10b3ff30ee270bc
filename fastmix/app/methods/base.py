"""What a method of the program is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

import fastmix
import fastmix.functional as F

from ...mixers import Mixer
from ..console import UsageError
from .objective import Loss, Objective
from .option import Option

Shape = tuple[int, int, int]


class Settings(Protocol):
    """What a method reads of the settings of a run, beside its own options."""

    @property
    def model(self) -> str: ...
    @property
    def epochs(self) -> int: ...
    @property
    def seed(self) -> int: ...


class Method:
    """A way to train: the options it has, the mixer it mixes batches with and the loss that it minimises.

    A file of this package that defines a subclass with a name is a method of the program: its flags, its help, its
    checks and its place in presets follow from the class. What a subclass may change, each with the usual answer here:

    Attributes:
        name: what ``--method`` calls it. about: a few words for the help.
        position: where it stands in lists; methods without one come last.
        options: what it reads, beside the settings of every run.
        mixer_class: of its mixer, which takes those options that name no other target; None for no mixing.
        extra: the extra of the package that it needs.
        own_crops: it moves the images itself, so the loader flips them and does not crop them.
        softens: labels lose confidence, which a picture of its images then shows.
        period: steps after which the work of a step repeats itself.

    The loop and the commands ask the methods below.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    position: ClassVar[int] = 1000
    options: ClassVar[tuple[Option, ...]] = ()
    mixer_class: ClassVar[type[Mixer] | None] = None
    extra: ClassVar[str] = ""
    own_crops: ClassVar[bool] = False
    softens: ClassVar[bool] = False

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    # ---- options

    @classmethod
    def option(cls, name: str) -> Option | None:
        """The option of this name, None if the method does not read it."""
        return next((option for option in cls.options if option.name == name), None)

    @classmethod
    def default(cls, name: str) -> Any:
        """What an option that is left out comes to. KeyError for one that the method does not read."""
        option = cls.option(name)
        if option is None:
            raise KeyError(name)
        return option.default_of(cls.mixer_class)

    def given(self, name: str) -> Any:
        """The value of an option, None if it was left out."""
        return getattr(self.settings, name, None)

    def value(self, name: str) -> Any:
        """The value of an option, its default if it was left out."""
        given = self.given(name)
        return self.default(name) if given is None else given

    def arguments(self, target: Callable[..., Any] | None = None) -> dict[str, Any]:
        """The given options that a class or a function takes; None: the mixer."""
        return {option.keyword: self.given(option.name) for option in self.options
                if option.target is target and option.takes and self.given(option.name) is not None}

    # ---- what it is made of

    def mixer(self, shape: Shape, classes: int) -> Mixer | None:
        """The mixer for images (C, H, W) of so many classes, None for plain batches."""
        return None if self.mixer_class is None else self.mixer_class(**self.arguments())

    def loss(self) -> Loss:
        """The loss of logits and target; cross-entropy with label smoothing where the method reads that."""
        smoothing = self.arguments(F.soft_cross_entropy)
        return lambda logits, target: F.soft_cross_entropy(logits, target, **smoothing)

    def objective(self, model: nn.Module, classes: int, steps: int, device: torch.device) -> Objective:
        """What the run minimises. steps: of the run, before its refinement."""
        return Objective(self.loss())

    def labelled_images(self, labels: Tensor) -> Any:
        """The `LabelledDraws` of a method that knows the labels of some images only; None: all are known."""
        return None

    def policy(self, mixer: Any, classes: int, rows: int, steps: int,
               average: Callable[[Tensor], object] | None) -> Any:
        """The `fastmix.app.policy.Policy` that chooses for the mixer; None for a mixer that draws.

        rows: images of the smallest batch. steps: of an epoch. average: makes a tensor the mean over all processes;
        None in a process alone.
        """
        return None

    # ---- what it does in a run

    @property
    def needs_saliency(self) -> bool:
        """Whether its mixer needs an input gradient, which takes labels."""
        return self.mixer_class is not None and self.mixer_class.needs_saliency

    @property
    def reads_bytes(self) -> bool:
        """Whether its mixer makes the batch of bytes, in the pass that reads them: a saliency needs images first."""
        return not self.needs_saliency

    @property
    def period(self) -> int:
        return 1

    def begin_epoch(self, mixer: Mixer | None, epoch: int) -> None:
        """Sets what depends on the epoch, counted from 1, and on nothing else: a resumed run has no state of it."""

    def saliency(self, model: nn.Module, x: Tensor, y: Tensor, step: int) -> Tensor:
        """d loss / d x (N, C, H, W) for the mixer. step: of the run, counted from 0."""
        return fastmix.input_saliency(model, x, y)

    # ---- checks before training

    def check_images(self, shape: Shape) -> None:
        """UsageError for images (C, H, W) that the options do not fit."""

    def check_model(self, mixer: Mixer | None, model: nn.Module) -> None:
        """UsageError for a model that the options do not fit."""

    def build_mixer(self, shape: Shape, classes: int, device: torch.device) -> Mixer | None:
        """`mixer` on the device, tried on two blank images so that a wrong value is found before training."""
        try:
            mixer = self.mixer(shape, classes)
            if mixer is not None:
                mixer = mixer.to(device)
                blank = torch.zeros(2, *shape, device=device)
                mixer(blank, torch.zeros(2, dtype=torch.int64, device=device), blank if mixer.needs_saliency else None)
        except (ValueError, TypeError) as error:
            raise UsageError(f"method {self.name}: {error}{self.advice(str(error))}") from None
        return mixer

    def advice(self, error: str) -> str:
        """What to add to the error of a mixer that could not be built."""
        return ""
