"""Manifold Mixup: the blend of Mixup applied to what one randomly drawn layer of the model returns.

    mixer = fastmix.ManifoldMixup(alpha=2.0, layers=["input", "blocks.1", "blocks.3"])
    with mixer.applied(model, x, y) as (images, target):
        loss = fastmix.functional.soft_cross_entropy(model(images), target)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Generator, Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ..ops import checks as check
from ..ops.view import View
from .labels import Labels, Target
from .pairs import Mixup
from .plans import BlendPlan

INPUT = "input"
Layer = str | int | nn.Module


class ManifoldMixup(Mixup):
    """`Mixup` of hidden features: ``h <- lam h + (1 - lam) h[partner]`` after one layer, drawn anew for every step.

    The plan is that of `Mixup`, drawn on the device. Which layer is a code path, so it is drawn on the host, uniformly,
    from torch's own CPU generator, also where ``generator`` is given. Processes of a DistributedDataParallel may draw
    different layers. Gradients flow through the blend to all layers before it. A compiled model (torch.compile, also
    fullgraph) is traced once per layer; in a CUDA graph capture one graph per layer with ``inside(..., layer=name)``.

    Calling the mixer on images mixes the images, as `Mixup` does: layer 0.

    Args:
        alpha: > 0 (1), lam ~ Beta(alpha, alpha).
        layers: from which to draw. "auto": the input and, of the model's modules with weights before the last, those
            that end the first and the second third (`units`). Or a sequence of names as in ``model.get_submodule``,
            modules, or numbers: "input" or 0 is the input, i > 0 is the i-th of `units`. The layer must return one
            tensor whose rows are the samples, and run once in a forward pass.
        prob: probability that a batch (mode "elem": an image) is mixed, in [0, 1]; else its plan is the identity.
        mode: "batch", one lam for the whole batch, or "elem", one per image, as in timm.
        generator: torch.Generator on the device of the images; None: torch's own, which torch.compile and CUDA graphs
            want. A DataLoader worker seeds it anew, for itself and the epoch.
    Source: Manifold Mixup (Verma et al. 2019); R-Mix Sec. 2.1; refined data augmentation, before Eq. 2; a baseline of
        K-image mixing Table 1.
    """

    def __init__(self, alpha: float = 1.0, layers: str | Sequence[Layer] = "auto", *, prob: float = 1.0,
                 mode: str = "batch", generator: Generator | None = None) -> None:
        super().__init__(alpha, prob=prob, mode=mode, generator=generator)
        if isinstance(layers, str) and layers != "auto":
            layers = [layers]
        if not isinstance(layers, str):
            if not isinstance(layers, (list, tuple)):
                raise TypeError(f"{self._name}: layers is {check.shown(layers)}, want 'auto' or a list of names, "
                                "modules or numbers")
            layers = list(layers)
            if not layers:
                raise ValueError(f"{self._name}: layers is empty, want names, modules, numbers or 'auto'")
            for layer in layers:
                if isinstance(layer, bool) or not isinstance(layer, (str, int, nn.Module)):
                    raise TypeError(f"{self._name}: layers holds {type(layer).__name__}, want names, modules or "
                                    "numbers")
        # A tuple: a list of modules would make them submodules of the mixer.
        self.layers = layers if isinstance(layers, str) else tuple(layers)

    def names(self, model: nn.Module) -> list[str]:
        """What can be drawn in this model: qualified names, "input" for its input.

        Raises: ValueError for a name, number or module that the model does not have.
        """
        model = self._unwrapped(model)
        if self.layers == "auto":
            own = units(model)[:-1]
            ends = [len(own) * third // 3 - 1 for third in (1, 2)]
            return [INPUT, *dict.fromkeys(own[end] for end in ends if end >= 0)]
        return [self._resolve(model, layer) for layer in self.layers]

    def _resolve(self, model: nn.Module, layer: Layer) -> str:
        if isinstance(layer, nn.Module):
            for name, module in model.named_modules():
                if module is layer:
                    return name or INPUT
            raise ValueError(f"{self._name}: layers holds a {type(layer).__name__} that is no module of the model")
        if isinstance(layer, str):
            if layer != INPUT:
                try:
                    model.get_submodule(layer)
                except AttributeError:
                    raise ValueError(f"{self._name}: layers holds {layer!r}, which the model does not have; it has "
                                     f"input, {', '.join(units(model))} and what is in them") from None
            return layer
        found = [INPUT, *units(model)]
        if not 0 <= layer < len(found):
            raise ValueError(f"{self._name}: layers holds {layer}, want a number from 0 (the input) to "
                             f"{len(found) - 1} ({found[-1]})")
        return found[layer]

    def _unwrapped(self, model: nn.Module) -> nn.Module:
        if not isinstance(model, nn.Module):
            raise TypeError(f"{self._name}: model is {check.shown(model)}, want a module")
        return unwrapped(model)

    def choose(self, model: nn.Module) -> str:
        """Draws a layer's name, on the host."""
        names = self.names(model)
        return names[int(torch.randint(len(names), (), device="cpu"))]

    @contextmanager
    def applied(self, model: nn.Module, x: Tensor, y: Labels, saliency: Tensor | None = None,
                view: View | None = None, *, in_eval: bool = False) -> Iterator[tuple[Tensor, Target]]:
        """As `Mixer.applied`: what is yielded are the images as they are, and the model mixes in this block."""
        plan = cast(BlendPlan, self.plan(x))
        with self.inside(model, plan, in_eval=in_eval):
            yield x if view is None else view.apply(x), plan.target(y)

    @contextmanager
    def inside(self, model: nn.Module, plan: BlendPlan, layer: str | None = None, *,
               in_eval: bool = False) -> Iterator[str]:
        """Every forward pass of the model in this block mixes after one layer, the same for all of them.

        For the time of the block that module has another ``forward``, and the model too; it ends with the block,
        also by an exception. (A hook would be invisible to a model compiled before: dynamo does not look for hooks.)
        With activation checkpointing the backward pass must be inside the block too.

        Args:
            model: any module; of a DistributedDataParallel or a compiled module the one within.
            plan: from ``plan(x)``, of as many rows as the batch.
            layer: a name from `names`; None draws one.
            in_eval: also mix while the model is in eval mode, which is else left alone.
        Yields: the layer's name.
        Raises: TypeError for a layer that returns no tensor, ValueError for one whose rows are not the samples or that
            runs twice in a forward pass, RuntimeError at the end for one that did not run in it.
        """
        if isinstance(model, DataParallel):
            raise TypeError(f"{self._name}: model is a DataParallel, whose replicas see parts of the batch; want a "
                            "DistributedDataParallel")
        model = self._unwrapped(model)
        if not isinstance(plan, BlendPlan):
            raise TypeError(f"{self._name}: plan is {check.shown(plan)}, want the BlendPlan of plan(x)")
        if layer is not None and not isinstance(layer, str):
            raise TypeError(f"{self._name}: layer is {check.shown(layer)}, want a name or None")
        name = self.choose(model) if layer is None else self._resolve(model, layer)
        state = _State()

        def mixed(value: object) -> Tensor:
            if not isinstance(value, Tensor):
                raise TypeError(f"{self._name}: layer {name!r} gives {type(value).__name__}, want a tensor: choose "
                                "another layer")
            rows = plan.index.shape[0]
            if value.ndim == 0 or value.shape[0] != rows:
                raise ValueError(f"{self._name}: layer {name!r} gives shape {tuple(value.shape)}, want {rows} rows, "
                                 "one for each sample of the plan")
            return plan.apply(value)

        def wanted() -> bool:
            return in_eval or model.training

        def whole(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            state.begin()
            if name == INPUT and wanted():
                if not args:
                    raise TypeError(f"{self._name}: the model was called without a positional argument, want its input "
                                    "first")
                state.hit(self._name, name)
                args = (mixed(args[0]), *args[1:])
            value = forward(*args, **kwargs)
            state.end(wanted())
            return value

        def part(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            value = forward(*args, **kwargs)
            if not wanted():
                return value
            state.hit(self._name, name)
            return mixed(value)

        with _replaced(model, whole):
            if name == INPUT:
                yield name
            else:
                with _replaced(model.get_submodule(name), part):
                    yield name
        if state.missed:
            raise RuntimeError(f"{self._name}: layer {name!r} did not run in the model's forward pass: its label is "
                               "mixed, its features are not; choose another layer")


class _State:
    """What happened in a block. Under torch.compile it is only written to: a graph must not depend on its values."""

    def __init__(self) -> None:
        self.running = self.ran = self.missed = False

    def begin(self) -> None:
        self.running, self.ran = True, False

    def hit(self, op: str, name: str) -> None:
        # Outside of a forward pass it is activation checkpointing that runs a layer again.
        if not torch.compiler.is_compiling() and self.running and self.ran:
            raise ValueError(f"{op}: layer {name!r} ran a second time in one forward pass, want a layer that runs once")
        self.ran = True

    def end(self, wanted: bool) -> None:
        self.running = False
        if not torch.compiler.is_compiling():
            self.missed = self.missed or (wanted and not self.ran)


@contextmanager
def _replaced(module: nn.Module, around: Callable[..., Any]) -> Iterator[None]:
    """``module(...)`` calls ``around(forward, ...)`` inside."""
    if isinstance(module, torch.jit.ScriptModule):
        raise TypeError("ManifoldMixup: the model holds a scripted module, want one in Python")
    before, own = module.forward, "forward" in module.__dict__

    def forward(*args: Any, **kwargs: Any) -> Any:
        return around(before, *args, **kwargs)

    module.forward = forward
    try:
        yield
    finally:
        if own:
            module.forward = before
        else:
            del module.forward


def unwrapped(model: nn.Module) -> nn.Module:
    """The module that DistributedDataParallel and torch.compile are wrapped around."""
    while True:
        if isinstance(model, DistributedDataParallel):
            model = model.module
        elif "_orig_mod" in model._modules:
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def units(model: nn.Module) -> list[str]:
    """The parts of a model in the order in which they are defined: its children with weights, where an nn.Sequential or
    nn.ModuleList counts as its parts. A model with one such part is looked into."""
    def parts(module: nn.Module, prefix: str) -> list[str]:
        found: list[str] = []
        for name, child in module.named_children():
            if isinstance(child, (nn.Sequential, nn.ModuleList)):
                found += parts(child, f"{prefix}{name}.")
            elif next(child.parameters(), None) is not None:
                found.append(prefix + name)
        return found

    prefix = ""
    while True:
        found = parts(model, prefix)
        inner = model.get_submodule(found[0].removeprefix(prefix)) if len(found) == 1 else None
        if inner is None or next(inner.children(), None) is None:
            return found
        model, prefix = inner, f"{found[0]}."
