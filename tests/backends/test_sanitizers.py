"""The C++ kernels of the CPU under AddressSanitizer, UBSan and ThreadSanitizer, in builds of their own.

Here for the best instruction set of the processor, and some of the operators' tests; `make asan`, `make ubsan` and
`make tsan` take every instruction set and all of them. What the sanitizers do not see, reads by masked instructions,
ends a process in tests/ops/test_guard_pages.py.
"""

import pytest
import torch
from helpers import sanitizers

from fastmix.ops import library
from fastmix.ops.enums import InstructionSet

pytestmark = pytest.mark.skipif(library.missing is not None, reason="no C++ library")

# Every operator with wrong arguments, with each size 0 and gradients or not, in every layout; every test of an operator
# with one set of parameters. The loops that threads share, on sizes that eight of them do.
TESTS = {"address": [("tests/ops/test_raw_calls.py", "tests/ops/test_sizes_and_layouts.py"),
                     ("--once", "tests/ops", "--deselect", "tests/ops/test_guard_pages.py")],
         "thread": [("tests/ops/test_determinism.py",)]}
FAULTS = {  # sanitizer, what a process does, what is said of it
    "read beyond": ("address", "_fault_read_beyond(torch.rand(1000))", "heap-buffer-overflow"),
    "overflow": ("address", "_fault_overflow(2**62)", "signed integer overflow"),
    "race": ("thread", "_fault_race(torch.zeros(1000))", "data race")}


@pytest.fixture(scope="module")
def built():
    """The library of a sanitizer; skipped where there is none."""
    def build(kind):
        if (reason := sanitizers.missing(kind)) is not None:
            pytest.skip(reason)
        return sanitizers.build(kind, InstructionSet(torch.ops.fastmix._cpu_isa(-2)).name.lower())
    return build


@pytest.mark.parametrize("kind,tests", [(kind, tests) for kind, runs in TESTS.items() for tests in runs],
                         ids=lambda value: value if isinstance(value, str) else value[0].split("/")[-1])
def test_operators(built, kind, tests):
    done = sanitizers.python(kind, built(kind), "-m", "pytest", "-q", *sanitizers.PYTEST, *tests)
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-6000:]}"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(built, fault):
    kind, call, said = FAULTS[fault]
    script = f"import torch, fastmix; torch.set_num_threads(4); torch.ops.fastmix.{call}; print('not found')"
    done = sanitizers.python(kind, built(kind), "-c", script)
    assert done.returncode == sanitizers.FOUND and said in done.stderr, (done.returncode, done.stderr[-3000:])
    assert "not found" not in done.stdout


def test_the_library_that_users_get_has_no_faults():
    for _, call, _ in FAULTS.values():
        assert not hasattr(torch.ops.fastmix, call.partition("(")[0])
