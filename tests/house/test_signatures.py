"""The public API is typed: every argument and every result of what a person imports, and none as Any."""

import inspect
import re

import pytest
from helpers.public import PUBLIC, functions


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
