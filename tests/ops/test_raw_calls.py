"""torch.ops.fastmix called directly, past the checks of fastmix.functional: every operator of the schemas with each of
its arguments wrong in turn raises an error that names it, or gives a result; nothing outside a tensor is touched.

The last is what the run under AddressSanitizer looks at (tests/backends/test_sanitizers.py)."""

import math
import re

import pytest
import torch
from helpers import simt_backend
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from fastmix.ops import library
from fastmix.ops.enums import FLOAT_TYPES, CovarianceKind, Loss, Reduction, Weighting

# Each test skips what the variant does not serve.
pytestmark = pytest.mark.operator("soft_target")

N, C, H, W, K, J, A, P = 5, 2, 4, 6, 3, 7, 8, 9
FULL, DIAG = CovarianceKind.FULL, CovarianceKind.DIAG


def whole(high, *shape):
    return torch.randint(high, shape)


def images(dtype=torch.float32):
    return torch.randn(N, C, H, W).to(dtype)


def some_bytes():
    return whole(256, N, C, H, W).to(torch.uint8)


def boxes():
    return torch.tensor([1, 0, 2, 3], dtype=torch.int32).repeat(N, K - 1, 1)


def cells():
    return whole(N, N), torch.rand(N, 2, 3) > 0.5, torch.rand(N)


def view():
    return torch.rand(C), torch.rand(C) + 1, torch.rand(N) > 0.5, whole(3, N, 2), 0, False


def windows():
    return torch.tensor([-0.5, 0.0, 4.0, 4.0], dtype=torch.float64).repeat(N, 1)


def soft(rows):
    return (whole(J, rows, K), torch.rand(rows, K), torch.rand(rows), torch.rand(rows), torch.rand(rows),
            torch.rand(J), torch.rand(rows))


def dense(rows):
    return torch.rand(rows), torch.rand(J), torch.rand(()), 0.1, Loss.BCE, Reduction.SUM, True


def isda(*pixels):
    return torch.randn(N, J, *pixels), torch.randn(J, A)


def isda_rest(*pixels):
    return whole(J, N, *pixels), torch.tensor(0.5), 2.0, -100


def bits(count):
    return torch.randint(2**63 - 1, (count,))


def on():
    return torch.tensor(True)


def shares(rows):
    return torch.rand(rows, K) + 0.1


