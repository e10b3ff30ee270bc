"""Who imports whom: the program imports the library, never the reverse, and nothing imports in a circle."""

import json
import re
import subprocess
import sys

import pytest
from helpers import ROOT
from helpers.imports import Graph, bound_twice, cycles, import_graph, pairs, sources

GRAPH = import_graph(ROOT)
PROGRAM = "fastmix/app/"
# The program's own door, and the bench, which measures its training steps.
MAY_IMPORT_THE_PROGRAM = ("fastmix/__main__.py", PROGRAM, "bench/")
# What `import fastmix` has no use for; torch alone loads some of it.
NOT_WITH_THE_LIBRARY = ("argparse", "PIL", "triton", "matplotlib", "sklearn", "torchmetrics")


def reversed_imports(graph: Graph) -> list[str]:
    """Imports of the program by the library or the kernels."""
    return [f"{file}:{line} {target}" for file, targets in graph.items() for target, line in targets.items()
            if target.startswith(PROGRAM) and not file.startswith(MAY_IMPORT_THE_PROGRAM)]


def silenced(text: str) -> list[int]:
    """Lines that hide an import behind other code from the linter."""
    return [n for n, line in enumerate(text.splitlines(), 1) if re.search(r"noqa\b.*\bE402\b", line)]


@pytest.mark.parametrize("rule", [reversed_imports, pairs, cycles])
def test_the_program_imports_the_library_and_nothing_in_a_circle(rule):
    found = rule(GRAPH)
    assert not found, "\n".join(found)


def test_no_import_is_hidden_from_the_linter():
    found = [f"{path.relative_to(ROOT)}:{line}" for path in [*sources(ROOT), ROOT / "setup.py"]
             for line in silenced(path.read_text())]
    assert found == []
    assert "E402" not in (ROOT / "pyproject.toml").read_text()


def loaded(code: str, before: str = "", cwd=ROOT) -> set[str]:
    """The modules that code loads beyond what another line has loaded."""
    code = (f"import json, sys\n{before}\nbefore = set(sys.modules)\n{code}\n"
            "print(json.dumps(list(set(sys.modules) - before)))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=cwd)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_the_library_loads_neither_the_program_nor_what_it_needs():
    found = loaded("import fastmix", "import torch")
    wrong = [name for name in found if name.startswith("fastmix.app") or name.split(".")[0] in NOT_WITH_THE_LIBRARY]
    assert "fastmix.functional" in found and wrong == []


# Every module under a package: is it what its parent has under its name, before and after it is imported?
SHADOWED = """
import importlib, json, pkgutil, sys, types

def shadowed(package):
    found, missing = [], []
    parents = [importlib.import_module(package)]
    for parent in parents:
        for child in pkgutil.iter_modules(parent.__path__):
            name = f"{parent.__name__}.{child.name}"
            there = [vars(parent)[child.name]] if child.name in vars(parent) else []
            if child.name == "__main__" or not child.module_finder.find_spec(name).origin.endswith(".py"):
                continue
            try:
                module = importlib.import_module(name)
            except ModuleNotFoundError as error:
                if (error.name or package).split(".")[0] == package:
                    raise
                missing.append(f"{name} needs {error.name}")
                continue
            if any(each is not module for each in [*there, getattr(parent, child.name)]):
                found.append(name)
            if child.ispkg:
                parents.append(module)
    return found, missing, len(parents)

print(json.dumps(shadowed(sys.argv[1])))
"""


# PyPI's torchvision does not import by itself beside a CPU build of torch.
PREPARED = "from fastmix.app import import_torchvision; import_torchvision.prepare()"


def shadowed(package: str, cwd) -> tuple[list[str], list[str], int]:
    """Modules whose name means something else in their package, what could not be imported, number of packages."""
    prepared = PREPARED if cwd == ROOT else ""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", prepared + SHADOWED, package], capture_output=True,
                          text=True, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_no_module_is_shadowed_by_another_thing_of_its_name():
    found, _, packages = shadowed("fastmix", ROOT)
    assert found == [] and packages > 8
    assert bound_twice(ROOT) == []


# ---------------------------------------------------------------- each rule sees what it is there to see

def tree(folder, files: dict[str, str]):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.mark.parametrize("line", ["from .app import data", "from fastmix.app.data import load", "import fastmix.app",
                                  "def f():\n    from .app.data import load",
                                  "import importlib\nimportlib.import_module('fastmix.app.data')",
                                  "import importlib\ndef f(x):\n    importlib.import_module(f'fastmix.app.{x}')"])
@pytest.mark.parametrize("file", ["fastmix/targets.py", "kernels/blend.py", "fastmix/__main__.py", "bench/step.py"])
def test_an_import_of_the_program_is_seen(tmp_path, file, line):
    line = line.replace("from .app", "from fastmix.app")
    found = reversed_imports(import_graph(tree(tmp_path, {
        "fastmix/__init__.py": "", "fastmix/app/__init__.py": "", "fastmix/app/data.py": "", file: line})))
    assert len(found) == (file in ("fastmix/targets.py", "kernels/blend.py"))


@pytest.mark.parametrize("a,b,together", [
    ("from . import b", "from . import a", True), ("from .b import f", "from fastmix.a import g", True),
    ("def f():\n    from . import b", "import fastmix.a as a", True),
    ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .b import f", "from .a import g", True),
    ("from . import b", "from . import version", False),  # __init__.py's, which imports a
    ("from . import b", "", False)])
def test_files_that_import_each_other_are_seen(tmp_path, a, b, together):
    graph = import_graph(tree(tmp_path, {"fastmix/__init__.py": "from . import a\nversion = 1", "fastmix/a.py": a,
                                         "fastmix/b.py": b}))
    assert bool(pairs(graph)) is together
    assert ("fastmix/a.py" in "".join(cycles(graph))) is (together or "version" in b)


def test_a_circle_of_three_is_seen(tmp_path):
    graph = import_graph(tree(tmp_path, {
        "bench/__init__.py": "", "bench/a.py": "from .cases import b", "bench/cases/__init__.py": "",
        "bench/cases/b.py": "from . import c", "bench/cases/c.py": "from .. import a"}))
    assert pairs(graph) == []
    assert cycles(graph) == ["bench/a.py -> bench/cases/b.py -> bench/cases/c.py -> bench/a.py"]


@pytest.mark.parametrize("files", [
    {"__init__.py": "from .saliency import saliency"}, {"__init__.py": "def saliency(): pass"},
    {"__init__.py": "saliency = 1"}, {"__init__.py": "from . import ops as saliency", "ops.py": ""},
    {"__init__.py": "from .ops import *", "ops.py": "saliency = 1"}])
def test_a_shadowed_module_is_seen(tmp_path, files):
    tree(tmp_path, {"fastmix/saliency.py": "def saliency(): pass",
                    **{f"fastmix/{name}": text for name, text in files.items()}})
    assert shadowed("fastmix", tmp_path)[0] == ["fastmix.saliency"]
    assert bool(bound_twice(tmp_path)) is ("*" not in files["__init__.py"])


def test_a_hidden_import_and_a_heavy_one_are_seen(tmp_path):
    assert silenced("import a\nimport b  # " + "noqa: I001, E402") == [2]
    tree(tmp_path, {"fastmix/__init__.py": "from . import functional", "fastmix/functional.py": "import argparse"})
    assert {"fastmix.functional", "argparse"} <= loaded("import fastmix", cwd=tmp_path)
