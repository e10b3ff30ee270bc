"""The declaration of a method's option, from which the command line, its help and its checks follow."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any


class _Unset(Enum):
    UNSET = "unset"


UNSET = _Unset.UNSET


@dataclass(frozen=True)
class Option:
    """An option of one or several methods, and a flag of the command line.

    An option that is left out is None and not passed on, so that its default is that of the class or the function that
    takes it and is stated nowhere else.

    Args:
        name: of the option; the flag has hyphens instead of underscores.
        parse: the text of the flag to the value.
        help: what it is, for a newcomer; readers and default are added.
        source: where a paper names it.
        choices: the values to choose from; None: any.
        metavar: stands for the value in the help.
        target: the class or the function that takes it; None: the method's mixer.
        argument: its name there, if that is another.
        default: of an option that the program itself reads, not a class or a function.
        none: what it means if the default is None, in words.
        training: True for an option of training that only some methods read: presets keep it for another method.
        unread: why a method does not read it, for the error message; "": it is not among the readers.
    """

    name: str
    parse: Callable[[str], Any]
    help: str
    source: str
    choices: tuple[str, ...] | None = None
    metavar: str | None = None
    target: Callable[..., Any] | None = None
    argument: str | None = None
    default: Any = UNSET
    none: str = ""
    training: bool = False
    unread: str = ""

    @property
    def flag(self) -> str:
        return f"--{self.name.replace('_', '-')}"

    @property
    def keyword(self) -> str:
        """The name of the argument that takes it."""
        return self.argument or self.name

    @property
    def takes(self) -> bool:
        """Whether a class or a function takes it, not the program itself."""
        return self.default is UNSET

    def default_of(self, mixer: Callable[..., Any] | None) -> Any:
        """What an option that is left out comes to. mixer: the class of the method's mixer."""
        if not self.takes:
            return self.default
        target = self.target or mixer
        if target is None:
            raise TypeError(f"option {self.name} has neither a default nor a target, and the method has no mixer")
        found = inspect.signature(target).parameters[self.keyword].default
        if found is inspect.Parameter.empty:
            raise TypeError(f"option {self.name}: {target.__name__} states no default for {self.keyword}")
        return found

    def shown(self, value: Any) -> str:
        """A value as it is typed."""
        if value is None:
            return self.none
        if isinstance(value, (tuple, list)):
            return ",".join(map(str, value))
        return f"{value:g}" if isinstance(value, float) else str(value)
