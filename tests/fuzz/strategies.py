"""The table of strategies: public name -> how a call of it is drawn. `public.callables` says which there have to be."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from .values import Call, Drawing

Strategy: TypeAlias = Callable[[Drawing], Call]
STRATEGIES: dict[str, Strategy] = {}


def strategy(*names: str) -> Callable[[Strategy], Strategy]:
    """For these names; the drawing knows which one it is drawn for."""
    def enter(found: Strategy) -> Strategy:
        for name in names:
            if name in STRATEGIES:
                raise ValueError(f"{name} has two strategies")
            STRATEGIES[name] = found
        return found
    return enter