# Operator -> arguments of its schema that are right, in one or several forms.
CASES = {
    "soft_target": [lambda: (torch.randn(N, J), *soft(N), 0.1, -100, Loss.KL, Weighting.BY_SAMPLE, Reduction.NONE,
                             True),
                    lambda: (torch.randn(N, J, P), *soft(N * P), 0.1, -100, Loss.CROSS_ENTROPY, Weighting.UNWEIGHTED,
                             Reduction.MEAN, True)],
    "soft_target_dense": [lambda: (torch.randn(N, J), torch.rand(N, J), *dense(N)),
                          lambda: (torch.randn(N, J, P), torch.rand(N, J, P), *dense(N * P))],
    "blend": [lambda: (images(), whole(N, N, K), torch.rand(N, K))],
    "blend_backward": [lambda: (images(torch.bfloat16), whole(N, N, K), torch.rand(N, K))],
    "paste": [lambda: (images(), whole(N, N, K), boxes())],
    "paste_backward": [lambda: (images(torch.float16), whole(N, N, K), boxes())],
    "patch_mix": [lambda: (images(), *cells())],
    "patch_mix_backward": [lambda: (images(), *cells())],
    "crop": [lambda: (images(), whole(3, N, 2), torch.rand(N, C), 0.0)],
    "resized_crop": [lambda: (images(), windows(), 3, 5, torch.rand(N, C), 0.0)],
    "resized_crop_backward": [lambda: (images(), windows(), 3, 5)],
    "view": [lambda: (some_bytes(), *view())],
    "view_blend": [lambda: (some_bytes(), whole(N, N, K), torch.rand(N, K), *view())],
    "view_paste": [lambda: (some_bytes(), whole(N, N, K), boxes(), *view())],
    "view_patch_mix": [lambda: (some_bytes(), *cells(), *view())],
    "saliency_map": [lambda: (images(), 2, 3)],
    "saliency_mask": [lambda: (images(), 2, 3, torch.rand(N))],
    "saliency_mask_of_grid": [lambda: (images(), [1, 2], torch.tensor(1), torch.rand(N))],
    "saliency_peak": [lambda: (images(),)],
    "percentile_mask": [lambda: (torch.rand(N, H, W), torch.rand(N))],
    "scale_gradient_": [lambda: (torch.randn(N, J), torch.rand(N))],
    "covariance_update_": [
        lambda kind=kind, shape=shape: (torch.zeros(J, dtype=torch.int64), torch.zeros(J, A), torch.zeros(shape),
                                        torch.randn(N, A, P), whole(J, N, P), -100, kind)
        for kind, shape in enumerate(((J, A, A), (J, A), (A, A), (0,)))],
    "isda_logits": [lambda: (*isda(), torch.rand(J, A), *isda_rest(), DIAG),
                    lambda: (*isda(P), torch.rand(J, A, A), *isda_rest(P), FULL)],
    "isda_logits_backward": [lambda: (*isda(), torch.rand(J, A), *isda_rest(), DIAG),
                             lambda: (*isda(P), torch.rand(J, A, A), *isda_rest(P), FULL)],
    "isda_logits_kept": [lambda: (*isda(), torch.rand(J, A, A), *isda_rest(), FULL)],
    "isda_logits_kept_backward": [lambda: (torch.randn(N, J), torch.randn(N, J, A), *isda_rest())],
    "isda_consistency": [lambda: (*isda(), torch.rand(J, A, A), torch.tensor(0.5), torch.rand(N), 2.0, Reduction.MEAN,
                                  FULL, True)],
    "plan_blend": [lambda: (bits(99), shares(N), on(), N, N, K, 0.5, 0.5, True),
                   lambda: (bits(1), None, on(), N, N, K, 0.5, 0.5, True)],
    "plan_paste": [lambda: (bits(99), shares(N), on(), whole(4, N, 2), N, N, K, H, W, 0.5, 0.5, True, False),
                   lambda: (bits(1), None, on(), whole(4, N, 2), N, N, K, H, W, 0.5, 0.5, True, False)],
    "plan_cutout": [lambda: (bits(99), on(), N, N, H, W, 3, 0.5, True)],
    "plan_patch": [lambda: (bits(99), shares(1)[:, :2], on(), N, 20, 2, 0.5, 0.5, False),
                   lambda: (bits(1), None, on(), N, 20, 2, 0.5, 0.5, False)],
    "plan_crop": [lambda: (bits(99), torch.tensor(0.3), on(), N, H, W, 10, 2.0, 0.1, 0.5)],
}
DTYPES = (*FLOAT_TYPES, torch.int64, torch.int32, torch.int16, torch.uint8, torch.bool, torch.complex64)
# Arguments that decide how much is read or written, or which of several things is done.
COUNTS = {"height", "width", "h", "w", "rows", "draws", "dtype", "loss", "reduction", "weighting", "kind"}
GIVE_SIZES = {"index", "weight", "mean", "features", "shares"}
VALUES = {torch.int64: (-1, 99, -2**63, 2**63 - 1), torch.int32: (-1, 99, -2**31, 2**31 - 1),
          torch.float32: (math.nan, math.inf, -math.inf, -1.0, 3e38), torch.uint8: (0, 255), torch.bool: (False, True)}
VALUES[torch.float64] = (*VALUES[torch.float32], 1e300, -1e300)
VALUES[torch.bfloat16] = VALUES[torch.float16] = (math.nan, math.inf)


def served(variant, name):
    """The operator, of a variant whose kernels are C++; skipped where it has none."""
    backend = variant.partition("-")[0]
    namespace = {"cpu": "fastmix", "cuda": "fastmix", "simt": simt_backend.NAMESPACE}.get(backend)
    key = "CUDA" if backend == "cuda" else "CPU"
    if namespace is None or not torch._C._dispatch_has_kernel_for_dispatch_key(f"{namespace}::{name}", key):
        pytest.skip(f"{backend} has no C++ kernel of {name}")
    return getattr(getattr(torch.ops, namespace), name).default


def forms(variant, name):
    """Right arguments; of ISDA's kernels for CUDA of the kinds that they serve."""
    served = [make() for make in CASES[name]]
    return [args for args in served if variant.startswith("cpu") or "isda" not in name or FULL not in args[-1:]]


def test_every_operator_has_a_case():
    assert set(CASES) == set(library.schemas())


def wrong_tensors(t):
    """(what, t in another shape or dtype)."""
    yield "one dimension more", t.unsqueeze(0)
    yield "one dimension more, behind", t.unsqueeze(-1)
    if t.ndim:
        yield "one dimension less", t[0] if t.shape[0] else t.sum(0)
        yield "0-d", t.new_ones(())
        yield "no entry", t.new_empty(0)
        yield "flat", t.flatten().repeat(2)
    for d in range(t.ndim):
        yield f"no size {d}", t.narrow(d, 0, 0)
        yield f"size {d} less 1", t.narrow(d, 0, max(t.shape[d] - 1, 0))
        yield f"size {d} more 1", torch.cat([t, t.new_ones((*t.shape[:d], 1, *t.shape[d + 1:]))], d)
    for dtype in DTYPES:
        if dtype != t.dtype:
            yield f"{dtype}", t.to(dtype)


