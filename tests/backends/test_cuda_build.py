"""The CUDA library compiles and links here, without a GPU, and stays within its budget: of registers and shared memory,
and of what its machine code does (`helpers.kernel_work`).

It is compiled for sm_90; of the other architectures the budgets are held, which `make budgets` writes for all of them:
three compilers would take two minutes of every run, and a kernel that changes fails its sm_90 budget first.
"""

import json
import re
import shutil
import subprocess

import pytest
from helpers import cuda_budget
from helpers.kernel_work import wanted_in_flight

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc"),
              pytest.mark.skipif(cuda_budget.tool("cuobjdump") is None, reason="no cuobjdump")]
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
# Kernels that read images or rows in packs; those of "<1, 4>" are their scalar twins, for odd sizes.
PACKED = ("paste_kernel<unsigned short, PlanePieces<8, 3> >", "paste_kernel<unsigned int, RowPieces<4, 2> >",
          "paste_backward_kernel<bf16, PlanePieces<8, 4> >", "patch_mix_kernel<bf16, RowPieces<8, 2> >",
          "patch_mix_backward_kernel<float, PlanePieces<4, 3> >",
          "saliency_cells_kernel<float, (PixelLoad)0>", "saliency_cells_kernel<bf16, (PixelLoad)1>",
          "saliency_peak_kernel<f16, (PixelLoad)0>", "soft_target_rows<bf16, (TargetKind)0, 32, 8, 128>",
          "soft_target_rows<float, (TargetKind)0, 256, 4, 256>", "soft_target_rows<bf16, (TargetKind)0, 256, 0, 256>",
          "soft_target_rows<f16, (TargetKind)1, 256, 0, 256>", "soft_target_rows<bf16, (TargetKind)2, 256, 0, 256>",
          "scale_gradient_kernel<bf16, 8>")


@pytest.fixture(scope="module")
def library():
    return cuda_budget.build("9.0")


@pytest.fixture(scope="module")
def measured(library):
    return cuda_budget.measure(library)


@pytest.fixture(scope="module")
def budget():
    return json.loads(cuda_budget.BUDGET.read_text())


def test_only_stable_symbols_are_undefined(library):
    text = subprocess.run(["nm", "-DCu", str(library)], capture_output=True, text=True, check=True).stdout
    names = [line.split()[-1] for line in text.splitlines()]
    assert "aoti_torch_get_current_cuda_stream" in names
    assert not [line for line in text.splitlines() if any(n in line for n in ("at::", "c10::", "fastmix::", "Py"))]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_kernel_uses_local_memory(measured, budget, architecture):
    for numbers in (budget[architecture], measured.get(architecture, {})):
        assert {kernel: n for kernel, n in numbers.items() if n["stack"]} == {}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packs_are_loaded_in_one_instruction(measured, budget, architecture):
    numbers = measured.get(architecture, budget[architecture])
    assert [kernel for kernel in PACKED if numbers[kernel]["wide_loads"] == 0] == []


def test_budget(measured, budget):
    if budget["nvcc"] != cuda_budget.nvcc_version():
        pytest.skip(f"the budget is for nvcc {budget['nvcc']}")
    wanted = budget["sm_90"]
    assert all(budget[architecture].keys() == wanted.keys() for architecture in ARCHITECTURES), "run make budgets"
    assert measured["sm_90"].keys() == wanted.keys(), "run make budgets"
    over = {kernel: (n, wanted[kernel]) for kernel, n in measured["sm_90"].items()
            if n["registers"] > wanted[kernel]["registers"] or n["shared"] > wanted[kernel]["shared"]
            or n["wide_loads"] < wanted[kernel]["wide_loads"] or not _reads_as_well(n, wanted[kernel])}
    assert over == {}


def _reads_as_well(n, held):
    """Whether the machine code does no more than held, as far as it was read."""
    return (n.get("instructions", 0) <= held.get("instructions", 0) * 1.02
            and all(n.get(key, 0) >= held.get(key, 0) for key in ("loads_first", "in_flight", "cp_async")))


def test_memory_bound_kernels_keep_enough_under_way(measured):
    """In every one whose machine code is read, 32 KB on an SM, or what its exception says."""
    flight = {kernel: n["in_flight"] for kernel, n in measured["sm_90"].items() if "in_flight" in n}
    assert len(flight) > 80
    assert {kernel: n for kernel, n in flight.items() if n < wanted_in_flight(kernel)} == {}


def test_loads_come_before_uses(measured):
    """Of both sources of all pieces of a thread."""
    pieces = {kernel: int(re.search(r"Pieces<\d+, (\d)>", kernel)[1]) for kernel in measured["sm_90"]
              if kernel.startswith(("paste_kernel", "patch_mix_kernel")) and "Pieces<1," not in kernel}
    assert len(pieces) == 19
    assert {kernel: measured["sm_90"][kernel]["loads_first"] for kernel in pieces} == {
        kernel: 2 * count for kernel, count in pieces.items()}


def test_soft_target_issues_what_its_header_says(measured):
    """Of a row without base: long ones in shared memory, an element; a warp's, its row's own work included."""
    found = {kernel.removeprefix("soft_target_rows"): n for kernel, n in measured["sm_90"].items()}
    for dtype, most in (("bf16", 12), ("f16", 12), ("float", 13)):
        staged = found[f"<{dtype}, (TargetKind)0, 256, -1, 256>"]
        assert staged["instructions"] < most
        assert staged["cp_async"] == 16
        assert found[f"<{dtype}, (TargetKind)0, 32, 8, 128>"]["loads_first"] == 8


@pytest.mark.parametrize("choice,cuda,wanted", [("auto", "'13.0'", True), ("auto", "None", False),
                                                ("0", "'13.0'", False), ("1", "None", True)])
def test_gate(tmp_path, monkeypatch, choice, cuda, wanted):
    """Decided from nvcc, FASTMIX_CUDA and torch's version file alone."""
    (tmp_path / "version.py").write_text(f"from typing import Optional\ncuda: Optional[str] = {cuda}\n")
    monkeypatch.setenv("FASTMIX_CUDA", choice)
    text = (cuda_budget.ROOT / "setup.py").read_text().split("\nsetup(\n")[0]
    namespace = {"__file__": str(cuda_budget.ROOT / "setup.py"), "__name__": "setup_under_test"}
    exec(compile(text, "setup.py", "exec"), namespace)
    assert namespace["wants_cuda"](tmp_path) is wanted
