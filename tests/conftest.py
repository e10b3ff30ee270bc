"""Fixtures: poisoned allocations, fixed seeds, and every backend and instruction set that runs here."""

import dataclasses
import os
import signal
import time
from typing import NamedTuple

import pytest
import torch
from helpers import simt_backend, simt_build, standin
from hypothesis import settings

import fastmix
from fastmix.app import import_torchvision
from fastmix.ops import library
from fastmix.ops.dispatch import BACKENDS, OPERATORS, why_not
from fastmix.ops.enums import InstructionSet, codes
from fastmix.ops.operator import NAMESPACES

settings.register_profile("fastmix", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("fastmix")

import_torchvision.prepare()  # before a test module imports torchmetrics

ISA = codes(InstructionSet)
INTERPRETED = why_not("blend", "triton", "cpu") is None
if INTERPRETED:
    # The interpreter computes for every integer sum whether it overflows, and drops the answer: a third of its time.
    from triton.runtime import interpreter

    interpreter.interpreter_builder.options = dataclasses.replace(interpreter.interpreter_builder.options,
                                                                  sanitize_overflow=False)


def _gamma_on_meta() -> torch.library.Library | None:
    """torch 2.11 draws no Beta or Dirichlet variables on meta tensors, with which tests find synchronisations."""
    try:
        torch._standard_gamma(torch.ones(1, device="meta"))
        return None
    except NotImplementedError:
        library = torch.library.Library("aten", "IMPL")
        library.impl("_standard_gamma", lambda alpha, generator=None: torch.empty_like(alpha), "Meta")
        return library


GAMMA_ON_META = _gamma_on_meta()


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", choices=("cpu", "cuda", standin.NAME),
                     help="where tests make their tensors, by torch's default device")
    parser.addoption("--backend", choices=BACKENDS, help="only tests of this backend, of those that take a variant")
    parser.addoption("--once", action="store_true", help="of every test function one set of parameters: the first")
    parser.addoption("--halves", action="store_true", help="each backend but the processor's own runs every second set "
                     "of a test function's parameters, alternating between the backends")


def pytest_configure(config):
    # A shell starts what it puts in the background with Ctrl-C ignored, and so would the commands that tests start be.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    device = config.getoption("--device")
    if device == standin.NAME:
        standin.install()
    if device != "cpu":
        torch.set_default_device(device)


def _variants(device: str) -> list[str]:
    """reference, then on the CPU the C++ kernels once per instruction set that this processor has.

    In Triton's interpreter (TRITON_INTERPRET=1, read when a kernel is defined, hence a run of its own) triton alone.
    """
    if INTERPRETED:
        return ["triton"]
    names = ["reference"]
    if device == standin.NAME:
        return names
    if device == "cuda":
        return [*names, "triton", "cuda"]
    if library.missing is None:
        # A library that was built for one of them (FASTMIX_INSTRUCTION_SET) stays with it.
        names += [f"cpu-{isa}" for isa, level in ISA.items() if torch.ops.fastmix._cpu_isa(level) == level]
        torch.ops.fastmix._cpu_isa(-2)
        if simt_build.missing() is None:
            names.append("simt")  # the CUDA kernels, compiled for the CPU
    return names


class Served(NamedTuple):
    """What ``@pytest.mark.operator`` says: operators, and which form of them, or the test's parameter that names it."""

    names: tuple[str, ...]
    form: str | None
    form_from: str | None


def _served(mark: pytest.Mark) -> Served:
    """The mark's arguments; ValueError, TypeError where it has others."""
    def read(*names: str, form: str | None = None, form_from: str | None = None) -> Served:
        return Served(names, form, form_from)

    served = read(*mark.args, **mark.kwargs)
    if not served.names or not set(served.names) <= set(OPERATORS):
        raise ValueError(f"operators are {served.names}, want some of {', '.join(OPERATORS)}")
    if served.form is not None and served.form_from is not None:
        raise ValueError("form and form_from exclude each other")
    return served


def _check_operator_mark(definition: pytest.Item, parameters: list[str]) -> None:
    """A test that takes a variant says of which operators: the mark is there and can be understood."""
    mark = definition.get_closest_marker("operator")
    if mark is None:
        raise pytest.Collector.CollectError(f"{definition.nodeid} takes the fixture `variant` and has no "
                                            '@pytest.mark.operator("..."): which operator is it to serve?')
    try:
        form_from = _served(mark).form_from
        if form_from is not None and form_from not in parameters:
            raise ValueError(f"form_from is {form_from!r}, want a parameter of the test")
    except (TypeError, ValueError) as error:
        raise pytest.Collector.CollectError(f"{definition.nodeid}: @pytest.mark.operator: {error}") from None


def why_skipped(item: pytest.Item, variant: str) -> str | None:
    """Why the variant cannot serve the operators that the test is marked with, or None."""
    served = _served(item.get_closest_marker("operator"))
    form = served.form if served.form_from is None else item.callspec.params[served.form_from]
    name, device = variant.partition("-")[0], item.config.getoption("--device")
    reasons = (simt_backend.why_not(op, name, device, form) for op in served.names)
    return next((reason for reason in reasons if reason is not None), None)


