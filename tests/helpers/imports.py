"""Which file of the Python sources imports which, read from their syntax trees: nothing is imported for it.

A file imports the files that its own lines name, wherever they stand: in a function and under TYPE_CHECKING as well.
`from .base import Mixer` is an import of base.py, `from . import base` too, and `from . import Mixer` one of the
package's __init__.py, where the name must come from. That Python runs the __init__.py of every package above an
imported module is not counted: it counts for what it imports itself.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

# Folder -> the names that its package has: in a checkout, installed.
PACKAGES = {"fastmix": ("fastmix",), "kernels": ("kernels", "fastmix.kernels"), "bench": ("bench", "fastmix.bench")}
Graph = dict[str, dict[str, int]]


def sources(root: Path) -> list[Path]:
    return sorted(path for folder in PACKAGES for path in (root / folder).rglob("*.py"))


def _names(root: Path) -> dict[str, str]:
    """Dotted name of a module -> its file, as a path from root."""
    found = {}
    for path in sources(root):
        folder, *parts = path.relative_to(root).with_suffix("").parts
        for package in PACKAGES[folder]:
            found[".".join([package, *(parts[:-1] if parts[-1] == "__init__" else parts)])] = str(
                path.relative_to(root))
    return found


def _dynamic(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, name) of what importlib.import_module is called with, a package where an f-string begins with its name.

    A file that calls it may keep the names in a table, so all of its strings with a dot are candidates.
    """
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and (
        getattr(node.func, "attr", None) or getattr(node.func, "id", None)) == "import_module"]
    if not calls:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "." in node.value:
            yield node.lineno, node.value
    for call in calls:
        if call.args and isinstance(call.args[0], ast.JoinedStr) and isinstance(call.args[0].values[0], ast.Constant):
            yield call.lineno, str(call.args[0].values[0].value).rpartition(".")[0]


def _imported(path: Path, package: list[str], names: dict[str, str]) -> Iterator[tuple[int, str]]:
    """(line, file) of every import; package: the names of the package that relative imports begin at."""
    tree = ast.parse(path.read_text(), str(path))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, names[alias.name]) for alias in node.names if alias.name in names)
        elif isinstance(node, ast.ImportFrom):
            above = package[:len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *(node.module or "").split(".")]).strip(".")
            for alias in node.names:
                target = names.get(f"{base}.{alias.name}") or names.get(base)
                if target is not None:
                    yield node.lineno, target
    yield from ((line, names[name]) for line, name in _dynamic(tree) if name in names)


def import_graph(root: Path) -> Graph:
    """File -> the files that it imports, each with the line of the first import."""
    names, graph = _names(root), {}
    for path in sources(root):
        file = path.relative_to(root)
        package = [*PACKAGES[file.parts[0]][-1].split("."), *file.parts[1:-1]]
        edges: dict[str, int] = {}
        for line, target in sorted(_imported(path, package, names)):
            if target != str(file):
                edges.setdefault(target, line)
        graph[str(file)] = edges
    return graph


def pairs(graph: Graph) -> list[str]:
    """Files that import each other."""
    return [f"{a}:{line} and {b}:{graph[b][a]}" for a, edges in graph.items() for b, line in edges.items()
            if a < b and a in graph.get(b, {})]


def cycles(graph: Graph) -> list[str]:
    """Cycles without which there would be none: each is found with the closing imports of those before left out."""
    edges, found = {file: set(targets) for file, targets in graph.items()}, []
    while True:
        try:
            TopologicalSorter(edges).prepare()
            return found
        except CycleError as error:
            cycle = error.args[1][::-1]  # graphlib names the imported file first
            found.append(" -> ".join(cycle))
            edges[cycle[-2]].discard(cycle[-1])


def bound_twice(root: Path) -> list[str]:
    """Names that a package's __init__.py binds to something else than the module of that name beside it."""
    found = []
    for path in sources(root):
        if path.name != "__init__.py":
            continue
        modules = {each.stem for each in path.parent.glob("*.py")} | {
            each.parent.name for each in path.parent.glob("*/__init__.py")}
        for node in ast.parse(path.read_text(), str(path)).body:
            bound = []
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                bound = [node.name]
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                bound = [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
            elif isinstance(node, ast.ImportFrom) and (node.level != 1 or node.module):
                bound = [alias.asname or alias.name for alias in node.names]
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                bound = [alias.asname for alias in node.names if alias.asname and alias.asname != alias.name]
            found += [f"{path.relative_to(root)}:{node.lineno} {name}" for name in bound if name in modules]
    return found


def include_graph(root: Path) -> Graph:
    """The same of the C++ and CUDA sources: their includes, from csrc or from the file's own folder."""
    graph = {}
    for path in sorted(path for path in (root / "csrc").rglob("*.*") if path.suffix in (".h", ".cpp", ".cu", ".cuh")):
        edges: dict[str, int] = {}
        for line, text in enumerate(path.read_text().splitlines(), 1):
            found = re.match(r'\s*#\s*include "([^"]+)"', text)
            for folder in (path.parent, root / "csrc") if found else ():
                target = (folder / found[1]).resolve()
                if target.is_file() and target.is_relative_to((root / "csrc").resolve()):
                    edges.setdefault(str(target.relative_to(root.resolve())), line)
                    break
        graph[str(path.relative_to(root))] = edges
    return graph
