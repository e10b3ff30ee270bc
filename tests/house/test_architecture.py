"""The drawing in docs/architecture.md is of this project: its folders, and the direction of its imports.

An arrow of the drawing goes from a node or a group to another; a group stands for all that is in it. Every import
(include) between two nodes follows the arrows. Only nodes in the same innermost group may be joined without an arrow,
and then no arrow says the contrary.
"""

import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers import ROOT
from helpers.imports import Graph, import_graph, include_graph

PAGE = ROOT / "docs" / "architecture.md"
FOLDERS = ("fastmix", "kernels", "bench", "csrc", "tests", "examples")
SOURCES = (".py", ".cpp", ".h", ".cu", ".cuh", ".sh")


class Drawing(NamedTuple):
    """Nodes and groups by their names in the drawing."""

    paths: dict[str, list[str]]  # files and folders
    inside: dict[str, str]  # the group that each is in
    arrows: list[tuple[str, str]]
    dotted: list[tuple[str, str]]

    def around(self, name: str) -> list[str]:
        """The node and the groups that it is in, the innermost first."""
        found = [name]
        while found[-1] in self.inside:
            found.append(self.inside[found[-1]])
        return found

    def members(self, name: str) -> list[str]:
        return [each for each in self.paths if name in self.around(each)]

    def owner(self, file: str) -> str | None:
        """The node (or group with a path of its own) that a file is in: the one that names it or its folder."""
        for path in (file, str(Path(file).parent)):
            for name, paths in self.paths.items():
                if path in paths:
                    return name
        return None

    def below(self) -> dict[str, set[str]]:
        """Node -> all nodes that the arrows lead to from it. CycleError where they lead back."""
        direct: dict[str, set[str]] = {name: set() for name in self.paths}
        for start, end in self.arrows:
            for name in self.members(start):
                direct[name] |= set(self.members(end))
        found: dict[str, set[str]] = {}
        for name in TopologicalSorter(direct).static_order():
            found[name] = direct[name].union(*(found[each] for each in direct[name]))
        return found


def drawing(text: str) -> Drawing:
    """The page's mermaid block. Lines of a label that are one word are paths. ValueError for what is not understood."""
    block = re.search(r"^```mermaid\nflowchart TD\n(.*?)^```", text, re.M | re.S)[1]
    drawn = Drawing({}, {}, [], [])
    groups: list[str] = []
    for line in filter(None, map(str.strip, block.splitlines())):
        if node := re.fullmatch(r'(subgraph )?(\w+)\["(.+)"\]', line):
            drawn.paths[node[2]] = [part for part in node[3].split("<br>") if re.fullmatch(r"[\w./]+", part)]
            if groups:
                drawn.inside[node[2]] = groups[-1]
            if node[1]:
                groups.append(node[2])
        elif arrow := re.fullmatch(r"([\w& ]+) (-->|-\.->)(?:\|[^|]+\|)? ([\w& ]+)", line):
            ends = [(a, b) for a in arrow[1].split(" & ") for b in arrow[3].split(" & ")]
            unknown = {end for pair in ends for end in pair} - drawn.paths.keys()
            if unknown:
                raise ValueError(f"an arrow of something that is not drawn: {unknown}")
            (drawn.arrows if arrow[2] == "-->" else drawn.dotted).extend(ends)
        elif line == "end":
            groups.pop()
        else:
            raise ValueError(f"neither node nor arrow: {line}")
    return drawn


def source_files(root: Path) -> Iterator[str]:
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in SOURCES and "__pycache__" not in path.parts:
                yield str(path.relative_to(root))


def not_drawn(drawn: Drawing, root: Path) -> list[str]:
    """Sources whose folder is not in the drawing."""
    return [file for file in source_files(root) if drawn.owner(file) is None]


def not_there(drawn: Drawing, root: Path) -> list[str]:
    """Paths of the drawing that do not exist, or folders that hold no source."""
    files = list(source_files(root))
    return [path for paths in drawn.paths.values() for path in paths
            if path not in files and not any(file.startswith(f"{path}/") for file in files)]


def no_import(drawn: Drawing, graph: Graph) -> list[str]:
    """Arrows that no import goes along from one end to the other."""
    joined = {(start, end) for file, targets in graph.items() for target in targets
              for start in drawn.around(drawn.owner(file)) for end in drawn.around(drawn.owner(target))}
    return [f"{start} --> {end}" for start, end in drawn.arrows if (start, end) not in joined]


def without_an_arrow(drawn: Drawing, graph: Graph) -> list[str]:
    """Imports that go against the arrows, or from a group to another without one."""
    below, found = drawn.below(), []
    for file, targets in graph.items():
        for target, line in targets.items():
            start, end = drawn.owner(file), drawn.owner(target)
            if start == end or end in below[start]:
                continue
            siblings = end in drawn.around(start) or start in drawn.around(end) or (
                drawn.inside.get(start, start) == drawn.inside.get(end, end))
            if start in below[end] or not siblings:
                found.append(f"{file}:{line} imports {target}, and no arrow leads from {start} to {end}")
    return found


