"""What a person imports: every public name, and the functions and methods behind it."""

from __future__ import annotations

import importlib
import inspect
import typing
from collections.abc import Callable
from functools import cache
from types import UnionType
from typing import Any

MODULES = ("fastmix", "fastmix.functional", "fastmix.mixers", "fastmix.losses")


def names() -> dict[str, Any]:
    """``fastmix.functional.blend`` and the like: what ``__all__`` of each module lists."""
    return {f"{module}.{name}": getattr(importlib.import_module(module), name)
            for module in MODULES for name in importlib.import_module(module).__all__}


PUBLIC = names()


def plans() -> tuple[type, ...]:
    """The classes of what a mixer's ``plan`` gives."""
    return typing.get_args(importlib.import_module("fastmix.mixers.plans").Plan)


def functions(found: Any) -> list[Callable[..., Any]]:
    """The function, or the public methods of the class that this project wrote."""
    if not inspect.isclass(found):
        return [found] if inspect.isfunction(found) else []
    own = [found.__init__, *(member for name, member in inspect.getmembers(found) if not name.startswith("_"))]
    own = [member.fget if isinstance(member, property) else member for member in own]
    return [member for member in own
            if inspect.isroutine(member) and getattr(member, "__module__", "").startswith("fastmix")]


@cache
def callables() -> dict[str, Callable[..., Any]]:
    """Everything that can be called by a name of its own: ``functional.blend``, ``CutMix``, ``Mixer.plan``,
    ``SoftTarget.cat``. An inherited method is there once, under the class that has it."""
    found: dict[str, Callable[..., Any]] = {}
    for name, each in [*PUBLIC.items(), *((f"fastmix.{plan.__name__}", plan) for plan in plans())]:
        if inspect.ismodule(each) or isinstance(each, UnionType):  # a type alias is not called
            continue
        module, _, own = name.rpartition(".")
        found[f"functional.{own}" if module == "fastmix.functional" else own] = each
        if inspect.isclass(each):
            for method in functions(each):
                method = getattr(method, "__wrapped__", method)  # of a context manager
                if not method.__name__.startswith("_"):
                    owner = method.__qualname__.rpartition(".")[0]
                    found[f"{own if owner.startswith('_') else owner}.{method.__name__}"] = method
    return found
