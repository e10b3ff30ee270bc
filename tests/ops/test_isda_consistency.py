"""isda_consistency against ISDA Eq. 15 in float64."""

import pytest
import torch
from helpers.isda_cases import make, oracle_consistency, with_grads
from helpers.support import DTYPES, compiled, dtype_id, same_bits, within_budget

import fastmix
import fastmix.functional as F
from fastmix.ops import library
from fastmix.ops.covariance import KINDS

pytestmark = pytest.mark.operator("isda", form="consistency")


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("kind", KINDS)
def test_consistency_and_gradients(variant, kind, dtype):
    sizes = [(0, 3, 4), (1, 1, 1), (9, 7, 37)]
    for n, j, a in sizes if variant == "triton" else [*sizes, (20, 18, 6), (6, 21, 60)]:
        z, w, cov, _ = make(kind, n, j, a, dtype)
        w = w * 0.3
        row_grad = torch.randn(n)
        for reduction, g in (("none", row_grad), ("mean", row_grad.new_tensor(0.7)), ("sum", row_grad.new_tensor(2.0))):
            def call(z, w, cov=cov, reduction=reduction):
                return F.isda_consistency(z, w, cov, 0.4, reduction=reduction, kind=kind)

            def want_of(z, w, cov=cov, reduction=reduction):
                rows = oracle_consistency(z, w, cov.double(), 0.4, kind)
                return {"none": rows, "sum": rows.sum(), "mean": rows.sum() / max(len(rows), 1)}[reduction]

            ours = with_grads(call, z, w, g)
            with fastmix.backend("reference"):
                stock = with_grads(call, z, w, g)
            truth = with_grads(want_of, z.double(), w.double(), g.double())
            for name, got, want, torchs in zip(("loss", "d logits", "d weight"), ours, truth, stock, strict=True):
                # Gradients sum N J terms that cancel: units of their sizes, not of the sum.
                if got.numel() and (got.double() - want).abs().max() <= 16 * torch.finfo(got.dtype).eps:
                    continue
                within_budget(got, want, torchs, f"{name} {reduction} {n}x{j}x{a}", units=8)


@pytest.mark.parametrize("kind", KINDS)
def test_more_classes_than_a_block_holds(variant, kind):
    z, w, cov, _ = make(kind, 3, 35, 4, torch.float64)
    z[0, 34] = z[1, 33] = 9.0  # pseudo labels beyond the first block
    w, g = w * 0.3, torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    ours = with_grads(lambda z, w: F.isda_consistency(z, w, cov, 0.4, reduction="none", kind=kind), z, w, g)
    truth = with_grads(lambda z, w: oracle_consistency(z, w, cov, 0.4, kind), z, w, g)
    for name, got, want in zip(("loss", "d logits", "d weight"), ours, truth, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11, msg=name)


def test_ties_go_to_the_first_class_and_nan_stays_in_its_row(variant):
    z, w, cov, _ = make("full", 6, 5, 4)
    z[0, 3] = z[0, 1] = 5.0
    z[1, 4] = z[1, 0] = 5.0
    loss = F.isda_consistency(z, w, cov, 0.5, reduction="none")
    torch.testing.assert_close(loss.double(), oracle_consistency(z.double(), w.double(), cov.double(), 0.5, "full"),
                               rtol=1e-4, atol=1e-5)
    broken = z.clone()
    broken[2, 1], broken[3] = float("nan"), float("nan")
    got = F.isda_consistency(broken, w, cov, 0.5, reduction="none")
    rows = [0, 1, 4, 5]
    assert got[2:4].isnan().all() and torch.equal(got[rows], loss[rows])


@pytest.mark.parametrize("kind", ["full", "diag"])
def test_the_covariance_of_a_class_that_is_no_pseudo_label_may_be_anything(variant, kind):
    z, w, cov, _ = make(kind, 4, 5, 6)
    z[:, 0] = -9.0
    broken = cov.clone()
    broken[0] = float("nan")

    def results(cov):
        return with_grads(lambda z, w: F.isda_consistency(z, w, cov, 0.5, kind=kind), z, w, torch.ones(()))

    assert all(torch.equal(a, b) for a, b in zip(results(broken), results(cov), strict=True))


@pytest.mark.parametrize("reduction,code", [("mean", 1), ("sum", 2)])
def test_a_gradient_that_the_forward_pass_did_not_compute(variant, operators, reduction, code):
    """The registered operator, told that none is needed: backward computes it."""
    if variant == "reference":
        pytest.skip("no operator")
    z, w, cov, _ = make("diag", 6, 5, 9)

    def late(z, w):
        return operators.isda_consistency.default(z, w, cov, None, None, 0.4, code, KINDS["diag"], False)[0]

    g = torch.tensor(0.7)
    torch.testing.assert_close(with_grads(late, z, w, g), with_grads(
        lambda z, w: F.isda_consistency(z, w, cov, 0.4, reduction=reduction), z, w, g))


