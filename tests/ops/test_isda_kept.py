"""isda_logits with the products that its gradient needs kept from the forward pass."""

import pytest
import torch
from helpers.isda_cases import make, oracle_logits, with_grads
from helpers.support import compiled

import fastmix.functional as F
from fastmix.ops import isda

pytestmark = pytest.mark.operator("isda", form="full")


@pytest.mark.parametrize("rows,classes,width,kept", [
    (5, 7, 20, True), (5, 7, 19, False), (100, 7, 28, True), (100, 7, 27, False), (0, 7, 4, True)])
def test_a_quarter_of_the_covariances_is_the_most_that_is_kept(rows, classes, width, kept):
    weight, labels = torch.randn(classes, width, requires_grad=True), torch.zeros(rows, dtype=torch.int64)
    assert isda.keeps_products("triton", weight, labels, "full") == kept
    assert not isda.keeps_products("cpu", weight, labels, "full")
    assert not isda.keeps_products("triton", weight, labels, "shared")
    assert not isda.keeps_products("triton", weight.detach(), labels, "full")
    with torch.no_grad():
        assert not isda.keeps_products("triton", weight, labels, "full")


@pytest.mark.parametrize("pixels", [(), (2, 2)], ids=["rows", "pixels"])
def test_kept_or_not_it_is_the_same(variant, pixels, monkeypatch):
    for n, j, a, dtype in ((3, 5, 37, torch.float32), (2, 70, 300, torch.bfloat16), (4, 3, 17, torch.float64)):
        z, w, cov, y = make("full", n, j, a, dtype, pixels)
        g = torch.randn_like(z)
        results = []
        for part in (100.0, 0.0):
            monkeypatch.setattr(isda, "KEPT", part)
            kept = isda.keeps_products(variant, w.requires_grad_(), y, "full")
            assert kept == (variant == "triton" and part > 0)
            results.append(with_grads(lambda z, w, cov=cov, y=y: F.isda_logits(z, w, cov, y, 0.7), z, w, g))
        truth = with_grads(lambda z, w, cov=cov, y=y: oracle_logits(z, w, cov.double(), y, 0.7, "full"), z.double(),
                           w.double(), g.double())
        tolerance = {"rtol": 2e-2, "atol": 1e-2} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-4}
        for got in results:
            torch.testing.assert_close([t.double() for t in got], truth, **tolerance)


def test_derivatives_of_any_order(variant, monkeypatch):
    monkeypatch.setattr(isda, "KEPT", 100.0)
    z, w, cov, y = make("full", 4, 3, 4, torch.float64)
    root = cov.requires_grad_()
    z.requires_grad_()
    w.requires_grad_()
    fast = {"fast_mode": variant == "triton"}

    def call(z, w, root):
        return F.isda_logits(z, w, (root + root.mT) / 2, y, 0.7)

    assert torch.autograd.gradcheck(call, (z, w, root), **fast)
    assert torch.autograd.gradgradcheck(call, (z, w, root), **fast)


def test_compiled_equals_eager(variant, monkeypatch):
    monkeypatch.setattr(isda, "KEPT", 100.0)
    z, w, cov, y = make("full", 4, 3, 5)
    leaves = [t.requires_grad_() for t in (z, w)]

    def step(z, w):
        return F.isda_logits(z * 2, w, cov, y, 0.5).square().sum()

    want = torch.autograd.grad(step(*leaves), leaves)
    torch.testing.assert_close(torch.autograd.grad(compiled(step)(*leaves), leaves), want)
