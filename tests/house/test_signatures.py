"""The public API is typed: every argument and every result of what a person imports, and none as Any."""

import importlib
import inspect
import re

import pytest

MODULES = ("fastmix", "fastmix.functional", "fastmix.mixers", "fastmix.losses")
PUBLIC = {f"{module}.{name}": getattr(importlib.import_module(module), name)
          for module in MODULES for name in importlib.import_module(module).__all__}


def functions(found):
    """The function, or the public methods of the class that this project wrote."""
    if not inspect.isclass(found):
        return [found] if inspect.isfunction(found) else []
    own = [found.__init__, *(member for name, member in inspect.getmembers(found) if not name.startswith("_"))]
    own = [member.fget if isinstance(member, property) else member for member in own]
    return [member for member in own
            if inspect.isroutine(member) and getattr(member, "__module__", "").startswith("fastmix")]


def problems(function):
    """What is missing or Any in a signature, as "function: argument"."""
    signature = inspect.signature(function)
    parts = [(name, parameter.annotation) for name, parameter in signature.parameters.items()
             if name not in ("self", "cls")]
    parts.append(("return", signature.return_annotation))
    return [f"{function.__qualname__}: {name}" for name, annotation in parts
            if annotation is inspect.Signature.empty or re.search(r"\bAny\b", str(annotation))]


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_signature_is_typed(name):
    assert [problem for function in functions(PUBLIC[name]) for problem in problems(function)] == []


def test_a_signature_without_types_is_seen():
    def loose(x, y: "dict[str, Any]") -> "int":  # noqa: F821
        return 0

    assert [problem.split(": ")[1] for problem in problems(loose)] == ["x", "y"]
