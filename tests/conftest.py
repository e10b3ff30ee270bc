"""Fixtures: poisoned allocations, fixed seeds, and every backend and instruction set that runs here."""

import pytest
import torch
from hypothesis import settings

import fastmix
from fastmix import _library
from fastmix.backend import why_not

settings.register_profile("fastmix", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("fastmix")

ISA = {"portable": 0, "avx2": 1, "avx512": 2}


def _variants() -> list[str]:
    """reference, then the C++ kernels once per instruction set that this processor has."""
    names = ["reference"]
    if _library.missing is None:
        best = torch.ops.fastmix._cpu_isa(-1)
        names += [f"cpu-{isa}" for isa, level in ISA.items() if level <= best]
    return names


def pytest_generate_tests(metafunc):
    if "variant" in metafunc.fixturenames:
        metafunc.parametrize("variant", _variants(), indirect=True)


@pytest.fixture
def variant(request):
    """The name of a backend (with its instruction set) that serves every call of the test."""
    name, _, isa = request.param.partition("-")
    assert why_not("blend", name, "cpu") is None
    if isa:
        torch.ops.fastmix._cpu_isa(ISA[isa])
    with fastmix.backend(name):
        yield request.param
    if isa:
        torch.ops.fastmix._cpu_isa(-2)


@pytest.fixture(autouse=True)
def _poisoned_allocations():
    """Every uninitialised element is NaN (or the largest integer): one that a kernel leaves unwritten shows."""
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    if _library.missing is None:
        torch.ops.fastmix._cpu_poison(True)
    yield
    torch.use_deterministic_algorithms(False)
    if _library.missing is None:
        torch.ops.fastmix._cpu_poison(False)


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)


@pytest.fixture
def threads():
    """Call with a number of threads; the old one comes back after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
