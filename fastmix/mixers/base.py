"""What every mixer is: a module that draws a plan for a batch on its device and applies it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor, nn

from ..ops import checks as check
from ..ops.view import View
from ..saliency import input_saliency
from . import sampling
from .labels import Labels, Target
from .plans import Plan

MODES = ("batch", "elem")


class Mixer(nn.Module):
    """What all mixers share. A subclass draws in ``_draw(x, saliency, active)``.

    Attributes:
        enabled: bool. False makes every plan the identity. It is a flag on the device that plans read, so switching it
            recompiles and recaptures nothing. The flag follows an eager batch to its device; before a CUDA graph
            capture or torch.compile call ``mixer.to(device)`` (compiled code would copy the flag on every call).
        needs_saliency: whether `plan` wants the input gradient (`fastmix.input_saliency`).

    Args:
        prob: probability that a plan mixes; else it is the identity. Drawn per batch, per sample in mode "elem".
        mode: "batch", one draw for the whole batch, or "elem", one per sample, as in timm; None where a method has
            one way only.
        generator: torch.Generator on the device of the images; None is torch's own, which torch.compile and CUDA
            graphs want. In a DataLoader worker it is seeded anew for every worker and epoch. See `fastmix.ops.random`.

    The state_dict is empty, and ``train()`` / ``eval()`` change nothing.
    """

    needs_saliency = False
    _flag: Tensor

    def __init__(self, *, prob: float = 1.0, mode: str | None = None, generator: Generator | None = None) -> None:
        super().__init__()
        prob = check.share(self._name, "prob", prob)
        check.generator(self._name, "generator", generator)
        if mode is not None:
            check.choice(self._name, "mode", mode, MODES)
        self.prob, self.mode, self.generator = prob, mode, generator
        self._enabled = True
        with torch.inference_mode(False):  # a buffer that is written to later must not be an inference tensor
            self.register_buffer("_flag", torch.ones((), dtype=torch.bool), persistent=False)

    @property
    def _name(self) -> str:
        return type(self).__name__

    @property
    def enabled(self) -> bool:
        return self._enabled

    @enabled.setter
    def enabled(self, on: bool) -> None:
        self._enabled = check.flag(self._name, "enabled", on)  # for reading back without a sync; plans read the flag
        self._flag.fill_(self._enabled)

    def plan(self, x: Tensor, saliency: Tensor | None = None) -> Plan:
        """Draw what to do with a batch.

        Args:
            x: the images (N, C, H, W), clips (N, C, T, H, W), or (N, ...) for Mixup and DMixup. Gives shape and device
                only.
            saliency: d loss / d x, shaped like x, where ``needs_saliency``; ignored elsewhere. May be left out while
                ``enabled`` is False, so that a loop can save the pass.
        Raises: ValueError for shapes, devices and a missing saliency.
        """
        return self._plan(x, self._checked(x, saliency), None)

    def _checked(self, x: Tensor, saliency: Tensor | None) -> Tensor | None:
        """The saliency that ``_draw`` gets. Raises as `plan` says."""
        check.tensor(self._name, "x", x)
        if x.ndim == 0:
            raise ValueError(f"{self._name}: x has shape (), want a batch (N, ...)")
        if self.needs_saliency:
            if saliency is None and not self._enabled:
                saliency = torch.zeros((), device=x.device).expand(x.shape)
            if saliency is None:
                raise ValueError(f"{self._name}: saliency is None, want the gradient of the loss with respect to x, "
                                 f"shape {tuple(x.shape)}: fastmix.input_saliency(model, x, y)")
            check.shape(self._name, "saliency", saliency, x.shape, "like x")
            check.dtype(self._name, "saliency", saliency, *check.FLOATS)
            if x.ndim > 2 and 0 in x.shape[-2:]:
                raise ValueError(f"{self._name}: x has shape {tuple(x.shape)}, want at least one pixel")
            check.same_device(self._name, x=x, saliency=saliency)
        return saliency

    def forward(self, x: Tensor, y: Labels, saliency: Tensor | None = None,
                view: View | None = None) -> tuple[Tensor, Target]:
        """Mix a batch.

        Args:
            x: images (N, C, H, W), or clips (N, C, T, H, W), whose frames are mixed alike; float32, bfloat16, float16
                or float64, any memory format.
            y: (N,) int64 labels, the SoftTarget of an earlier mixture, or dense: (N, J) float, one-hot, multi-hot or
                soft. Of pixels: label maps (N, H, W) int64, or (N, J, H, W) float. The label -100 is ignored: what it
                would have in a mixture counts nothing.
            saliency: as for `plan`; with a view the gradient at ``view.apply(x)``.
            view: x is uint8, and its images are read through this `fastmix.View` in the pass that mixes them.
        Returns: (mixed like x, or with a view of its dtype and memory format; SoftTarget with float32 weights, of dense
        labels their mixture, dense).
        """
        return self.plan(x, saliency).mix(x, y, view)

    if TYPE_CHECKING:  # torch types the call of a module as (...) -> Any
        def __call__(self, x: Tensor, y: Labels, saliency: Tensor | None = None,
                     view: View | None = None) -> tuple[Tensor, Target]: ...

    @contextmanager
    def applied(self, model: nn.Module, x: Tensor, y: Labels, saliency: Tensor | None = None,
                view: View | None = None, *, in_eval: bool = False) -> Iterator[tuple[Tensor, Target]]:
        """A training loop's way to any mixer, also to one that mixes inside the model.

            with mixer.applied(model, x, y) as (images, target):
                loss = fastmix.functional.soft_cross_entropy(model(images), target)

        Args:
            model: from images to logits.
            x, y, view: as for a call of the mixer.
            saliency: as for `plan`; None takes `fastmix.input_saliency` of the model, where it is needed.
            in_eval: of `ManifoldMixup`: mix although the model is in eval mode.
        Yields: (the model's input, SoftTarget).
        """
        if saliency is None and self.needs_saliency and self._enabled:
            saliency = input_saliency(model, x if view is None else view.apply(x), y)
        yield self(x, y, saliency, view)

    def _plan(self, x: Tensor, saliency: Tensor | None, outer: Tensor | None) -> Plan:
        """outer: 0-d bool, whether the mixer around this one is active; None if there is none."""
        active = self._flag_on(x.device)
        return self._draw(x, saliency, active if outer is None else active & outer)

    def _with_prob(self, x: Tensor, active: Tensor) -> Tensor:
        """active and what ``prob`` decides, 0-d or (N,): for plans that are not made by one operator."""
        if self.prob == 1.0:
            return active
        shape = x.shape[:1] if self._each else ()
        return active & sampling.bernoulli(self.prob, shape, x.device, self.generator)

    def _flag_on(self, device: torch.device) -> Tensor:
        return self._on_device("_flag", "_enabled", device)

    def _on_device(self, name: str, value: str, device: torch.device) -> Tensor:
        """The 0-d buffer `name` on the device of the images. value: the attribute that it mirrors, read only where the
        buffer moves: compiled code would be compiled anew for each value that it has read."""
        buffer = self._buffers[name]  # getattr of a module looks in four places first
        assert buffer is not None
        if buffer.device != device:
            if torch.compiler.is_compiling():  # a tensor made inside a graph must not outlive it
                return buffer.to(device, non_blocking=True)
            if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                raise RuntimeError(f"{self._name}: the mixer is on {buffer.device}, images are on {device}: call "
                                   "mixer.to(device), or the mixer once, before the CUDA graph capture")
            with torch.inference_mode(False):
                buffer = torch.full((), getattr(self, value), dtype=buffer.dtype, device=device)
            setattr(self, name, buffer)
        return buffer

    def _draw(self, x: Tensor, saliency: Tensor | None, active: Tensor) -> Plan:
        """active: 0-d bool; where it, or ``self.prob``, is not for it the plan is the identity."""
        raise NotImplementedError

    def _rows(self, x: Tensor) -> int:
        """How many draws a batch takes."""
        return x.shape[0] if self._each else 1

    @property
    def _each(self) -> bool:
        return self.mode == "elem"

    def _images(self, x: Tensor) -> tuple[int, int]:
        if x.ndim not in (4, 5):
            raise ValueError(f"{self._name}: x has shape {tuple(x.shape)}, want images (N, C, H, W) or clips "
                             "(N, C, T, H, W)")
        return x.shape[-2], x.shape[-1]

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy, which know no torch.Generator: it goes as its device and state."""
        state = self.__dict__.copy()
        if self.generator is not None:
            state["generator"] = str(self.generator.device), self.generator.get_state().numpy().tobytes()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if isinstance(state["generator"], tuple):
            device, numbers = state["generator"]
            state = {**state, "generator": Generator(device)}
            state["generator"].set_state(torch.frombuffer(bytearray(numbers), dtype=torch.uint8))
        super().__setstate__(state)  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        shown = {name: value for name, value in vars(self).items() if not name.startswith("_") and value is not None}
        return ", ".join(f"{name}={value!r}" for name, value in shown.items() if name != "training")
