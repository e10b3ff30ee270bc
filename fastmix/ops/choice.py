"""Which of two GPU backends serves, by operator and by the shapes and dtypes of a call: gpu_backends.json.

The first entry that matches a call decides; the last entry of an operator matches every call. An entry leaves out what
does not matter to it: form (of `isda`: the kind of covariance, or consistency), element (bytes of one of the tensor's
elements), layout ("planes" or "channels_last"), size ("small": fewer than `LARGE` elements, or "large"). `reason` says
what was compared, `source` what it is known from: a page that predicts, or the card that measured it (the device check
writes the file then). Read once; nothing is asked of a call that does not change the answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..reference._common import is_channels_last

FILE = Path(__file__).with_name("gpu_backends.json")
LARGE = 1 << 22  # elements: 16 MB of float32, what a launch costs is then small beside it
LAYOUTS, SIZES = ("planes", "channels_last"), ("small", "large")
ELEMENTS = (1, 2, 4, 8)
BACKENDS = ("cuda", "triton")
_DTYPES = {torch.uint8: 1, torch.bool: 1, torch.float16: 2, torch.bfloat16: 2, torch.int16: 2, torch.float32: 4,
           torch.int32: 4, torch.float64: 8, torch.int64: 8}

Entry = Mapping[str, Any]
# A backend, or how to find it from the tensor and the form of a call.
Choice = str | Callable[[Tensor, str | None], str]


def load(path: Path = FILE) -> dict[str, list[Entry]]:
    """Operator -> its entries. ValueError for what cannot be understood."""
    found: dict[str, list[Entry]] = {}
    for entry in json.loads(path.read_text())["entries"]:
        _check(entry, path)
        found.setdefault(entry["operator"], []).append(entry)
    for operator, entries in found.items():
        if set(entries[-1]) & {"form", "element", "layout", "size"}:
            raise ValueError(f"{path}: the last entry of {operator} does not match every call")
    return found


def _check(entry: Entry, path: Path) -> None:
    allowed = {"element": ELEMENTS, "layout": LAYOUTS, "size": SIZES, "backend": BACKENDS}
    missing = [key for key in ("operator", "backend", "reason", "source") if not entry.get(key)]
    if missing:
        raise ValueError(f"{path}: an entry without {missing[0]}: {dict(entry)}")
    for key, values in allowed.items():
        if key in entry and entry[key] not in values:
            raise ValueError(f"{path}: {key} is {entry[key]!r}, want one of {', '.join(map(str, values))}")
    if unknown := set(entry) - {"operator", "form", "reason", "source", *allowed}:
        raise ValueError(f"{path}: {sorted(unknown)[0]} in an entry of {entry['operator']}")


def decide(entries: Sequence[Entry], serves: Callable[[str, str | None], bool]) -> Choice | None:
    """What to ask of a call. serves: whether a backend is there, for this form (None: for any). None: none is there.

    An entry whose backend is not there means the other one.
    """
    there = [name for name in BACKENDS if serves(name, None)]
    if not there:
        return None

    def backend(entry: Entry, form: str | None) -> str:
        wanted = entry["backend"]
        if wanted in there and serves(wanted, form):
            return wanted
        return next((name for name in there if serves(name, form)), there[0])

    def of_form(form: str | None) -> _Tree:
        matching = [entry for entry in entries if entry.get("form", form) == form]
        return _tree([(entry, backend(entry, form)) for entry in matching], tuple(_VALUES))

    rest, forms = of_form(None), {entry["form"]: of_form(entry["form"]) for entry in entries if "form" in entry}
    if all(tree == rest for tree in forms.values()):
        return _compiled(rest)
    return _by_form({form: _compiled(tree) for form, tree in forms.items()}, _compiled(rest))


# ---------------------------------------------------------------- what is asked, in this order

_VALUES: dict[str, tuple[Any, ...]] = {"element": ELEMENTS, "layout": LAYOUTS, "size": SIZES}
# A backend, or a feature and what follows from each of its values.
_Tree = str | tuple[str, tuple["_Tree", ...]]


def _tree(rules: Sequence[tuple[Entry, str]], features: Sequence[str]) -> _Tree:
    """rules: entries and their backends, the first that matches counts."""
    if not features:
        return rules[0][1]
    feature, *rest = features
    branches = tuple(_tree([rule for rule in rules if rule[0].get(feature, value) == value], rest)
                     for value in _VALUES[feature])
    return branches[0] if len(set(branches)) == 1 else (feature, branches)


def _compiled(tree: _Tree) -> Choice:
    if isinstance(tree, str):
        return tree
    feature, branches = tree
    return _ASKED[feature](dict(zip(_VALUES[feature], map(_compiled, branches), strict=True)))


def _by_form(branches: dict[Any, Choice], rest: Choice) -> Choice:
    def choose(x: Tensor, form: str | None) -> str:
        found = branches.get(form, rest)
        return found if isinstance(found, str) else found(x, form)
    return choose


def _by_element(branches: dict[Any, Choice]) -> Choice:
    by_dtype = {dtype: branches[size] for dtype, size in _DTYPES.items()}

    def choose(x: Tensor, form: str | None) -> str:
        found = by_dtype[x.dtype]
        return found if isinstance(found, str) else found(x, form)
    return choose


def _by_layout(branches: dict[Any, Choice]) -> Choice:
    planes, last = (branches[layout] for layout in LAYOUTS)

    def choose(x: Tensor, form: str | None) -> str:
        found = last if is_channels_last(x) else planes
        return found if isinstance(found, str) else found(x, form)
    return choose


def _by_size(branches: dict[Any, Choice]) -> Choice:
    small, large = (branches[size] for size in SIZES)  # both backends: nothing is asked after it
    return lambda x, form: large if x.numel() >= LARGE else small  # type: ignore[return-value]


_ASKED = {"element": _by_element, "layout": _by_layout, "size": _by_size}
