"""Names of torch that only a GPU would look up, looked up here: every dotted `torch.` chain of the sources exists."""

import ast
import importlib
import types

import pytest
import torch
from helpers import ROOT

SOURCES = sorted([ROOT / "setup.py", *(path for folder in ("fastmix", "kernels", "bench", "tests", "examples")
                                       for path in (ROOT / folder).rglob("*.py"))])
# Attributes that are made when a library of operators is loaded.
OPERATORS = ("torch.ops.fastmix", "torch.ops.fastmix_triton", "torch.ops.fastmix_simt")


def dotted(node: ast.Attribute) -> str | None:
    """``torch.cuda.Event`` of its syntax tree; None where it does not begin at a plain name."""
    names = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(names)]) if isinstance(node, ast.Name) else None


def chains(tree: ast.AST) -> set[tuple[int, str]]:
    """(line, the longest chain) of everything that is looked up in torch, under any name it was imported as."""
    modules = {"torch": "torch"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.asname: alias.name for alias in node.names
                        if alias.asname and alias.name.split(".")[0] == "torch"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch" and node.level == 0:
            modules |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    found = {(node.lineno, f"{node.module}.{alias.name}") for node in ast.walk(tree)
             if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch" and node.level == 0
             for alias in node.names}
    for node in ast.walk(tree):
        chain = dotted(node) if isinstance(node, ast.Attribute) else None
        if chain is not None and (head := chain.partition("."))[0] in modules:
            found.add((node.lineno, f"{modules[head[0]]}.{head[2]}"))
    return found


def exists(chain: str) -> bool:
    """Whether each attribute of the chain is there, or is a module that can be imported."""
    if chain.startswith(OPERATORS):
        return True
    found: object = torch
    for name in chain.split(".")[1:]:
        if not hasattr(found, name):
            if not isinstance(found, types.ModuleType):
                return False
            try:
                importlib.import_module(f"{found.__name__}.{name}")
            except ImportError:
                return False
        found = getattr(found, name)
    return True


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_name_of_torch_exists(path):
    tree = ast.parse(path.read_text(), str(path))
    missing = sorted((line, chain) for line, chain in chains(tree) if not exists(chain))
    assert not missing, f"torch {torch.__version__} has none of these (line, name): {missing}"


@pytest.mark.parametrize("line,missing", [
    ("import torch\ntorch.cuda.getdevice_name()", "torch.cuda.getdevice_name"),
    ("import torch as t\nt.cuda.Evnt(enable_timing=True)", "torch.cuda.Evnt"),
    ("import torch.distributed as dist\ndist.all_reduced", "torch.distributed.all_reduced"),
    ("from torch import nn\nnn.Linears(1, 2)", "torch.nn.Linears"),
    ("from torch.cuda import Strem", "torch.cuda.Strem")])
def test_a_name_that_is_not_there_is_seen(line, missing):
    assert [chain for _, chain in chains(ast.parse(line)) if not exists(chain)] == [missing]
