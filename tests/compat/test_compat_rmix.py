"""fastmix.compat.rmix against the released function's steps, written out one by one."""

import numpy as np
import pytest
import torch
from torch import nn

from fastmix.compat.rmix import r_mix

N, J, SIDE = 6, 5, 8


def released(model, inputs, labels, p, alpha, levels):
    q = torch.from_numpy(np.random.choice(levels, size=N))
    leaf = inputs.clone().requires_grad_()
    (grad,) = torch.autograd.grad(2 * nn.functional.cross_entropy(model(leaf), labels) / J, leaf)
    pooled = nn.functional.avg_pool2d(grad.square().mean(1).sqrt().unsqueeze(1), SIDE // p).squeeze(1)
    pooled = pooled / pooled.flatten(1).sum(1).view(N, 1, 1)
    lam = torch.distributions.Beta(torch.tensor([alpha]), torch.tensor([alpha])).sample()
    rows = pooled.flatten(1).double()
    threshold = torch.stack([torch.quantile(row, share) for row, share in zip(rows, q, strict=True)])
    mask = (pooled.double() >= threshold.view(N, 1, 1)).float().unsqueeze(1)
    mask = nn.functional.interpolate(mask, scale_factor=SIDE // p, mode="nearest")
    partner = torch.randperm(N)
    other = mask[partner]
    share = torch.where(mask == other, lam, mask)
    weight = share.mean((1, 2, 3)).unsqueeze(1)
    return share * inputs + (1 - share) * inputs[partner], weight * labels + (1 - weight) * labels[partner]


@pytest.mark.parametrize("levels", [None, np.array([0.25, 0.5])])
@pytest.mark.parametrize("p", [2, 4, 8])
def test_the_same_batch_of_the_same_seeds(p, levels):
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, J))
    inputs, labels = torch.randn(N, 3, SIDE, SIDE), nn.functional.one_hot(torch.randint(J, (N,)), J).float()
    for seed in range(5):
        found = []
        for call in (released, r_mix):
            torch.manual_seed(seed)
            np.random.seed(seed)
            grid = np.linspace(0.0, 0.99, num=10) if levels is None else levels
            found.append(call(model, inputs, labels, p, 0.7, grid))
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6)


def test_weights_keep_their_gradients():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, J)).eval()
    mixed, labels = r_mix(model, torch.randn(N, 3, SIDE, SIDE), torch.eye(J)[torch.arange(N) % J], num_patches=4)
    assert model.training and all(p.grad is None for p in model.parameters())
    torch.testing.assert_close(labels.sum(1), torch.ones(N))
    assert mixed.shape == (N, 3, SIDE, SIDE) and not mixed.requires_grad
