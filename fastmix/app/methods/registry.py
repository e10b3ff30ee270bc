"""The methods by name, found in the files of this package, and what follows from the options they declare."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Protocol

from ..console import UsageError
from .base import Method, Settings
from .option import Option


def _discover() -> dict[str, type[Method]]:
    """The classes with a name in the modules of this package."""
    found = []
    for entry in pkgutil.iter_modules([str(Path(__file__).parent)]):
        module = importlib.import_module(f"{__package__}.{entry.name}")
        found += [each for each in vars(module).values() if isinstance(each, type) and issubclass(each, Method)
                  and each.__module__ == module.__name__ and "name" in vars(each)]
    return {method.name: method for method in sorted(found, key=lambda method: (method.position, method.name))}


def _declared(methods: Iterable[type[Method]]) -> dict[str, list[Option]]:
    """Every option, once for each help text: what a name means may differ between families of methods."""
    found: dict[str, list[Option]] = {}
    for method in methods:
        for option in method.options:
            known = found.setdefault(option.name, [])
            if option.help not in [other.help for other in known]:
                known.append(option)
    return found


METHODS: dict[str, type[Method]] = _discover()
OPTIONS: dict[str, list[Option]] = _declared(METHODS.values())
PLAIN = "none"


class Named(Settings, Protocol):
    """Settings that name their method."""

    @property
    def method(self) -> str: ...


def of(settings: Named) -> Method:
    """The method of a run with these settings."""
    return METHODS[settings.method](settings)


def plain(settings: Settings) -> Method:
    """What other methods are compared with, under the same settings."""
    return METHODS[PLAIN](settings)


def readers(name: str) -> list[str]:
    """The methods that read an option."""
    return [method.name for method in METHODS.values() if method.option(name) is not None]


def is_own(name: str) -> bool:
    """Whether it is an option of a method, and not one of training that only some methods read."""
    return name in OPTIONS and not OPTIONS[name][0].training


def check_flags(chosen: Collection[str], given: Iterable[str]) -> None:
    """UsageError for an option that was given and that no chosen method reads."""
    for name in OPTIONS:
        if name in given and not set(chosen) & set(readers(name)):
            option = OPTIONS[name][0]
            why = f", {option.unread}" if option.unread else f"; it is for {', '.join(readers(name))}"
            raise UsageError(f"{option.flag} means nothing to {', '.join(chosen)}{why}")


def help_of(name: str) -> str:
    """The help of an option: what it is to whom, and what it comes to when it is left out."""
    texts = []
    for option in OPTIONS[name]:
        defaults: dict[str, list[str]] = {}
        for method in METHODS.values():
            own = method.option(name)
            if own is not None and own.help == option.help:
                defaults.setdefault(own.shown(method.default(name)), []).append(method.name)
        shown = "; ".join(f"{', '.join(names)}: {value}" for value, names in defaults.items())
        texts.append(f"{option.help} ({shown})")
    return "; ".join(texts)
