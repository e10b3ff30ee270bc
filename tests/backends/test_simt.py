"""The CUDA kernels, compiled by g++ (tests/backends/simt): races, accesses out of bounds, and tests of those tests.

That they compute the right thing is tested where the other backends are: variant "simt" of the operators' tests.
"""

import os
import subprocess
from pathlib import Path

import pytest
import torch
from helpers import simt_backend, simt_build
from helpers.support import same_bits

import fastmix
import fastmix.functional as F

pytestmark = pytest.mark.skipif(simt_build.missing() is not None, reason=str(simt_build.missing()))

CASES = (
    "isda_many_labels", "isda_pixels", "isda_pixels_backward", "isda_rows", "isda_rows_backward",
    "isda_rows_many_classes", "paste", "paste_backward", "paste_backward_odd", "paste_odd", "paste_wrapped",
    "patch_mix", "patch_mix_backward", "patch_mix_backward_odd", "patch_mix_odd", "patch_mix_wrapped",
    "percentile_1024", "percentile_16384", "percentile_double", "percentile_memory", "saliency_grids_divided",
    "saliency_grids_whole", "saliency_map_divided", "saliency_map_whole", "saliency_mask_cells",
    "saliency_mask_divided", "saliency_mask_whole", "saliency_peak", "saliency_peak_divided", "soft_target_block",
    "soft_target_class_weights", "soft_target_dense", "soft_target_double", "soft_target_looped", "soft_target_pixels",
    "soft_target_pixels_dense", "soft_target_pixels_sigmoid", "soft_target_sigmoid", "soft_target_staged",
    "soft_target_warp", "soft_target_warp_full", "view", "view_blend", "view_blend_turned", "view_odd",
    "view_patch_mix", "view_patch_mix_double", "view_wrapped")
QUICK = ("isda_pixels_backward", "isda_rows", "paste", "patch_mix", "saliency_mask_whole", "soft_target_block",
         "view")

# Barriers of a block in their order, each of which some memory access needs. (The counting barriers of a percentile
# search order none.)
BARRIERS = {"isda_many_labels": 2, "isda_pixels": 6, "isda_pixels_backward": 3, "isda_rows": 6,
            "isda_rows_backward": 10, "paste": 1, "patch_mix": 1,
            "percentile_1024": 1, "saliency_grids_divided": 2, "saliency_grids_whole": 2,
            "saliency_map_whole": 3, "saliency_mask_whole": 2, "saliency_peak": 1,
            "soft_target_block": 10, "soft_target_dense": 7, "soft_target_double": 6, "soft_target_pixels": 4,
            "soft_target_sigmoid": 6, "soft_target_staged": 8, "soft_target_warp": 6, "view": 1, "view_blend": 1,
            "view_patch_mix": 2}
QUICK_BARRIERS = [("paste", 0), ("saliency_mask_whole", 1), ("soft_target_block", 3)]


def run(program: Path, *args: object) -> subprocess.CompletedProcess:
    options = {"TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=0"}
    return subprocess.run([str(program), *map(str, args)], capture_output=True, text=True,
                          env={**os.environ, **options})


def test_every_case_is_listed():
    assert sorted(run(simt_build.program("address")).stdout.split()) == sorted(CASES)


@pytest.mark.parametrize("case", CASES)
def test_no_access_out_of_bounds(case):
    done = run(simt_build.program("address"), case)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("case", [
    pytest.param(case, marks=() if case in QUICK else pytest.mark.slow) for case in CASES])
def test_no_data_race(case):
    done = run(simt_build.program("thread"), case)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("case,barrier", [
    pytest.param(case, n, marks=() if (case, n) in QUICK_BARRIERS else pytest.mark.slow)
    for case, count in BARRIERS.items() for n in range(count)])
def test_a_removed_barrier_is_a_data_race(case, barrier):
    done = run(simt_build.program("thread"), case, barrier)
    assert done.returncode != 0 and "data race" in done.stderr


