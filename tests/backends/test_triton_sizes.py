"""Specialisation of the Triton kernels: every integer argument 1, a multiple of 16, and odd.

`make triton-version VERSION=3.6.0` runs this, and the rest of the ahead-of-time tests, with another Triton.
"""

import pytest

pytest.importorskip("triton")

from helpers import triton_aot as aot
from helpers import triton_sizes as sizes

pytestmark = pytest.mark.skipif(aot.interpreted(), reason="in the interpreter there is nothing to specialise")


@pytest.mark.parametrize("operator", [name for name in aot.OPERATORS if " in tf32" not in name])
def test_every_kernel_is_specialised(operator):
    front, failures = sizes.FrontEnd(90), []
    for form in sizes.forms(operator):
        for change, args in form.covering():
            try:
                front.check(form, args)
            except Exception as error:
                failures.append(f"{form.name}, {change}: {str(error).strip().splitlines()[-1]}")
    assert failures == []
    assert front.seen


def test_launches_of_size_one_compile():
    modules = dict.fromkeys(name.partition("/")[0] for name, _, _ in sizes.single_cases())
    found = aot.launched(modules, sizes.single_cases())
    assert {name.partition("/")[0] for name in found} == {name.split()[0] for name in aot.OPERATORS}
    assert {name: n["stack"] for name, n in ((name, aot.compile_for(90, *launch)) for name, launch in found.items())
            if n["stack"]} == {}


def test_a_method_of_an_argument_that_is_one_is_seen():
    """The measure itself."""
    import triton
    import triton.language as tl

    @triton.jit
    def kernel(out_ptr, columns, rows):
        tl.store(out_ptr, (columns - 1).to(tl.int64) * rows)

    form = sizes.Form("broken", kernel, (aot.labels(1), 5, 7), {"num_warps": 1})
    assert form.sizes == [1, 2]
    failed = []
    for change, args in form.covering():
        try:
            sizes.FrontEnd(90).check(form, args)
        except triton.CompilationError:
            failed.append(change)
    assert failed == ["columns = 1", "all 1"]
