"""The draws of the mixers: distributions, geometry, edge cases."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from helpers.support import seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fastmix.functional import paste_areas
from fastmix.mixers import sampling
from fastmix.ops.plan import plan_blend, plan_cutout, plan_paste
from fastmix.reference.plan import nested_sides, stick_fractions

CPU = torch.device("cpu")
ON = torch.tensor(True)
KS_1_PERCENT = 1.63  # critical value of sqrt(n) * sup |F_n - F|

pytestmark = pytest.mark.usefixtures("one_thread")


def permutations(rows, columns, generator=None):
    return plan_blend(torch.ones(rows, columns + 1), ON, rows, alpha=0.0, generator=generator)[0][:, 1:]


def nested_boxes(phi, size, generator=None):
    return plan_paste(phi, ON, len(phi), size, alpha=0.0, generator=generator)[1]


def squares(rows, length, size, generator=None):
    return plan_cutout(ON, rows, rows, size, length, generator=generator)[:, 0]


def assert_uniform(counts, categories):
    """Chi-square at 0.1 % on counts of equally likely categories, the empty ones included."""
    counts = np.array([*counts, *[0] * (categories - len(counts))], dtype=float)
    assert len(counts) == categories
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("k", [2, 3, 5])
@pytest.mark.parametrize("alpha", [0.01, 0.2, 2 / 9, 1.0, 5.0])
def test_dirichlet_marginals_and_moments(alpha, k):
    n = 20000
    phi = sampling.dirichlet(n, k, alpha, CPU, seeded())
    assert phi.shape == (n, k) and phi.dtype == torch.float32
    assert phi.isfinite().all() and (phi >= 0).all()
    torch.testing.assert_close(phi.sum(1), torch.ones(n), rtol=0, atol=5e-7)
    # Between the points where float32 rounds to 0 or 1, which hold most of the mass at alpha = 0.01.
    grid = np.concatenate([np.logspace(-30, -1, 60), np.linspace(0.1, 0.99, 60), 1 - np.logspace(-2, -6, 20)])
    for column in phi.double().numpy().T:
        empirical = np.searchsorted(np.sort(column), grid, side="right") / n
        expected = stats.beta.cdf(grid, alpha, alpha * (k - 1))
        assert np.abs(empirical - expected).max() < KS_1_PERCENT / math.sqrt(n)
    variance = (1 / k) * (1 - 1 / k) / (k * alpha + 1)
    covariance = torch.cov(phi.double().T)
    expected = torch.full((k, k), -variance / (k - 1), dtype=torch.float64).fill_diagonal_(variance)
    torch.testing.assert_close(phi.double().mean(0), torch.full((k,), 1 / k).double(), rtol=0,
                               atol=4 * math.sqrt(variance / n))
    torch.testing.assert_close(covariance, expected, rtol=0, atol=0.01)


@pytest.mark.parametrize("alpha", [1e-6, 1e-3, 1e3, 1e6])
def test_dirichlet_extreme_alpha(alpha):
    phi = sampling.dirichlet(5000, 4, alpha, CPU, seeded())
    assert phi.isfinite().all()
    torch.testing.assert_close(phi.sum(1), torch.ones(5000), rtol=0, atol=5e-7)
    largest = phi.amax(1).mean()
    assert largest > 0.99 if alpha < 1 else largest < 0.28


def test_dirichlet_of_one_and_of_none():
    assert torch.equal(sampling.dirichlet(3, 1, 0.2, CPU), torch.ones(3, 1))
    assert sampling.dirichlet(0, 3, 0.2, CPU).shape == (0, 3)


def test_permutations_are_uniform_and_independent():
    n, repeats = 4, 24000
    columns = permutations(n, repeats, seeded())
    assert columns.shape == (n, repeats) and columns.dtype == torch.int64
    assert torch.equal(columns.sort(0).values, torch.arange(n).unsqueeze(1).expand(n, repeats))
    assert_uniform(Counter(map(tuple, columns.T.tolist())).values(), math.factorial(n))
    pairs = zip(columns[0, ::2].tolist(), columns[0, 1::2].tolist(), strict=True)
    assert_uniform(Counter(pairs).values(), n * n)


@pytest.mark.parametrize("n", [0, 1, 7])
def test_permutations_of_small_batches(n):
    assert torch.equal(permutations(n, 3).sort(0).values, torch.arange(n).unsqueeze(1).expand(n, 3))
    assert permutations(n, 0).shape == (n, 0)


def test_bernoulli():
    assert not sampling.bernoulli(0.0, (1000,), CPU).any()
    assert sampling.bernoulli(1.0, (1000,), CPU).all()
    share = sampling.bernoulli(0.3, (20000,), CPU, seeded()).float().mean()
    assert abs(share - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 20000)


def test_generator_decides_every_draw():
    def draws(seed):
        g = seeded(seed)
        phi = sampling.dirichlet(6, 3, 0.5, CPU, g)
        return [phi, permutations(6, 2, g), sampling.bernoulli(0.5, (64,), CPU, g),
                nested_boxes(phi, (32, 24), g), squares(6, 5, (32, 24), g)]

    torch.manual_seed(0)
    first = draws(1)
    torch.manual_seed(99)
    assert all(map(torch.equal, first, draws(1)))
    assert not any(map(torch.equal, first, draws(2)))


# ---------------------------------------------------------------- stick breaking and boxes

def slow_sides(phi, size):
    """Eq. 3-4 for one sample, one number at a time."""
    height, width = size
    sides, left = [], 1.0
    for share in phi[:-1]:
        v = min(share / left, 1.0) if left > 1e-12 else 1.0
        left *= 1 - v
        height, width = round(height * math.sqrt(1 - v)), round(width * math.sqrt(1 - v))
        sides.append((height, width))
    return sides


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_nested_sides_against_a_loop(alpha):
    phi = sampling.dirichlet(500, 4, alpha, CPU, seeded()).double()
    phi = phi / phi.sum(1, keepdim=True)
    sides = nested_sides(phi, (32, 47))
    assert (sides[:, 0] == torch.tensor([32, 47])).all()
    wrong = sum(slow_sides(p, (32, 47)) != [tuple(s) for s in got[1:]]
                for p, got in zip(phi.tolist(), sides.long().tolist(), strict=True))
    assert wrong <= 2  # the loop subtracts close numbers: it may round a tie the other way


def test_nested_sides_round_half_to_even():
    phi = torch.tensor([[0.75, 0.25]])
    assert nested_sides(phi, (5, 7))[0, 1].tolist() == [2, 4]  # 2.5 and 3.5


def test_sides_are_relative_to_the_rounded_box():
    # 6 * sqrt(0.6) = 4.65 -> 5, then 5 * sqrt(0.5) = 3.54 -> 4, where the unrounded 4.65 gives 3.29 -> 3.
    phi = torch.tensor([[0.4, 0.3, 0.3]])
    assert nested_sides(phi, (6, 10))[0].tolist() == [[6, 10], [5, 8], [4, 6]]


def test_nothing_left_of_the_stick():
    phi = torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 0, 1.0], [0.5, 0.5, 0, 0]])
    fractions = stick_fractions(phi)
    assert fractions.tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 1], [0.5, 0, 0]]
    boxes = nested_boxes(phi, (8, 6))
    assert paste_areas(boxes, (8, 6))[:3].tolist() == phi[:3].tolist()


def test_stick_fractions_keep_tiny_shares():
    phi = torch.tensor([[1 - 1e-6, 1e-6 - 1e-12, 1e-12]], dtype=torch.float64)
    torch.testing.assert_close(stick_fractions(phi), torch.tensor([[1e-6, 1e-6]], dtype=torch.float64),
                               rtol=1e-9, atol=0)


@settings(deadline=None, max_examples=60)
@given(n=st.integers(0, 9), k=st.integers(1, 6), height=st.integers(1, 70), width=st.integers(1, 70),
       alpha=st.sampled_from([0.01, 0.2, 1.0, 5.0]), seed=st.integers(0, 2**31))
def test_nested_boxes_are_nested(n, k, height, width, alpha, seed):
    g = seeded(seed)
    boxes = nested_boxes(sampling.dirichlet(n, k, alpha, CPU, g), (height, width), g)
    assert boxes.shape == (n, k - 1, 4) and boxes.dtype == torch.int32
    canvas = torch.tensor([0, 0, height, width], dtype=torch.int32).expand(n, 1, 4)
    chain = torch.cat([canvas, boxes], 1)
    corner, side = chain[..., :2], chain[..., 2:]
    assert (side >= 0).all()
    assert (corner[:, 1:] >= corner[:, :-1]).all()
    assert ((corner + side)[:, 1:] <= (corner + side)[:, :-1]).all()
    shares = paste_areas(boxes, (height, width))
    assert (shares >= 0).all()
    torch.testing.assert_close(shares.sum(1), torch.ones(n), rtol=0, atol=2e-7)


def test_boxes_take_every_position_inside_the_one_before():
    phi = torch.tensor([[0.75, 0.1875, 0.0625]]).expand(24000, 3)  # sides 8 x 12, 4 x 6, 2 x 3
    boxes = nested_boxes(phi, (8, 12), seeded())
    assert (boxes[:, :, 2:] == torch.tensor([[4, 6], [2, 3]])).all()
    assert_uniform(Counter(map(tuple, boxes[:, 0, :2].tolist())).values(), 5 * 7)
    inside = boxes[:, 1, :2] - boxes[:, 0, :2]
    assert_uniform(Counter(map(tuple, inside.tolist())).values(), 3 * 4)


@pytest.mark.parametrize("k", [2, 3, 5])
@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_shares_are_unbiased(k, alpha):
    n = 20000
    phi = sampling.dirichlet(n, k, alpha, CPU, seeded())
    shares = paste_areas(nested_boxes(phi, (64, 64), seeded(1)), (64, 64))
    deviation = math.sqrt((1 / k) * (1 - 1 / k) / (k * alpha + 1) / n)
    assert (shares.mean(0) - 1 / k).abs().max() < 4 * deviation + 1e-3
    assert (shares - phi).abs().max() < 0.08  # sides are whole pixels, and every box rounds again
    assert (shares - phi).mean(0).abs().max() < 1e-3


def test_innermost_boxes_are_often_empty():
    """18 % at K = 5, alpha = 0.2, 32 x 32."""
    phi = sampling.dirichlet(20000, 5, 0.2, CPU, seeded())
    boxes = nested_boxes(phi, (32, 32), seeded(1))
    empty = (boxes[:, -1, 2:].prod(1) == 0).float().mean()
    assert 0.16 < empty < 0.20


@pytest.mark.parametrize("side", [0, 1, 3, 4, 9, 20])
def test_centred_boxes(side):
    height, width = size = (8, 11)
    n = 20000
    boxes = squares(n, side, size, seeded()).long()
    for axis, length in enumerate(size):
        start, extent = boxes[:, axis], boxes[:, 2 + axis]
        assert (start >= 0).all() and (extent >= 0).all() and (start + extent <= length).all()
        # How often each pixel is covered, from every centre being equally likely.
        expected = np.zeros(length)
        for centre in range(length):
            first = centre - side // 2
            expected[max(first, 0):max(first + side, 0)] += 1 / length
        pixels = torch.arange(length)
        covered = ((pixels >= start.unsqueeze(1)) & (pixels < (start + extent).unsqueeze(1))).double().mean(0)
        assert np.abs(covered.numpy() - expected).max() < 4 * 0.5 / math.sqrt(n)
    if side == 1:
        assert_uniform(Counter(map(tuple, boxes[:, :2].tolist())).values(), height * width)