# Case -> the header whose line goes one too far in the broken program, of which no other of these cases runs anything.
OFF_BY_ONE = {
    "soft_target_block": ("logit_row.cuh", "pack < row.packs, lowest_words", "pack <= row.packs, lowest_words"),
    "percentile_1024": ("percentile.cuh", "if (t + i * kThreads < n) mask", "if (t + i * kThreads <= n) mask"),
    "saliency_map_divided": ("cells.cuh", "static_cast<size_t>(a.slots) * a.width",
                             "static_cast<size_t>(a.slots) * a.width - 1")}


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """One program with all of them: a compiler takes a minute for each."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "cuda" / "lib").mkdir(parents=True)
    for name, right, wrong in OFF_BY_ONE.values():
        text = (simt_build.ROOT / "csrc" / "cuda" / "lib" / name).read_text()
        assert text.count(right) == 1
        (folder / "cuda" / "lib" / name).write_text(text.replace(right, wrong))
    source = folder / "broken.cpp"
    source.write_text((simt_build.HERE / "cases.cpp").read_text())
    return simt_build.program("address", source, (f"-I{folder}",), folder)


@pytest.mark.parametrize("case", OFF_BY_ONE)
def test_an_off_by_one_is_an_overflow(broken, case):
    done = run(broken, case)
    assert done.returncode != 0 and "heap-buffer-overflow" in done.stderr


@pytest.mark.parametrize("case", ["paste", "paste_backward", "patch_mix", "patch_mix_backward", "saliency", "view"])
def test_the_last_image_of_more_than_2_31_elements(case):
    """Its blocks alone run, on memory that is only reserved."""
    done = run(simt_build.program("address", simt_build.HERE / "far.cpp"), case)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("signs", [(), ("positive",)], ids=["both_signs", "positive"])
def test_products_of_tensor_cores_are_float32(signs):
    """Three TF32 products and rounded sums, on tensor cores that cut off: as near to float64 as float32 is, at any
    depth, and pulled one way by no more than a rounding."""
    done = run(simt_build.program("address", simt_build.HERE / "products.cpp"), *signs, 16, 640, 2048)
    for line in done.stdout.splitlines():
        depth, worst, mean, of_chain = map(float, line.split())
        assert worst < 8e-7 and abs(mean) < 1.5e-7
        assert worst < of_chain or depth == 16
    assert len(done.stdout.splitlines()) == 3


DEADLOCK = """
#include "cuda/lib/launch.h"
FASTMIX_KERNEL void divergent(int n) {
  if (static_cast<int>(threadIdx.x) < n) __syncthreads();
}
int main(int, char** argv) {
  fastmix::launch(divergent, {1, 64}, nullptr, std::atoi(argv[1]));
}
"""


def test_a_barrier_that_not_all_threads_reach_is_reported(tmp_path):
    source = tmp_path / "deadlock.cpp"
    source.write_text(DEADLOCK)
    program = simt_build.program("address", source, directory=tmp_path)
    assert run(program, 64).returncode == 0
    done = run(program, 63)
    assert done.returncode != 0 and "deadlock" in done.stderr


def test_results_do_not_depend_on_the_order_of_threads_and_blocks():
    simt_backend.install()
    x = torch.randn(6, 3, 8, 12)
    index, partner = torch.randint(0, 6, (6, 3)), torch.randint(0, 6, (6,))
    boxes = torch.randint(-2, 9, (6, 2, 4), dtype=torch.int32)
    mask, lam = torch.rand(6, 4, 4) < 0.5, torch.rand(6)
    target = fastmix.SoftTarget(torch.randint(0, 300, (40, 3)), torch.rand(40, 3))
    logits = torch.randn(40, 300)
    images = torch.randint(0, 256, x.shape, dtype=torch.uint8)
    view = fastmix.View(lam[:3], lam[3:] + 1, lam < 0.5, boxes[:, 0, :2])

    def results():
        leaf, z = x.clone().requires_grad_(), logits.clone().requires_grad_()
        pasted, (mixed, weight) = F.paste(leaf, index, boxes), F.patch_mix(leaf, partner, mask, lam)
        loss = F.soft_kl(z, target)
        return [pasted, mixed, weight, loss, *torch.autograd.grad((pasted * mixed).sum() + loss, [leaf, z]),
                F.saliency_map(x, (4, 6)), F.saliency_mask(x, (8, 12), lam), F.saliency_peak(x),
                F.paste(images, index, boxes, view=view), F.blend(images, index, torch.full((6, 3), 0.3), view=view),
                *F.patch_mix(images, partner, mask, lam, view=view)]

    with fastmix.backend("simt"):
        forward = results()
        simt_backend.reverse(True)
        try:
            backward = results()
        finally:
            simt_backend.reverse(False)
    assert all(same_bits(a, b) for a, b in zip(forward, backward, strict=True))
