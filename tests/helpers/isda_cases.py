"""Inputs and float64 oracles of isda_logits and isda_consistency, for their test files."""

import torch

from fastmix.ops.covariance import cov_shape

SIZES = [(0, 3, 4), (1, 1, 1), (9, 7, 37), (20, 50, 6), (33, 21, 130)]
# In Triton's interpreter a program takes milliseconds.
INTERPRETED_SIZES = [(0, 3, 4), (1, 1, 1), (9, 40, 37)]
INTERPRETED_PIXELS = [(0, 3, 4), (3, 18, 20)]


def make_cov(kind, j, a, dtype=torch.float32):
    shape = cov_shape(kind, j, a)
    if kind in ("diag", "identity"):
        return torch.rand(shape, dtype=dtype)
    root = torch.randn(shape, dtype=dtype)
    return root @ root.mT / a


def make(kind, n, j, a, dtype=torch.float32, pixels=()):
    """logits, weight, cov, labels; the weights have a large common part, which cancels in every difference."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    y = torch.randint(0, j, (n, *pixels))
    if n > 2:
        y[1] = -100
    return torch.randn(n, j, *pixels).to(dtype), torch.randn(j, a, dtype=wide) + 1, make_cov(kind, j, a, wide), y


def sigma_of(kind, cov, c, a):
    return {"full": lambda: cov[c], "diag": lambda: torch.diag(cov[c]), "shared": lambda: cov,
            "identity": lambda: torch.eye(a, dtype=cov.dtype)}[kind]()


def oracle_logits(z, w, cov, y, strength, kind, ignore_index=-100):
    """Eq. 7 in loops over rows and classes."""
    flat = z.movedim(1, -1).reshape(-1, z.shape[1])
    rows = []
    for row, c in zip(flat, y.reshape(-1).tolist(), strict=True):
        if c != ignore_index:
            v = w - w[c]
            row = row + strength / 2 * ((v @ sigma_of(kind, cov, c, w.shape[1])) * v).sum(1)
        rows.append(row)
    out = torch.stack(rows) if rows else flat
    return out.view(z.shape[0], *z.shape[2:], z.shape[1]).movedim(-1, 1)


def oracle_consistency(z, w, cov, strength, kind):
    """Eq. 15 with every difference of two weights written out, sample by sample."""
    v = w.unsqueeze(1) - w.unsqueeze(0)
    rows = []
    for row in z:
        sigma = sigma_of(kind, cov, int(row.detach().argmax()), w.shape[1])
        p = torch.softmax(row.detach(), 0)
        exponents = row.unsqueeze(1) + strength / 2 * ((v @ sigma) * v).sum(2)
        rows.append((p * (torch.logsumexp(exponents, 0) - row)).sum())
    return torch.stack(rows) if rows else z.sum(1)


def with_grads(fn, z, w, g):
    z, w = z.detach().requires_grad_(), w.detach().requires_grad_()
    out = fn(z, w)
    grads = torch.autograd.grad(out, (z, w), g.to(out.dtype), allow_unused=True)
    return [out.detach(), *(torch.zeros_like(t) if d is None else d for t, d in zip((z, w), grads, strict=True))]
