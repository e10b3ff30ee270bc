"""The CUDA library compiles and links here, without a GPU, for every architecture, and stays within its budget."""

import json
import shutil
import subprocess

import pytest
from helpers import cuda_budget

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc"),
              pytest.mark.skipif(cuda_budget.tool("cuobjdump") is None, reason="no cuobjdump")]
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
# Kernels that read images or rows in packs; "1>" are their scalar twins, for odd sizes.
PACKED = ("paste_kernel<unsigned short, 8>", "paste_kernel<unsigned int, 4>", "paste_backward_kernel<bf16, 8>",
          "patch_mix_kernel<bf16, 8>", "patch_mix_backward_kernel<float, 4>",
          "saliency_cells_kernel<float, (PixelLoad)0>", "saliency_cells_kernel<bf16, (PixelLoad)1>",
          "saliency_peak_kernel<f16, (PixelLoad)0>", "soft_target_rows<bf16, (TargetKind)0, 32, 4, 256>",
          "soft_target_rows<float, (TargetKind)0, 256, 4, 256>", "soft_target_rows<bf16, (TargetKind)0, 512, 0, 512>",
          "soft_target_rows<f16, (TargetKind)1, 256, 0, 256>", "soft_target_rows<bf16, (TargetKind)2, 256, 0, 256>",
          "scale_gradient_kernel<bf16, 8>")


@pytest.fixture(scope="module")
def library():
    return cuda_budget.build()


@pytest.fixture(scope="module")
def measured(library):
    return cuda_budget.measure(library)


def test_only_stable_symbols_are_undefined(library):
    text = subprocess.run(["nm", "-DCu", str(library)], capture_output=True, text=True, check=True).stdout
    names = [line.split()[-1] for line in text.splitlines()]
    assert "aoti_torch_get_current_cuda_stream" in names
    assert not [line for line in text.splitlines() if any(n in line for n in ("at::", "c10::", "fastmix::", "Py"))]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_kernel_uses_local_memory(measured, architecture):
    assert {kernel: n for kernel, n in measured[architecture].items() if n["stack"]} == {}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packs_are_loaded_in_one_instruction(measured, architecture):
    assert [kernel for kernel in PACKED if measured[architecture][kernel]["wide_loads"] == 0] == []


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_budget(measured, architecture):
    budget = json.loads(cuda_budget.BUDGET.read_text())
    if budget["nvcc"] != cuda_budget.nvcc_version():
        pytest.skip(f"the budget is for nvcc {budget['nvcc']}")
    wanted = budget[architecture]
    assert measured[architecture].keys() == wanted.keys(), "run make budgets"
    over = {kernel: (n, wanted[kernel]) for kernel, n in measured[architecture].items()
            if n["registers"] > wanted[kernel]["registers"] or n["shared"] > wanted[kernel]["shared"]
            or n["wide_loads"] < wanted[kernel]["wide_loads"]}
    assert over == {}


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