def leaves(result):
    return [t for t in pytree.tree_leaves(result) if isinstance(t, Tensor)]


def call(op, args):
    """The result; what is written in place is a copy."""
    return op(*(a.clone() if isinstance(a, Tensor) and op._schema.is_mutable else a for a in args))


def is_the_result(op, got, args, right, what):
    """Accepted: the shapes and dtypes of the shape function, all of it written, in another dtype the same values.
    """
    with FakeTensorMode() as mode:
        fake = op(*(mode.from_tensor(a) if isinstance(a, Tensor) else a for a in args))
    want = call(op, right)
    for a, b, c in zip(leaves(got), leaves(fake), leaves(want), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype, f"{what}: {a.dtype} {a.shape}, want {b.dtype} {b.shape}"
        if a.is_floating_point():
            assert a.isfinite().all(), what
        if what.endswith(tuple(map(str, FLOAT_TYPES))):
            torch.testing.assert_close(a.to(c.dtype), c, rtol=0.05, atol=0.05)


def names_it(error, op, wanted):
    text = str(error)
    name = op._schema.name.split("::")[1]
    assert re.search(rf"^{name}: .*\b({'|'.join(wanted)})\b", text), f"{text!r} names none of {wanted}"


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_tensor(variant, name):
    op = served(variant, name)
    names = [a.name for a in op._schema.arguments]
    for right in forms(variant, name):
        call(op, right)
        for i, t in enumerate(right):
            if not isinstance(t, Tensor):
                continue
            # Of what gives sizes to others it is as true that these do not fit.
            wanted = names if i == 0 or names[i] in GIVE_SIZES else [names[i]]
            for what, wrong in wrong_tensors(t):
                args = (*right[:i], wrong, *right[i + 1:])
                try:
                    got = call(op, args)
                except (RuntimeError, IndexError) as error:
                    names_it(error, op, wanted)
                else:
                    is_the_result(op, got, args, right, f"{names[i]}, {what}")


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_number(variant, name):
    op = served(variant, name)
    for right in forms(variant, name):
        for i, (argument, value) in enumerate(zip(op._schema.arguments, right, strict=True)):
            counts = argument.name in COUNTS
            if isinstance(value, Tensor) or value is None or isinstance(value, (bool, list)):
                continue
            tries = (-1, 0, 4, 99, 2**31, 2**40, 2**62, 2**63 - 1, -2**63) if isinstance(value, int) else (
                0.0, -1.0, math.nan, math.inf, -math.inf, 1e300, 2.0)
            for other in tries:
                args = (*right[:i], other, *right[i + 1:])
                try:
                    got = call(op, args)
                except (RuntimeError, IndexError) as error:
                    names_it(error, op, [argument.name, "bits", "shares", "peaks", "cov", "height", "width"])
                else:
                    with FakeTensorMode() as mode:
                        fake = op(*(mode.from_tensor(a) if isinstance(a, Tensor) else a for a in args))
                    for a, b in zip(leaves(got), leaves(fake), strict=True):
                        assert a.shape == b.shape, (argument.name, other)
                    assert not counts or 0 <= other <= 99, (argument.name, other)


@pytest.mark.parametrize("patches", [[], [0], [-1], [3], [5, 2], [2**31, 2**31 - 1, 2**40], [2**62, 2**62 + 1]])
def test_wrong_grids(variant, patches):
    op = served(variant, "saliency_mask_of_grid")
    grad, _, grid, q = CASES["saliency_mask_of_grid"][0]()
    with pytest.raises(RuntimeError, match="patches"):
        op(grad, patches, grid, q)


@pytest.mark.parametrize("name", CASES)
def test_extreme_values(variant, name):
    """Indices raise on the CPU; whatever is in the other tensors, the call comes back."""
    op = served(variant, name)
    names = [a.name for a in op._schema.arguments]
    for right in forms(variant, name):
        for i, t in enumerate(right):
            if not isinstance(t, Tensor):
                continue
            for value in VALUES[t.dtype]:
                args = (*right[:i], torch.full_like(t, value), *right[i + 1:])
                raises = variant.startswith("cpu") and names[i] in ("index", "partner", "labels", "grid")
                try:
                    call(op, args)
                    assert not raises or value == -100, (names[i], value)
                except (RuntimeError, IndexError) as error:
                    assert raises and re.search(rf"\b{names[i]}\b", str(error)), (names[i], value, error)


def test_the_same_device_by_another_name(variant):
    op = served(variant, "blend")
    x, index, weight = CASES["blend"][0]()
    if x.device.type == "cpu":
        assert torch.equal(op(x.to("cpu:0"), index, weight), op(x, index, weight))


