"""Gradients in half precision under a loss scale, of everything that stores or rounds one on the way.

The losses of soft_target: test_soft_target_options.py.
"""

import pytest
import torch

import fastmix.functional as F
from fastmix import FocalLoss, ISDALoss

SCALE = 2.0**16
TINY = 2.0**-22  # a gradient that float16 holds with two bits, and only a scale brings back
N, C, H, W = 6, 3, 8, 8
INDEX = torch.tensor([[n, (n + 1) % N, (n + 2) % N] for n in range(N)])


def gradients(fn, x, g):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(fn(x), x, g)[0]


@pytest.mark.operator("blend", "paste", "patch_mix")
@pytest.mark.parametrize("name", ["blend", "paste", "patch_mix"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_backward_of_mixing_rounds_once(variant, name, dtype):
    """Sums over sources are in float32: small parts are not lost, and nothing overflows in between."""
    weight = torch.tensor([[0.5, 0.25, 0.25]] * N)
    boxes = torch.tensor([[[0, 0, 6, 6], [1, 1, 3, 3]]] * N, dtype=torch.int32)
    calls = {"blend": lambda x: F.blend(x, INDEX, weight), "paste": lambda x: F.paste(x, INDEX, boxes),
             "patch_mix": lambda x: F.patch_mix(x, INDEX[:, 1], torch.rand(N, 2, 2, generator=torch.Generator(
             ).manual_seed(0)) > 0.5, torch.tensor(0.3))[0]}
    x = torch.randn(N, C, H, W).to(dtype)
    for size in (TINY, 60000.0):
        g = (torch.rand(N, C, H, W) * size).to(dtype)
        got = gradients(calls[name], x, g)
        want = gradients(calls[name], x.double(), g.double()).to(dtype)
        torch.testing.assert_close(got, want, rtol=2 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).smallest_normal
                                   * torch.finfo(dtype).eps * 3)


@pytest.mark.operator("isda", form="consistency")
@pytest.mark.parametrize("kind", ["full", "diag"])
def test_isda_consistency(variant, kind):
    torch.manual_seed(1)
    z, weight = torch.randn(64, 5) * 4, torch.randn(5, 4)
    cov = torch.eye(4).expand(5, 4, 4).contiguous() if kind == "full" else torch.ones(5, 4)

    def loss(v):
        return F.isda_consistency(v, weight, cov, 1e-3, kind=kind) * SCALE
    got = gradients(loss, z.half(), torch.ones(()))
    want = gradients(loss, z.half().double(), torch.ones((), dtype=torch.float64))
    assert got.isfinite().all()
    torch.testing.assert_close(got.double(), want, rtol=2e-2, atol=float(want.abs().max()) * 2e-3)
    unscaled = gradients(lambda v: loss(v) / SCALE, z.half(), torch.ones(()))
    assert (unscaled == 0).sum() > (got == 0).sum()  # what the scale is for


@pytest.mark.parametrize("pixels", [False, True])
def test_isda_and_focal_losses(pixels):
    z = torch.zeros(64, 5, 2, 2) if pixels else torch.zeros(256, 5)
    z[:, 0] = 14
    labels = torch.zeros(z.shape[:1] + z.shape[2:], dtype=torch.int64)
    isda = ISDALoss(4, 5, "diag")
    fc = torch.nn.Conv2d(4, 5, 1) if pixels else torch.nn.Linear(4, 5)
    features = torch.randn(z.shape[0], 4, *z.shape[2:])
    for loss in (lambda v: isda(features.to(v.dtype), fc, labels, 0.0, logits=v, update=False)[0] * SCALE,
                 lambda v: FocalLoss(0.0)(v, labels) * SCALE):
        got = gradients(loss, z.half(), torch.ones(()))
        want = gradients(loss, z.double(), torch.ones((), dtype=torch.float64))
        torch.testing.assert_close(got[:, 1:].double(), want[:, 1:], rtol=2**-9, atol=2**-24)
        assert (got[:, 1:] > 0).all()
