"""What a user's type checker and `help` say of the public names."""

import ast
import inspect
import re

import pytest
import torch
from helpers import ROOT

import fastmix


def test_a_users_program_passes_mypy_strict():
    """With the project's settings, which are strict, and so from the cache of `make lint`."""
    api = pytest.importorskip("mypy.api")
    out, err, status = api.run(["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache"),
                                "--no-error-summary", str(ROOT / "tests" / "helpers" / "typed_user.py")])
    assert (out, err, status) == ("", "", 0)


def calls(text: str):
    """(class, what a type checker takes for its call, its forward) of a file."""
    for found in ast.walk(ast.parse(text)):
        if isinstance(found, ast.ClassDef):
            own = {each.name: each for each in found.body if isinstance(each, ast.FunctionDef)}
            typed = [each for part in found.body if isinstance(part, ast.If) for each in part.body
                     if ast.unparse(part.test) == "TYPE_CHECKING" and isinstance(each, ast.FunctionDef)]
            for call in typed:
                both = call, own.get("forward") or own["update"]
                yield found.name, *(f"{ast.unparse(each.args)} -> {ast.unparse(each.returns)}" for each in both)


def test_calls_are_typed_as_forward_is():
    found = [call for folder in ("mixers", "losses") for path in (ROOT / "fastmix" / folder).glob("*.py")
             for call in calls(path.read_text())]
    assert len(found) >= 8 and [name for name, call, forward in found if call != forward] == []
    assert {name for name, *_ in found} >= {"Mixer", "ISDALoss", *(name for name in MODULES if name.endswith("Loss"))}


MODULES = {name: found for name in fastmix.__all__ if inspect.isclass(found := getattr(fastmix, name))
           and issubclass(found, torch.nn.Module) and found is not fastmix.Mixer}
ENTRY = re.compile(r"^(?P<names>\*?\w+(?:, \*?\w+)*): (?P<text>.+)$")


def described(found: type) -> dict[str, str]:
    """Argument -> what the class says of it: the lines "name: text" and "name, other: text" of its Args."""
    doc = inspect.cleandoc(found.__doc__ or "")
    part = re.search(r"^Args:\n((?: {4}.*\n|\n)+)", doc + "\n", re.M)
    texts: dict[str, str] = {}
    for line in re.sub(r"\n {8,}", " ", part[1] if part else "").splitlines():
        if entry := ENTRY.match(line.strip()):
            texts |= dict.fromkeys(re.findall(r"\w+", entry["names"]), entry["text"])
    return texts


def not_described(found: type) -> list[str]:
    """Arguments that help() leaves out, or of which it says only where to look."""
    texts = described(found)
    names = [name for name in inspect.signature(found).parameters if name not in ("args", "kwargs")]
    return [name for name in names if re.match(r"(?:$|(?:as|see)\b[^;]*$)", texts.get(name, ""))]


@pytest.mark.parametrize("name", MODULES)
def test_help_says_what_every_argument_is(name):
    assert not_described(MODULES[name]) == []


def test_an_argument_that_help_leaves_out_is_seen():
    class Loose:
        """Mixes.

        Args:
            k: images mixed into one,
                or more.
            alpha, prob: as `DMixup`.
            *more: what else.
        Source: nowhere.
        """

        def __init__(self, k, alpha, prob, *more, generator=None):
            pass

    assert described(Loose)["k"] == "images mixed into one, or more." and "more" in described(Loose)
    assert not_described(Loose) == ["alpha", "prob", "generator"]


def test_plans_and_mixers_have_public_names():
    plans = set(fastmix.Plan.__args__)
    assert plans == {found for name in fastmix.__all__ if name.endswith("Plan")
                     and inspect.isclass(found := getattr(fastmix, name))}
    assert all(issubclass(MODULES[name], fastmix.Mixer) for name in ("DCutMix", "SoftCrop", "RandomChoice"))
    assert all("Fields:" in plan.__doc__ for plan in plans)