def pytest_generate_tests(metafunc):
    if "variant" in metafunc.fixturenames:
        _check_operator_mark(metafunc.definition, metafunc.fixturenames)
        metafunc.parametrize("variant", _variants(metafunc.config.getoption("--device")), indirect=True)


def _in_its_half(items: list[pytest.Item]) -> list[pytest.Item]:
    """All of the processor's own instruction set, and of every other backend half of the sets of parameters.

    The instruction sets are compiled from one source, and the emulated backends take minutes for what their kernels do
    in microseconds: two of them on the same parameters mostly prove the same. Neighbours take turns, so that the
    portable and the AVX2 code, or the interpreter and the CUDA code on threads, see each set once between them.
    """
    turns = {"reference": 0, "cpu-portable": 0, "cpu-avx2": 1, "cpu-avx512": 0, "simt": 1, "triton": 0}
    own = next((name for name in reversed(_variants("cpu")) if name.startswith("cpu-")), None)
    by_function: dict[tuple[str, str], list[pytest.Item]] = {}
    for item in items:
        variant = item.callspec.params.get("variant") if hasattr(item, "callspec") else None
        if variant is not None and variant != own:
            by_function.setdefault((item.nodeid.partition("[")[0], variant), []).append(item)
    left_out = {item for (_, variant), sets in by_function.items() if len(sets) > 3
                for item in sets[1 - turns[variant]::2]}
    return [item for item in items if item not in left_out]


def _keep(config: pytest.Config, items: list[pytest.Item], kept: list[pytest.Item]) -> None:
    """Deselects all items but these."""
    chosen = set(kept)
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = kept


def pytest_collection_modifyitems(config, items):
    """TRITON_INTERPRET=1 pytest runs what takes a variant; with FASTMIX_BACKEND=triton as well, every test."""
    if config.getoption("--halves"):
        _keep(config, items, _in_its_half(items))
    only, once = config.getoption("--backend"), config.getoption("--once")
    if only is None and not once and (not INTERPRETED or os.environ.get("FASTMIX_BACKEND", "auto") != "auto"):
        return

    seen = set()

    def wanted(item: pytest.Item) -> bool:
        if once:
            function = item.nodeid.partition("[")[0]
            if (only is not None and not of_backend(item)) or function in seen:
                return False
            seen.add(function)
            return True
        if only is not None:
            return of_backend(item)
        return "variant" in item.fixturenames or "interpreted" in item.keywords

    def of_backend(item: pytest.Item) -> bool:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        return str(parameters.get("variant", "")).partition("-")[0] == only

    _keep(config, items, [item for item in items if wanted(item)])


@pytest.fixture
def variant(request):
    """The name of a backend (with its instruction set) that serves every call of the test.

    Skipped where the backend cannot serve the operators that the test (or its module) is marked with.
    """
    name, _, isa = request.param.partition("-")
    if name == "simt":
        simt_backend.install()
    reason = why_skipped(request.node, request.param)
    if reason is not None:
        pytest.skip(reason)
    if isa:
        torch.ops.fastmix._cpu_isa(ISA[isa])
    with fastmix.backend(name):
        yield request.param
    if isa:
        torch.ops.fastmix._cpu_isa(-2)


@pytest.fixture
def operators(variant):
    """The namespace of the variant's registered operators."""
    return getattr(torch.ops, NAMESPACES.get(variant.partition("-")[0], "fastmix"))


@pytest.fixture
def index_errors(variant):
    """Bad indices raise, as they do on the CPU; on a device rows become NaN unless the check is asked for."""
    fastmix.set_debug(variant in ("triton", "reference"))  # the reference too where it serves a GPU
    yield
    fastmix.set_debug(False)


@pytest.fixture(autouse=True)
def _poisoned_allocations():
    """Every uninitialised element is NaN (or the largest integer): one that a kernel leaves unwritten shows."""
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    if library.missing is None:
        torch.ops.fastmix._cpu_poison(True)
    yield
    torch.use_deterministic_algorithms(False)
    if library.missing is None:
        torch.ops.fastmix._cpu_poison(False)


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _threads_restored():
    """The commands set torch's threads for the whole process."""
    before = torch.get_num_threads()
    yield
    if torch.get_num_threads() != before:
        torch.set_num_threads(before)


@pytest.fixture
def counted_clock(monkeypatch):
    """time.perf_counter without the machine's noise: a second for every layer that was called, about a microsecond for
    every reading. Powers of two, so that equal work takes exactly equal times."""
    now = [0.0]

    def passed(seconds: float) -> float:
        now[0] += seconds
        return now[0]

    monkeypatch.setattr(time, "perf_counter", lambda: passed(2.0**-20))

    def layer_ran(*_) -> None:
        passed(1)

    hook = torch.nn.modules.module.register_module_forward_hook(layer_ran)
    yield
    hook.remove()


@pytest.fixture
def threads():
    """Call with a number of threads; the old one comes back after the test."""
    return torch.set_num_threads


@pytest.fixture(scope="module")
def one_thread():
    """For modules whose tensors are tiny: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
