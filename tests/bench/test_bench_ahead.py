"""What torch.compile is given, and that it is given it before anything is timed."""

import functools
import os
from typing import ClassVar

import pytest
import torch

from fastmix.bench import operators
from fastmix.bench.cases import vectorised
from fastmix.bench.cases.base import select_cases
from fastmix.bench.harness import ahead, command_line, runner
from fastmix.reference import functional as reference

CPU = torch.device("cpu")


class Pool:
    """Works in this process; started holds (workers, environment, threads)."""

    started: ClassVar[list] = []

    def __init__(self, workers, context, prepare, arguments):
        assert context.get_start_method() == "spawn"
        self.started.append((workers, os.environ.get(ahead.VARIABLE), *arguments))

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        return None

    def map(self, function, keys):
        return map(function, keys)


@pytest.fixture
def pool(monkeypatch):
    monkeypatch.setattr(ahead, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(Pool, "started", [])
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    return Pool.started


def small():
    found = [c for c in select_cases(["blend", "soft_target"], False) if c.name.startswith(("100x3x32x32", "128x100"))]
    assert len(found) == 3 and {c.backward for c in found} == {True, False}
    return found


def test_references_are_compiled_one_compiler_a_process(pool, monkeypatch):
    monkeypatch.delenv(ahead.VARIABLE, raising=False)
    compiled = []
    monkeypatch.setattr(ahead, "compile_reference", lambda case, device: (
        runner.compile_reference(case, device), compiled.append(runner._graphs_compiled() > 0)))
    assert ahead.compile_ahead(small() + small(), workers=3) == 6
    assert compiled == [True] * 6
    assert pool == [(3, "1", torch.get_num_threads())]
    assert ahead.VARIABLE not in os.environ
    monkeypatch.setenv(ahead.VARIABLE, "5")
    ahead.compile_ahead(small() + small(), workers=2)
    assert os.environ[ahead.VARIABLE] == "5"


def test_few_cases_are_left_to_the_bench_itself(pool):
    assert ahead.compile_ahead(small(), workers=8) == 0 and ahead.compile_ahead([], workers=8) == 0
    assert not pool


def test_what_cannot_be_compiled_is_left_to_the_bench_to_report(pool, monkeypatch):
    monkeypatch.setattr(ahead, "compile_reference", lambda case, device: 1 / 0)
    assert ahead.compile_ahead(small() + small(), workers=2) == 0
    assert not ahead._compile(("no", "such", "case"))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_nothing_is_timed_before_all_are_compiled(device, tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(operators, "compile_ahead", lambda cases: order.append(len(cases)) or len(cases))
    monkeypatch.setattr(operators, "run_case", lambda *args: order.append("timed") or 1 / 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(command_line.machine, "describe", lambda device, name: {"name": "x"})
    arguments = ["--device", device, "--op", "saliency", "--json", str(tmp_path / "r.json")]
    with pytest.raises(ZeroDivisionError):
        operators.main(arguments)
    assert order == ([4, "timed"] if device == "cpu" else ["timed"])  # on a GPU Inductor measures while it compiles


# ---------------------------------------------------------------- the forms without loops

def test_cases_with_loops_give_compile_another_form():
    looped = {c.op for c in select_cases(None, False) if c.compiled is not None}
    assert looped == {"isda", "covariance"}
    assert all(c.compiled is not None for c in select_cases(["isda", "covariance"], False))


@pytest.mark.parametrize("kind", ["full", "diag", "pixels"])
def test_isda_without_loops_is_the_reference(kind):
    n, j, a = 6, 9, 5
    weight = torch.randn(j, a, dtype=torch.float64, requires_grad=True)
    cov = torch.randn(j, a, a, dtype=torch.float64) if kind == "full" else torch.rand(j, a, dtype=torch.float64)
    shape, labels = ((n, j), torch.randint(j, (n,))) if kind != "pixels" else ((2, j, 4), torch.randint(j, (2, 4)))
    logits = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(shape, dtype=torch.float64)
    results = []
    for form in (functools.partial(reference.isda_logits, kind="full" if kind == "full" else "diag"),
                 vectorised.isda_logits):
        out = form(logits, weight, cov, labels, 0.5)
        results.append((out, *torch.autograd.grad(out, (logits, weight), grad)))
    torch.testing.assert_close(*results)


def test_diagonal_covariance_without_loops_is_the_reference():
    j, a, ignored = 5, 4, 255
    features = torch.randn(2, a, 3, 3, dtype=torch.float64)
    labels = torch.tensor([0, 1, 1, 3, ignored, 0, 3, 3, 3] * 2).view(2, 3, 3)
    start = torch.randint(9, (j,)), torch.randn(j, a, dtype=torch.float64), torch.rand(j, a, dtype=torch.float64)
    ours, want = ([t.clone() for t in start] for _ in range(2))
    vectorised.covariance_update_(*ours, features, labels, ignored)
    reference.covariance_update_(*want, features, labels, "diag", ignored)
    torch.testing.assert_close(ours, want)