def test_consistency_with_a_masked_class(variant):
    z, w, cov, _ = make("full", 5, 6, 4)
    z[:, 2] = -float("inf")
    loss = F.isda_consistency(z, w, cov, 0.5, reduction="none")
    keep = [0, 1, 3, 4, 5]
    if variant != "reference":  # the formula has 0 * inf there
        torch.testing.assert_close(loss, F.isda_consistency(z[:, keep], w[keep], cov[keep], 0.5, reduction="none"))


def test_strength_zero_is_plain_consistency(variant):
    z, w, cov, _ = make("full", 6, 5, 4)
    entropy = -(torch.softmax(z, 1) * torch.log_softmax(z, 1)).sum(1)
    torch.testing.assert_close(F.isda_consistency(z, w, cov, 0.0, reduction="none"), entropy)


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(variant, kind):
    z, w, cov, _ = make(kind, 5, 3, 4, torch.float64)
    w.requires_grad_()
    fast = {"fast_mode": variant == "triton"}
    for reduction in ("mean", "none"):
        def loss(z, w, reduction=reduction):
            return F.isda_consistency(z, w, cov, 0.7, kind=kind, reduction=reduction)
        # p is a constant of the loss, which finite differences do not know: only the weight.
        assert torch.autograd.gradcheck(lambda w: loss(z.detach(), w), w, **fast)
    if kind != "identity":
        cov.requires_grad_()
        symmetric = (lambda c: c) if kind == "diag" else lambda c: (c + c.mT) / 2
        assert torch.autograd.gradcheck(
            lambda w, cov: F.isda_consistency(z, w, symmetric(cov), 0.7, kind=kind), (w, cov), **fast)


@pytest.mark.parametrize("kind", ["full", "shared"])
def test_a_covariance_descends_as_a_symmetric_matrix(variant, kind):
    """cov - rate * gradient must stay a covariance: the gradient is that of the differences, (w_j - w_k) twice."""
    z, w, cov, _ = make(kind, 5, 3, 4, torch.float64)
    (got,) = torch.autograd.grad(F.isda_consistency(z, w, cov.requires_grad_(), 0.7, kind=kind), cov)
    (want,) = torch.autograd.grad(oracle_consistency(z, w, cov, 0.7, kind).mean(), cov)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(got, got.mT)


def test_rows_of_any_stride_and_weights_of_any_order(variant):
    _, w, cov, _ = make("diag", 6, 5, 9)
    rows, turned_w = torch.randn(6, 10)[:, ::2], w.t().contiguous().t()
    torch.testing.assert_close(F.isda_consistency(rows, turned_w, cov, 0.5),
                               F.isda_consistency(rows.contiguous(), w, cov, 0.5))


@pytest.mark.parametrize("kind", KINDS)
def test_repeatable_and_independent_of_threads(variant, kind, threads):
    if variant == "reference":
        pytest.skip("torch's own products split by threads")
    n, j, a = (12, 9, 33) if variant == "triton" else (200, 40, 70)
    z, w, cov, _ = make(kind, n, j, a)
    results = []
    for count in (1, 1) if variant == "triton" else (1, 2, 2):  # the interpreter's products are torch's own
        threads(count)
        results.append(with_grads(lambda z, w: F.isda_consistency(z, w, cov, 0.5, kind=kind), z, w, torch.ones(())))
    for other in results[1:]:
        assert all(same_bits(a, b) for a, b in zip(other, results[0], strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_equals_eager(variant, kind):
    z, w, cov, _ = make(kind, 4, 3, 5)

    def step(z, w):
        return (F.isda_consistency(z, w, cov, 0.5, kind=kind)
                + F.isda_consistency(z, w, cov, 0.5, kind=kind, reduction="none").square().sum())

    leaves = [t.requires_grad_() for t in (z, w)]
    want = torch.autograd.grad(step(*leaves), leaves)
    torch.testing.assert_close(torch.autograd.grad(compiled(step)(*leaves), leaves), want)


def test_more_classes_than_are_handled_together(variant, monkeypatch):
    """Triton's tables are taken class by class where all would be too large."""
    z, w, cov, _ = make("full", 9, 5, 4)
    want = with_grads(lambda z, w: F.isda_consistency(z, w, cov, 0.5), z, w, torch.ones(()))
    if variant == "triton":
        kernels = library.kernels("isda_consistency")
        monkeypatch.setattr(kernels, "CONFIG", kernels.Config(elements=100))
    torch.testing.assert_close(with_grads(lambda z, w: F.isda_consistency(z, w, cov, 0.5), z, w, torch.ones(())), want)
    strength = torch.tensor(0.25, dtype=torch.float64)
    torch.testing.assert_close(F.isda_consistency(z, w, cov, strength), F.isda_consistency(z, w, cov, 0.25))
