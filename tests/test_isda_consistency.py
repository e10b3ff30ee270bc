"""isda_consistency against ISDA Eq. 15 in float64."""

import pytest
import torch
from isda_cases import make, oracle_consistency, with_grads
from support import DTYPES, dtype_id, within_budget

import fastmix
import fastmix.functional as F
from fastmix.ops.covariance import KINDS


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
