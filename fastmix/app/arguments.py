"""What the text of a flag is turned into: numbers within bounds and lists, for ``type=`` of argparse."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Collection
from typing import Any

from .command_line import meant


def _number(kind: Callable[[str], Any], low: float, high: float, above: bool, text: str) -> Callable[[str], Any]:
    def parse(value: str) -> Any:
        try:
            number = kind(value)
        except ValueError:
            raise argparse.ArgumentTypeError(f"is {value!r}, want {text}") from None
        if not math.isfinite(number) or number < low or number > high or (above and number == low):
            raise argparse.ArgumentTypeError(f"is {value}, want {text}")
        return number
    return parse


count = _number(int, 1, 2**31, False, "a whole number >= 1")
count_or_zero = _number(int, 0, 2**31, False, "a whole number >= 0")
seed_number = _number(int, 0, 2**63 - 1, False, "a whole number >= 0")
positive = _number(float, 0, math.inf, True, "a number above 0")
not_negative = _number(float, 0, math.inf, False, "a number >= 0")
share = _number(float, 0, 1, False, "a number from 0 to 1")


def part(value: str) -> float:
    """A share that is not empty."""
    number = positive(value)
    if number > 1:
        raise argparse.ArgumentTypeError(f"is {value}, want a share above 0, at most 1")
    return number


def number_or_random(value: str) -> float | str:
    return value if value == "random" else _number(float, -math.inf, math.inf, False, "a number or random")(value)


def counts(value: str) -> tuple[int, ...]:
    return tuple(count(number) for number in value.split(","))


def names(value: str) -> tuple[str, ...]:
    found = tuple(value.split(","))
    if not all(found):
        raise argparse.ArgumentTypeError(f"is {value!r}, want names with commas between them")
    return found


def some_of(known: Collection[str]) -> Callable[[str], list[str]]:
    """A list of known names, each of them once, in the order in which they are written."""
    def parse(value: str) -> list[str]:
        found = value.split(",")
        for name in found:
            if name not in known:
                raise argparse.ArgumentTypeError(f"names {name!r}, want some of {', '.join(known)}{meant(name, known)}")
        return list(dict.fromkeys(found))
    return parse
