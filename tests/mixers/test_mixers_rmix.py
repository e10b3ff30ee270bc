"""R-Mix against a loop over cells and pixels, its draws."""

import math

import pytest
import torch
from helpers.mixing import batch, same
from helpers.support import seeded
from scipy import stats

from fastmix import Compose, RLMix, RMix
from fastmix.functional import saliency_mask

pytestmark = pytest.mark.usefixtures("one_thread")

LEVELS = [0.99 * i / 9 for i in range(10)]


def slow_mask(grad, p, q):
    """Eq. 2-4 for one image (C, H, W), cell by cell: nested lists of bool."""
    c, height, width = grad.shape
    grad = grad.double().tolist()
    tall, wide = height // p, width // p
    cells = []
    for row in range(p):
        for column in range(p):
            norms = [math.sqrt(sum(grad[k][i][j] ** 2 for k in range(c)) / c)
                     for i in range(row * tall, (row + 1) * tall) for j in range(column * wide, (column + 1) * wide)]
            cells.append(sum(norms) / len(norms))
    threshold = sorted(cells)[math.ceil(q * (p * p - 1) - 1e-9)]
    return [[cells[row * p + column] >= threshold for column in range(p)] for row in range(p)]


def slow_rmix(x, index, mask, lam):
    """Eq. 5-7 pixel by pixel."""
    n, _, height, width = x.shape
    h, w = mask.shape[1:]
    out, share = torch.empty_like(x), []
    for row in range(n):
        other, total = int(index[row, 1]), 0.0
        for i in range(height):
            for j in range(width):
                m = bool(mask[row, i * h // height, j * w // width])
                theirs = bool(mask[other, i * h // height, j * w // width])
                a = lam if m == theirs else float(m)
                out[row, :, i, j] = a * x[row, :, i, j] + (1 - a) * x[other, :, i, j]
                total += a
        share.append(total / (height * width))
    return out, torch.tensor(share)


def test_rmix_against_a_loop():
    x, y, saliency = batch(4, 2, (8, 12))
    saliency = saliency.double()
    mixer = RMix(generator=seeded(2))
    candidates = [{(p, q): torch.tensor(slow_mask(grad, p, q)).repeat_interleave(4 // p, 0).repeat_interleave(4 // p, 1)
                   for p in (2, 4) for q in LEVELS} for grad in saliency]
    grids = []
    for _ in range(25):
        plan = mixer.plan(x, saliency)
        assert plan.mask.shape == (4, 4, 4)
        fits = []
        for row in range(4):
            found = {p for (p, _), mask in candidates[row].items() if mask.equal(plan.mask[row])}
            assert found
            fits.append(found)
        assert set.intersection(*fits)  # one grid for the whole batch
        grids.append(frozenset.intersection(*map(frozenset, fits)))
        mixed, share = slow_rmix(x, plan.index, plan.mask, plan.lam.item())
        torch.testing.assert_close(plan.apply(x), mixed, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(plan.weight[:, 0], share, rtol=1e-6, atol=1e-6)
        got = plan.mix(x, y)
        assert same(got, (plan.apply(x), plan.target(y)))
        assert torch.equal(got[1].index, torch.stack([y, y[plan.index[:, 1]]], 1))
    assert {frozenset({2}), frozenset({4})} <= set(grids)


@pytest.mark.parametrize("patches", [(2,), (4,), (2, 4), (2, 3), (1, 6)])
def test_rmix_mask_is_saliency_mask_on_every_grid(patches):
    """Also with ties, zeros, NaN and infinities: no finer map is averaged on the way."""
    side = math.lcm(*patches)
    _, _, grad = batch(7, 3, (12, 24))
    grad[0] = 0
    grad[1] = 0.1
    grad[2] = grad[2].sign()
    grad[3, 1, 2, 3] = float("nan")
    grad[4, 0, 5, 6] = float("inf")
    grad[5] *= 1e-30
    masks = {p: [saliency_mask(grad, (p, p), torch.tensor(q, dtype=torch.float64))
                 .repeat_interleave(side // p, 1).repeat_interleave(side // p, 2) for q in LEVELS] for p in patches}
    mixer = RMix(patches=patches, generator=seeded())
    seen = set()
    for _ in range(40):
        mask = mixer.plan(grad, grad).mask
        fit = [p for p in patches if all(any(m[row].equal(mask[row]) for m in masks[p]) for row in range(7))]
        assert fit
        seen.update(fit[:1] if len(fit) == 1 else ())
    assert len(patches) == 1 or seen == set(patches) - {1}  # a 1 x 1 mask is always True, like q = 0 on any grid


def test_rmix_draws_every_level_grid_and_lambda():
    n, plans = 50, 400
    grad = torch.arange(16.0).sqrt().view(1, 1, 4, 4).expand(n, 1, 4, 4)  # cells differ: the count tells q
    mixer = RMix(alpha=0.5, generator=seeded())
    counts = {p: [math.ceil(q * (p * p - 1) - 1e-9) for q in LEVELS] for p in (2, 4)}
    observed, lams, coarse = torch.zeros(16), [], 0
    for _ in range(plans):
        plan = mixer.plan(grad, grad)
        lams.append(plan.lam.item())
        blocks = plan.mask.view(n, 2, 2, 2, 2).transpose(2, 3).flatten(3).float().mean(3)
        if ((blocks == 0) | (blocks == 1)).all():
            coarse += 1
        else:
            observed += torch.bincount(16 - plan.mask.sum((1, 2)), minlength=16)
    assert abs(coarse / plans - 0.5) < 4 * 0.5 / math.sqrt(plans)
    expected = torch.bincount(torch.tensor(counts[4]), minlength=16).double() / len(LEVELS)
    assert (observed[expected == 0] == 0).all()
    assert stats.chisquare(observed[expected > 0], observed.sum() * expected[expected > 0]).pvalue > 1e-3
    assert stats.kstest(lams, stats.beta(0.5, 0.5).cdf).pvalue > 1e-3


def test_rmix_pairing():
    x, _, saliency = batch(5)
    flip = RMix(pairing="flip").plan(x, saliency)
    assert flip.index[:, 1].tolist() == [4, 3, 2, 1, 0]
    drawn = [tuple(RMix().plan(x, saliency).index[:, 1].tolist()) for _ in range(20)]
    assert len(set(drawn)) > 5


def test_rmix_needs_no_saliency_while_disabled():
    x, y, _ = batch()
    mixer = RMix()
    mixer.enabled = False
    mixed, target = mixer(x, y)
    assert torch.equal(mixed, x) and torch.equal(target.dense(6), torch.eye(6))


def test_each_of_three_grids_is_drawn():
    x, _, saliency = batch(12, 2, (8, 8))
    mixer, found = RMix(patches=(1, 2, 4), generator=seeded(3)), []
    for _ in range(90):
        mask = mixer.plan(x, saliency).mask
        cells = mask.view(12, 2, 2, 2, 2)
        found.append(1 if mask.all() else 2 if (cells == cells[:, :, :1, :, :1]).all() else 4)
    assert all(found.count(p) > 15 for p in (1, 2, 4))


def test_given_percentiles_are_not_kept():
    x, _, saliency = batch(12, 2, (8, 8))
    mixer = RLMix(patches=4, generator=seeded(3))
    assert mixer.plan(x, saliency, torch.tensor(0.0)).mask.all()
    assert not Compose(mixer).plan(x, saliency).plans[0].mask.all()
    torch.testing.assert_close(mixer.percentiles(), torch.tensor(LEVELS, dtype=torch.float64))
