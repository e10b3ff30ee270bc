"""Inputs that lie more than 2^31 elements apart, on every backend that runs here.

The memory is reserved and not filled: a batch of two images (rows) whose distance no 32-bit offset holds. Outputs as
far apart are written by the emulated CUDA kernels in test_simt.py.
"""

import mmap

import pytest
import torch
from helpers.support import same_bits

import fastmix.functional as F
from fastmix import SoftTarget

pytestmark = pytest.mark.skipif("config.getoption('--device') != 'cpu'",
                                reason="the memory is the host's; on a GPU bench/device/graphs.py has batches as large")
FAR = 2**31 + 64
NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Python 3.13 names it


def far(x):
    """x (2, ...) with its second row FAR elements behind the first."""
    memory = mmap.mmap(-1, (FAR + x[0].numel()) * x.element_size(),
                       flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE)
    view = torch.frombuffer(memory, dtype=x.dtype).as_strided(x.shape, (FAR, *x.stride()[1:]))
    return view.copy_(x)


@pytest.mark.operator("paste", "patch_mix", "saliency")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_images(variant, layout):
    x = torch.randn(2, 3, 8, 16).to(torch.bfloat16).contiguous(memory_format=layout)
    y = far(x)
    index, boxes = torch.tensor([[0, 1], [1, 0]]), torch.tensor([[[0, 0, 4, 4]], [[2, 3, 4, 9]]], dtype=torch.int32)
    mask, half = torch.rand(2, 4, 4) < 0.5, torch.tensor(0.5)
    for call in (lambda v: F.paste(v, index, boxes), lambda v: F.patch_mix(v, index[:, 1], mask, half)[0],
                 lambda v: F.saliency_map(v, (2, 4)), lambda v: F.saliency_mask(v, (2, 4), half), F.saliency_peak):
        assert same_bits(call(y), call(x))


@pytest.mark.operator("soft_target")
def test_rows(variant):
    z = torch.randn(2, 40).to(torch.bfloat16)
    y, target = far(z), SoftTarget(torch.tensor([[1, 39], [7, 7]]), torch.rand(2, 2))
    for call in (F.soft_cross_entropy, F.soft_kl, F.soft_bce):
        losses = []
        for v in (z, y):
            leaf = v.detach().requires_grad_()
            loss = call(leaf, target)
            losses.append((loss.detach(), torch.autograd.grad(loss, leaf)[0]))
        assert all(same_bits(a, b) for a, b in zip(*losses, strict=True))


@pytest.mark.operator("isda", form="diag")
def test_isda_rows(variant):
    z, w, labels = torch.randn(2, 40).to(torch.bfloat16), torch.randn(40, 9), torch.tensor([3, 39])
    assert same_bits(F.isda_logits(far(z), w, torch.rand(40, 9), labels, 0.0), z)
    sigma = torch.rand(40, 9)
    assert same_bits(F.isda_logits(far(z), w, sigma, labels, 0.5), F.isda_logits(z, w, sigma, labels, 0.5))
