"""One registered operator: its fake, its autograd, and the short way around the dispatcher in eager mode.

Under ``torch.compile`` an operator goes through ``torch.library``'s autograd. Eager calls take an
``autograd.Function`` instead, or no autograd at all where no gradient is wanted: register_autograd's Python
kernel costs 2.5 us a call without and 6 us more with a gradient (measured, 2-core EPYC, torch 2.13), as
much as a whole kernel at CIFAR sizes. Both ways share setup and backward; tests hold them equal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .dispatch import operator_checks
from .library import TRITON_NAMESPACE

_BelowAutograd = torch._C._AutoDispatchBelowAutograd

# backend name -> namespace of its operators.
NAMESPACES = {"cpu": "fastmix", "cuda": "fastmix", "triton": TRITON_NAMESPACE}


def eager(overload: Any) -> Any:
    """The operator itself, past a Python method that only hands its arguments on: 0.4 us less a call."""
    return overload._op


def apply_of(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """``function.apply`` without what it does for torch.func transforms, under which `dispatch.select` takes the
    reference: 2 us of Python less a call (measured, torch 2.13)."""
    apply: Callable[..., Any] = super(torch.autograd.Function, function).apply  # type: ignore[misc]
    return apply


class Operator:
    """``Operator("blend", fake)("cpu", x, index, weight)`` calls the operator on a backend.

    Args:
        name: as in schemas.def.
        fake: the shape function, arguments as the schema.
        setup: ``setup(ctx, inputs, output)`` saves what backward needs; ``ctx.backend`` is set already.
        backward: ``backward(ctx, *grads)`` returns one entry per input.
        differentiable: how many of the first inputs a gradient may flow to.
        data: the places of outputs that carry no gradient.
    """

    def __init__(self, name: str, fake: Callable[..., Any], *, setup: Callable[..., None] | None = None,
                 backward: Callable[..., Any] | None = None, differentiable: int = 1,
                 data: tuple[int, ...] = ()) -> None:
        self._name, self._fake, self._setup, self._backward = name, fake, setup, backward
        self._others = range(differentiable - 1)
        self._data = data
        self._overloads: dict[str, Any] = {}
        self._direct: dict[str, Any] = {}
        self._functions: dict[str, Callable[..., Any]] = {}
        self._registered: set[str] = set()
        for backend, namespace in NAMESPACES.items():
            self.add(backend, namespace)

    def add(self, backend: str, namespace: str) -> None:
        """Serve ``backend`` by the operator of this name in ``namespace``, whose schema exists."""
        name, setup, backward, data = self._name, self._setup, self._backward, self._data
        overload = getattr(getattr(torch.ops, namespace), name).default
        self._overloads[backend], self._direct[backend] = overload, eager(overload)
        if backward is not None:
            self._functions[backend] = apply_of(_function(overload, backend, setup, backward, data))
        if namespace in self._registered:
            return
        self._registered.add(namespace)
        torch.library.register_fake(f"{namespace}::{name}", self._fake)
        if backward is not None:
            torch.library.register_autograd(f"{namespace}::{name}", backward,
                                            setup_context=_with_backend(setup, backend, data))

    def checked(self, x: torch.Tensor, *data: Any) -> Any:
        """The result where the C++ operator can check the arguments (`dispatch.operator_checks`) and accepts them, else
        None: then Python's checks find what is wrong, or another backend serves."""
        if not operator_checks(self._name, x, *data):
            return None
        try:
            return self("cpu", x, *data)
        except RuntimeError:
            return None

    def __call__(self, backend: str, x: torch.Tensor, *args: Any) -> Any:
        if torch.compiler.is_compiling():
            return self._overloads[backend](x, *args)
        if self._functions and torch.is_grad_enabled() and (
                x.requires_grad or any(args[i].requires_grad for i in self._others)):
            return self._functions[backend](x, *args)
        with _BelowAutograd():
            return self._direct[backend](x, *args)


def _with_backend(setup: Callable[..., None] | None, backend: str, data: tuple[int, ...]) -> Callable[..., None]:
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.backend = backend
        if data:
            ctx.mark_non_differentiable(*(output[i] for i in data))
        if setup is not None:
            setup(ctx, inputs, output)
    return setup_context


def _function(overload: Any, backend: str, setup: Callable[..., None] | None,
              backward_of: Callable[..., Any], data: tuple[int, ...]) -> type[torch.autograd.Function]:
    # forward(ctx, ...) rather than a separate setup_context: the latter binds the signature on every call.
    setup_context, direct = _with_backend(setup, backend, data), eager(overload)

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            with _BelowAutograd():
                output = direct(*args)
            setup_context(ctx, args, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return backward_of(ctx, *grads)

    Eager.__name__ = f"{overload._schema.name.split('::')[1]}_{backend}"
    return Eager
