"""Fixtures: poisoned allocations, fixed seeds, and every backend and instruction set that runs here."""

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

import fastmix
from fastmix import _library
from fastmix.backend import OPERATORS

sys.path.insert(0, str(Path(__file__).parent / "simt"))
import simt_backend
import simt_build

settings.register_profile("fastmix", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("fastmix")

ISA = {"portable": 0, "avx2": 1, "avx512": 2}


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", choices=("cpu", "cuda"),
                     help="where tests make their tensors, by torch's default device")


def pytest_configure(config):
    if config.getoption("--device") == "cuda":
        torch.set_default_device("cuda")


def _variants(device: str) -> list[str]:
    """reference, then on the CPU the C++ kernels once per instruction set that this processor has."""
    names = ["reference"]
    if device == "cuda":
        return [*names, "triton", "cuda"]
    if _library.missing is None:
        best = torch.ops.fastmix._cpu_isa(-1)
        names += [f"cpu-{isa}" for isa, level in ISA.items() if level <= best]
        if simt_build.missing() is None:
            names.append("simt")  # the CUDA kernels, compiled for the CPU
    return names


def pytest_generate_tests(metafunc):
    if "variant" in metafunc.fixturenames:
        metafunc.parametrize("variant", _variants(metafunc.config.getoption("--device")), indirect=True)


@pytest.fixture
def variant(request):
    """The name of a backend (with its instruction set) that serves every call of the test."""
    name, _, isa = request.param.partition("-")
    if name == "simt":
        simt_backend.install()
    op = request.path.stem.removeprefix("test_")
    reason = simt_backend.why_not(op if op in OPERATORS else "blend", name, request.config.getoption("--device"))
    if reason is not None:
        pytest.skip(reason)
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