def graph_of(root: Path) -> Graph:
    return import_graph(root) | include_graph(root)


DRAWN = drawing(PAGE.read_text())


@pytest.mark.parametrize("rule", [not_drawn, not_there])
def test_the_folders_are_those_of_the_drawing(rule):
    found = rule(DRAWN, ROOT)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("rule", [no_import, without_an_arrow])
def test_the_imports_are_those_of_the_drawing(rule):
    missing = [file for file in not_drawn(DRAWN, ROOT) if not file.startswith(("tests/", "examples/"))]
    assert not missing, f"in no node, so its imports cannot be compared: {missing}"
    found = rule(DRAWN, graph_of(ROOT))
    assert not found, "\n".join(found)


# ---------------------------------------------------------------- each rule sees what it is there to see

SMALL = """```mermaid
flowchart TD
    subgraph app["fastmix/app<br>the program"]
        cli["fastmix/app/cli"]
        subgraph runs["two beside each other"]
            training["fastmix/app/training"]
            figures["fastmix/app/figures"]
        end
    end
    ops["fastmix/ops"]
    shared["fastmix/targets.py<br>fastmix/ops/checks.py<br>for all"]
    subgraph csrc["C++"]
        cpu["csrc/cpu"]
        core["csrc/core"]
    end
    cli --> runs
    app --> ops
    ops --> shared
    ops -.->|torch.ops| csrc
    cpu --> core
```
"""
FILES = {"fastmix/app/__init__.py": "", "fastmix/app/cli/train.py": "from ..training import run",
         "fastmix/app/training/run.py": "from ..figures import curves\nfrom ... import ops\nfrom .. import console",
         "fastmix/app/console.py": "", "fastmix/app/figures/curves.py": "", "fastmix/ops/__init__.py": "",
         "fastmix/ops/blend.py": "from ..targets import SoftTarget\nfrom . import checks", "fastmix/ops/checks.py": "",
         "fastmix/targets.py": "", "csrc/cpu/blend.cpp": '#include "core/boxes.h"\n#include "simd.h"\n',
         "csrc/cpu/simd.h": "#include <cmath>\n", "csrc/core/boxes.h": ""}


def broken(tmp_path, page: str = SMALL, **changed: str) -> dict[str, list[str]]:
    """Rule -> what it finds in the small project with changed files."""
    for name, text in (FILES | changed).items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    drawn = drawing(page)
    found = {rule.__name__: rule(drawn, tmp_path) for rule in (not_drawn, not_there)}
    if not found["not_drawn"]:
        found |= {rule.__name__: rule(drawn, graph_of(tmp_path)) for rule in (no_import, without_an_arrow)}
    return {name: lines for name, lines in found.items() if lines}


def test_a_drawing_that_is_right(tmp_path):
    assert broken(tmp_path) == {}
    drawn = drawing(SMALL)
    assert drawn.dotted == [("ops", "csrc")] and drawn.below()["cli"] == {
        "runs", "training", "figures", "ops", "shared"}


@pytest.mark.parametrize("file,text,rule", [
    ("fastmix/app/results/collect.py", "", "not_drawn"), ("fastmix/loose.py", "", "not_drawn"),
    ("fastmix/ops/blend.py", "", "no_import"), ("csrc/cpu/blend.cpp", "", "no_import"),
    ("fastmix/ops/view.py", "from ..app import console", "without_an_arrow"),
    ("fastmix/app/figures/bars.py", "def f():\n    from ..cli import train", "without_an_arrow"),
    ("fastmix/targets.py", "import fastmix.ops.blend", "without_an_arrow"),
    ("csrc/core/boxes.h", '#include "cpu/simd.h"\n', "without_an_arrow")])
def test_a_project_that_is_not_the_drawn_one_is_seen(tmp_path, file, text, rule):
    assert list(broken(tmp_path, **{file: text})) == [rule]


@pytest.mark.parametrize("old,new,rule", [
    ('    ops["fastmix/ops"]\n', '    ops["fastmix/ops"]\n    more["fastmix/more"]\n', "not_there"),
    ("    ops --> shared\n", "    ops --> shared\n    ops --> core\n", "no_import"),
    ("    ops --> shared\n", "    ops --> shared\n    figures --> training\n", "without_an_arrow"),
    ("    app --> ops\n", "", "without_an_arrow")], ids=["no such folder", "no import", "against", "none"])
def test_a_drawing_that_is_not_of_the_project_is_seen(tmp_path, old, new, rule):
    assert SMALL.count(old) == 1 and rule in broken(tmp_path, SMALL.replace(old, new))


@pytest.mark.parametrize("line,text", [("ops --> nothing", "not drawn: {'nothing'}"), ("a sentence", "neither node")])
def test_a_line_that_is_not_understood_is_an_error(line, text):
    with pytest.raises(ValueError, match=text):
        drawing(SMALL.replace("    cpu --> core", f"    {line}"))
