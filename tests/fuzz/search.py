"""hypothesis looks for a call that does what no call may do, and shrinks it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from hypothesis import HealthCheck, Phase, assume, given, seed, settings
from hypothesis import strategies as st

from . import functions, mixing, modules, outcome, variants  # noqa: F401 - the strategies
from .strategies import STRATEGIES
from .values import Call, Drawing

Before = Callable[[str], None]


class Found(NamedTuple):
    """A call that is wrong: what it did, and source that does it."""

    name: str
    what: str
    source: str


@st.composite
def calls(draw: Callable[[Any], Any], name: str, choices: tuple[str, ...], large: bool) -> tuple[Call, str, int]:
    drawing = Drawing(draw, name, large)
    variant = choices[draw(st.integers(0, 11)) % len(choices)]  # the same calls on a machine with other ones
    return STRATEGIES[name](drawing), variant, drawing.seed()


def search(name: str, backend: str, number: int, start: int, before: Before, counts: Counter[str],
           large: bool = True) -> Found | None:
    """Draws and checks about ``number`` calls of a public name. before: is told the source of each."""
    choices = tuple(variants.of(backend))
    last = ""

    @seed(start)
    @settings(max_examples=number, database=None, deadline=None, suppress_health_check=list(HealthCheck),
              derandomize=False, report_multiple_bugs=False, phases=(Phase.generate, Phase.shrink), print_blob=False)
    @given(calls(name, choices, large))
    def one(drawn: tuple[Call, str, int]) -> None:
        nonlocal last
        call, variant, start = drawn
        last = outcome.source(call, variant, start)
        before(last)
        try:
            counts[outcome.check(call, variant, start, variants.serving)] += 1
        except outcome.Impossible:
            assume(False)

    try:
        one()
    except outcome.Wrong as wrong:
        return Found(name, str(wrong), last)
    return None
