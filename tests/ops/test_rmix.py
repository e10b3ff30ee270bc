"""functional.rmix: saliency_mask and patch_mix one after the other."""

import pytest
import torch
from helpers.support import DTYPES, LAYOUTS, NAN_ROWS, dtype_id, same_bits

import fastmix.functional as F

pytestmark = pytest.mark.operator("patch_mix", "saliency")
CASES = [(5, 3, 32, 32, (4, 4)), (3, 3, 16, 24, (16, 24)), (4, 5, 9, 7, (3, 7)), (1, 3, 8, 8, (1, 1)),
         (0, 3, 8, 8, (2, 2))]


def make(n, channels, height, width, dtype):
    x, grad = (torch.randn(n, channels, height, width).to(dtype) for _ in range(2))
    return x, grad, torch.rand(n), torch.randperm(n), torch.rand(n)


def two_calls(x, grad, grid, q, partner, lam):
    mask = F.saliency_mask(grad, grid, q)
    return *F.patch_mix(x, partner, mask, lam), mask


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
def test_it_does_what_the_two_functions_do(variant, dtype, layout):
    for n, channels, height, width, grid in CASES:
        x, grad, q, partner, lam = make(n, channels, height, width, dtype)
        grad[:1] = 0
        x, grad = LAYOUTS[layout](x), LAYOUTS[layout](grad)
        g = torch.randn(x.shape).to(dtype)
        results = []
        for function in (two_calls, F.rmix):
            leaf = x.detach().clone().requires_grad_()
            mixed, weight, mask = function(leaf, grad, grid, q, partner, lam)
            results.append([mixed.detach(), weight, mask, torch.autograd.grad(mixed, leaf, g)[0]])
            assert n == 0 or mixed.stride() == torch.empty_like(leaf).stride()
        assert all(same_bits(a, b) for a, b in zip(*results, strict=True)), (n, channels, height, width, grid)


def test_a_partner_out_of_range_makes_its_image_nan(variant):
    if variant not in NAN_ROWS:
        pytest.skip("this backend raises")
    x, grad, q, partner, lam = make(4, 3, 8, 8, torch.float32)
    want = F.rmix(x, grad, (2, 2), q, partner, lam)
    partner[1] = 4
    mixed, weight, mask = F.rmix(x, grad, (2, 2), q, partner, lam)
    others = [0, 2, 3]
    assert mixed[1].isnan().all() and weight[1].isnan().all() and torch.equal(mask, want[2])
    assert same_bits(mixed[others], want[0][others]) and same_bits(weight[others], want[1][others])


def test_one_for_all_and_float64_percentiles(variant):
    x, grad, _, partner, _ = make(4, 3, 8, 8, torch.bfloat16)
    q, lam = torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.7)
    for a, b in zip(*(function(x, grad, (4, 2), q, partner, lam) for function in (two_calls, F.rmix)), strict=True):
        assert same_bits(a, b)


def test_what_is_differentiable_and_what_is_an_error(variant):
    x, grad, q, partner, lam = make(2, 3, 8, 8, torch.float32)
    mixed, _, mask = F.rmix(x.requires_grad_(), grad, (2, 2), q, partner, lam)
    assert mixed.requires_grad and not mask.requires_grad
    for change, error, text in (({"grid": (3, 2)}, ValueError, r"grid is \(3, 2\)"),
                                ({"partner": partner[:1]}, ValueError, "partner has shape"),
                                ({"lam": lam.double()}, TypeError, "lam has dtype float64")):
        given = {"grad": grad, "grid": (2, 2), "q": q, "partner": partner, "lam": lam, **change}
        with pytest.raises(error, match=text):
            F.rmix(x, **given)
