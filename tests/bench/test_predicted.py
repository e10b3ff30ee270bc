"""The predicted times of docs/gpu.md, on figures that can be checked by hand."""

import pytest
from helpers import ROOT

from fastmix.bench.harness import predicted, predicted_products
from fastmix.bench.harness.predicted import GPUS, Gpu, Prediction
from fastmix.bench.harness.predicted_products import Kernel

ONE = Gpu("one", bandwidth=1e9, multiprocessors=1, clock=1e6)  # 1 GB/s, 128 million instructions a second


@pytest.mark.parametrize("instructions,seconds,bound", [(None, 2e-3, "memory"), (1.0, 2e-3, "memory"),
                                                        (256.0, 4e-3, "instructions")])
def test_the_longer_of_memory_and_instructions(instructions, seconds, bound):
    p = Prediction("kernel", "cuda", 2e6, 4e6, instructions, None, 0.9, elements=2000)
    assert p.seconds(ONE) == pytest.approx(seconds)
    assert p.bound(ONE) == bound
    assert p.of_copy(ONE) == pytest.approx(4e-3 / seconds)


def test_every_kernel_of_the_goals_has_a_row():
    rows = {(p.name, p.backend): p for p in predicted.predictions(ROOT)}
    for op in ("paste K=5", "patch_mix 4x4"):
        for kind in ("fp32", "bf16", "fp32 channels_last", "bf16 channels_last"):
            assert {("cuda", f"{op} {kind}"), ("triton", f"{op} {kind}")} <= {(b, n) for n, b in rows}
    assert ("blend K=2 fp32", "triton") in rows
    # fp32, K = 5: what is read from memory and one batch written.
    paste = rows["paste K=5 fp32", "cuda"]
    assert paste.bytes == pytest.approx(256 * 3 * 224 * 224 * 4 * 1.72, rel=0.01)
    assert paste.seconds(GPUS[0]) == pytest.approx(paste.bytes / 3.35e12)


@pytest.mark.parametrize("op", ["paste", "patch_mix"])
def test_the_cuda_kernels_of_images_reach_their_goals_on_paper(op):
    for p in predicted.predictions(ROOT):
        if p.name.startswith(op) and p.backend == "cuda":
            assert p.bound(GPUS[0]) == "memory" and p.of_copy(GPUS[0]) >= p.goal


def test_the_table_says_predicted():
    lines = predicted.table(ROOT).splitlines()
    assert lines[0].count("predicted") == 3
    assert len(lines) == 2 + len(predicted.predictions(ROOT))


@pytest.mark.parametrize("kernel,seconds", [(Kernel(2e6), 2e-3), (Kernel(1e6, 512e6), 4.0),
                                            (Kernel(1e6, 128e6, 5120e6), 5.0), (Kernel(0, 0, 3200e6, 640), 5.0)])
def test_a_kernel_takes_the_longest_of_bytes_instructions_and_products(kernel, seconds):
    assert kernel.seconds(ONE) == pytest.approx(seconds)


def test_products_of_the_goals_by_hand():
    assert predicted_products.present(256, 1000) == 226
    steps = {step.name: step for step in predicted_products.steps(ROOT)}
    diag, full, strict = (steps[f"isda {name}"] for name in (
        "diag 256x1000x2048", "full 256x1000x2048 TF32 + update", "full 256x1000x2048 float32 + update"))
    # Two products of 256 x 1024 x 2048, one of 1008, two of 240 deep; each three times.
    assert diag.multiply_adds == pytest.approx(3 * 2048 * (2 * 256 * 1024 + 256 * 1008 + 2 * 240 * 1024))
    forward = 226 * 1024 * 2048 ** 2
    assert forward < full.multiply_adds < 1.02 * forward
    assert strict.multiply_adds == 3 * full.multiply_adds
    for step in steps.values():
        assert step.goal is None or step.seconds(GPUS[0]) < step.goal, step.name
