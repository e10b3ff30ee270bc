"""Every Triton kernel compiled for GPUs that are not here, held to budget_triton.json.

No kernel spills, loads and stores of images and logits are 16 bytes wide where rows allow, and registers and shared
memory stay where they are. ``make budgets`` writes the budget anew.
"""

import json

import pytest

pytest.importorskip("triton")

from helpers import triton_aot as aot
from helpers.kernel_work import WANTED

pytestmark = pytest.mark.skipif(aot.interpreted(), reason="in the interpreter there is nothing to compile")
BUDGET = json.loads(aot.BUDGET.read_text())


@pytest.mark.parametrize("capability", aot.TARGETS)
@pytest.mark.parametrize("operator", aot.OPERATORS)
def test_budget(operator, capability):
    held = BUDGET[operator][f"sm_{capability}"]
    got = aot.measure(operator, capability)
    assert got.keys() == held.keys(), "make budgets writes the budget of the cases"
    spilled = {key: found["stack"] for key, found in got.items() if found["stack"]}
    assert not spilled
    narrower = [key for key, found in got.items() for side in ("load", "store") if found[side] < held[key][side]]
    assert not narrower
    if aot.version() == BUDGET["triton"]:  # another version's compiler has a budget of its own
        above = [(key, name) for key, found in got.items() for name in ("registers", "shared")
                 if found[name] > held[key][name]]
        assert not above
        worse = [key for key, found in got.items()
                 if found.get("instructions", 0) > held[key].get("instructions", 0) * 1.02
                 or any(found.get(name, 0) < held[key].get(name, 0) for name in ("loads_first", "in_flight"))
                 or any(found.get(name, 0) > held[key].get(name, 0) for name in ("cores", "copies_4"))]
        assert not worse


@pytest.mark.parametrize("operator", ["blend", "paste", "patch_mix", "soft_target"])
def test_images_and_logits_move_16_bytes_at_a_time(operator):
    """The budget itself: all but rows whose length is no multiple of a vector, and pixels, two of them a lane."""
    for key, found in BUDGET[operator]["sm_90"].items():
        kernel = key.rsplit("/")[-1]
        if kernel in ("_by_source_kernel", "sum_parts", "count_rows", "pixel_kernel") or "128x100 bf16" in key:
            continue
        assert found["load"] == 16, key
        assert found["store"] == 16 or "loss only" in key, key


def test_images_made_of_bytes_are_written_16_bytes_at_a_time():
    assert all(found["store"] == 16 for found in BUDGET["view"]["sm_90"].values())


def test_crops_are_stored_16_bytes_at_a_time():
    """Their loads are shifted or gathered: an element each."""
    for key, found in BUDGET["crop"]["sm_90"].items():
        assert found["store"] == 16, key


# Bytes of a kernel under way on an SM where they are fewer than `kernel_work.WANTED`, by a part of its name, and why.
FEWER = {
    "fp64": (16 * 1024, "twice the registers, and float64 is not what images are trained in"),
    "k=12": (16 * 1024, "more sources than are unrolled: one at a time"),
    "backward": (16 * 1024, "one reader at a time, in their order, beside sums of float32"),
    "view": (8 * 1024, "bytes are read and two or four times as many written, which need no waiting"),
    "crop": (8 * 1024, "loads of an element each: a shifted row is not aligned, and neighbours are in the cache"),
}


@pytest.mark.parametrize("operator", aot.MOVES_IMAGES)
def test_memory_bound_kernels_keep_enough_under_way(operator):
    """The budget itself."""
    for key, found in BUDGET[operator]["sm_90"].items():
        if "in_flight" in found:
            name = f"{operator} {key}"
            least = min((least for part, (least, _) in FEWER.items() if part in name), default=WANTED)
            assert found["in_flight"] >= least, key


@pytest.mark.parametrize("operator,cores", [("isda", 3), ("isda in tf32", 1)])
def test_full_products_run_on_tensor_cores(operator, cores):
    """The budget itself: float32 takes three TF32 products, and tiles of covariances come 16 bytes at a time."""
    found = {key: n for key, n in BUDGET[operator]["sm_90"].items() if "/_full_" in key and "fp64" not in key}
    assert len(found) == 6
    for key, n in found.items():
        assert n["cores"] == cores and n["copies_16"] >= 4 and n["copies_4"] <= 2, key


@pytest.mark.parametrize("operator", ["isda", "isda in tf32", "covariance", "covariance in tf32"])
def test_all_products_run_on_tensor_cores(operator):
    """The budget itself: but for those in float64."""
    for key, n in BUDGET[operator]["sm_90"].items():
        if key.split("/")[-1].split()[0] in aot.PRODUCTS:
            assert ("cores" in n) != ("fp64" in key), key


@pytest.mark.parametrize("operator,most", [("isda", 1 / 3), ("isda in tf32", 0.12)])
def test_full_products_leave_the_schedulers_time(operator, most):
    """The budget itself: a multiply-add of a tensor core at full rate takes 1/8 of the time of an instruction (1024 and
    128 a cycle of an SM), so instructions for each take less than its products."""
    for key, n in BUDGET[operator]["sm_90"].items():
        if "/_full_" in key and "256x1000x2048" in key and "cores" in n:
            assert n["instructions"] < n["cores"] / 8 and n["instructions"] < most, key


def test_a_kernel_that_spills_is_seen():
    """The measure itself: softmax of a long row with 32 registers must spill."""
    kernel, args, options = aot.launches("soft_target")["cross_entropy 64x32768 fp32/sparse_kernel"]
    assert aot.compile_for(90, kernel, args, {**options, "maxnreg": 32})["stack"] > 0
