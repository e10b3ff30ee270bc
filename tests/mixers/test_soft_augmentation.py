"""Soft Augmentation: the equations, the laws of the draws, sigma and the switch without recompiling."""

import copy
import math
import pickle

import pytest
import torch
from helpers.support import LAYOUTS, same_bits, seeded
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch._dynamo.testing import CompileCounterWithBackend

import fastmix
import fastmix.functional as F
from fastmix import Compose, Mixup, SoftCrop, SoftNoise, SoftResizedCrop, SoftTarget, SoftTargetKL
from fastmix.functional import confidence, pair_iou, visibility
from fastmix.mixers import sampling
from fastmix.mixers.soft import CropPlan

MAKERS = {
    "SoftCrop": lambda **k: SoftCrop(7, **k),
    "SoftCrop-random": lambda **k: SoftCrop(7, fill="random", **k),
    "SoftResizedCrop": lambda **k: SoftResizedCrop(7, (8, 12), **k),
    "SoftResizedCrop-random": lambda **k: SoftResizedCrop(7, (5, 3), fill="random", **k),
    "SoftNoise": lambda **k: SoftNoise(7, **k),
}
SAME_SIZE = [name for name in MAKERS if name != "SoftResizedCrop-random"]
every = pytest.mark.parametrize("name", MAKERS)

pytestmark = pytest.mark.usefixtures("one_thread")


def batch(n=6, c=3, size=(8, 12), dtype=torch.float32, seed=0):
    return torch.randn(n, c, *size, generator=seeded(seed)).to(dtype), torch.arange(n)


def equal(a, b):
    """Nested tuples are equal bit for bit."""
    if isinstance(a, tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


# ---------------------------------------------------------------- equations

@given(h=st.integers(1, 40), w=st.integers(1, 40), seed=st.integers(0, 2**31))
def test_visibility_counts_the_pixels_that_a_crop_shows(h, w, seed):
    g = seeded(seed)
    shift = torch.stack([torch.randint(-h - 3, h + 4, (5,), generator=g),
                         torch.randint(-w - 3, w + 4, (5,), generator=g)], 1)
    seen = F.crop(torch.ones(5, 1, h, w), shift).sum((1, 2, 3)) / (h * w)
    torch.testing.assert_close(visibility(shift, (h, w)), seen)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 0.5])
@pytest.mark.parametrize("chance", [0.0, 0.01, 0.1, 1.0])
def test_confidence_is_equation_7(k, chance):
    v = torch.linspace(0, 1, 101, dtype=torch.float64)
    p = confidence(v, k, chance)
    want = [1 - (1 - chance) * (1 - value) ** k for value in v.tolist()]
    torch.testing.assert_close(p, torch.tensor(want, dtype=torch.float64))
    assert p[-1] == 1 and p[0] == pytest.approx(chance) and (p.diff() >= 0).all()


def test_confidence_of_the_paper_s_figure_1():
    """The standard crop's least visibility, shifts of 4 in 32 pixels, is 77 %."""
    v = visibility(torch.tensor([[4, -4], [0, 0], [16, 16]]), (32, 32))
    assert v.tolist() == [0.765625, 1.0, 0.25]
    assert confidence(v, 2, 0.01)[2].item() == pytest.approx(1 - 0.99 * 0.75**2)


def test_soft_crop_is_its_equation():
    x, y = batch(64, 3, (32, 32))
    augment = SoftCrop(100, fill=0.25)
    torch.manual_seed(3)
    plan = augment.plan(x)
    torch.manual_seed(3)
    images, target = augment(x, y)
    p = plan.confidence
    assert same_bits(images, F.crop(x, plan.shift, fill=0.25)) and torch.equal(target.base, plan.base)
    torch.testing.assert_close(target.confidence(), p, rtol=2e-7, atol=0)  # (p - base) + base
    v = (32 - plan.shift[:, 0].abs()) * (32 - plan.shift[:, 1].abs()) / 1024
    torch.testing.assert_close(p, 1 - 0.99 * (1 - v) ** 2)
    want = SoftTarget.from_confidence(y, p, 100)
    assert torch.equal(target.index, want.index)
    for got, expected in ((target.weight, want.weight), (target.base, want.base)):  # the operator rounds 1 - p once
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(target.dense(100).gather(1, y.view(-1, 1)).squeeze(1), p)


def test_soft_resized_crop_is_its_equation():
    x, y = batch(200, 1, (20, 30))
    augment = SoftResizedCrop(10, (11, 7), k=3, chance=0.2)
    torch.manual_seed(3)
    plan = augment.plan(x)
    torch.manual_seed(3)
    images, target = augment(x, y)
    p = plan.confidence
    assert same_bits(images, F.resized_crop(x, plan.boxes, (11, 7)))
    torch.testing.assert_close(target.confidence(), p, rtol=2e-7, atol=0)
    image = torch.tensor([0.0, 0, 20, 30]).expand(200, 4)
    iou = pair_iou(plan.boxes, image)  # |A and B| / |A or B|, and A or B = A + B - A and B
    shared = iou * (plan.boxes[:, 2:].prod(1) + 600) / (1 + iou)
    torch.testing.assert_close(p, 1 - 0.8 * (1 - shared / 600) ** 3, rtol=1e-4, atol=1e-5)
    assert equal(target, SoftTarget.from_confidence(y, p, 10))


def test_soft_noise_is_its_equation():
    x, y = batch(50)
    augment = SoftNoise(10, sigma=0.4, noise_sigma=0.7)
    plan = augment.plan(x)
    a = plan.amount / 0.7
    torch.testing.assert_close(plan.apply(x), x + plan.amount.view(-1, 1, 1, 1) * plan.noise)
    torch.testing.assert_close(plan.confidence, 1 - 0.9 * (1 - (1 - a.abs() / 1.2).clamp_min(0)))
    assert equal(plan.target(y), SoftTarget.from_confidence(y, plan.confidence, 10))
    augment.sigma = 0.4 / 1000  # labels harden as the noise fades
    assert (augment.plan(x).confidence > 0.99).all()


def test_one_class():
    x, y = batch(4)[0], torch.zeros(4, dtype=torch.long)
    _, target = SoftCrop(1)(x, y)
    p = target.confidence()
    assert torch.equal(target.dense(1).squeeze(1), p) and (p == 1).all()


# ---------------------------------------------------------------- laws

def chi_square(values, probabilities):
    """p-value of counted whole numbers against probabilities {value: p}."""
    counts = {int(v): int(c) for v, c in zip(*values.unique(return_counts=True), strict=True)}
    assert set(counts) <= set(probabilities)
    kept = [v for v, q in probabilities.items() if q * len(values) >= 5]
    observed = [counts.get(v, 0) for v in kept]
    expected = [probabilities[v] * len(values) for v in kept]
    scale = sum(observed) / sum(expected)
    return stats.chisquare(observed, [e * scale for e in expected]).pvalue


@pytest.mark.parametrize("sigma,size", [(0.3, (32, 32)), (0.05, (32, 32)), (2.0, (5, 9)), (0.375, (12, 32))])
def test_shifts_have_the_law_of_redrawn_and_truncated_normals(sigma, size):
    shift = SoftCrop(10, sigma=sigma).plan(torch.empty(60000, 1, *size)).shift
    spread = sigma * max(size)
    for axis, side in enumerate(size):
        inside = stats.norm.cdf(side, scale=spread) - stats.norm.cdf(-side, scale=spread)
        law = {t: (stats.norm.cdf(t + 1, scale=spread) - stats.norm.cdf(t, scale=spread)) / inside
               for t in range(1, side)}
        law |= {-t: q for t, q in law.items()}
        law[0] = (stats.norm.cdf(1, scale=spread) - stats.norm.cdf(-1, scale=spread)) / inside
        assert shift[:, axis].abs().max() < side
        assert chi_square(shift[:, axis], law) > 1e-3
    assert abs(torch.corrcoef(shift.T.double())[0, 1]) < 0.02


def test_redrawing_by_a_loop_gives_the_same_law():
    """What the closed form stands for: draw until it lies inside."""
    drawn = torch.randn(400000, generator=seeded(1)) * 9.6
    drawn = drawn[drawn.abs() < 6].trunc()[:60000]
    ours = SoftCrop(10, sigma=0.3).plan(torch.empty(60000, 1, 6, 32)).shift[:, 0]
    assert len(drawn) == 60000 and stats.ks_2samp(drawn.numpy(), ours.float().numpy()).pvalue > 1e-3


def test_truncated_normal():
    one = torch.ones(1, 1, dtype=torch.float64)
    for sigma, limit in ((1.0, 0.5), (1.0, 3.0), (0.1, 100.0)):
        t = sampling.truncated_normal(50000, sigma * one, limit * one, seeded(2)).squeeze(1)
        assert t.abs().max() <= limit
        assert stats.kstest(t.numpy(), stats.truncnorm(-limit / sigma, limit / sigma, scale=sigma).cdf).pvalue > 1e-3
    for sigma, limit in ((0.0, 3.0), (1.0, 0.0), (0.0, 0.0)):
        assert (sampling.truncated_normal(9, sigma * one, limit * one) == 0).all()


@pytest.mark.parametrize("min_size", [None, 9])
def test_windows_have_the_law_of_b_3(min_size):
    size, sigma = (24, 32), 0.3
    boxes = SoftResizedCrop(10, 8, sigma=sigma, min_size=min_size).plan(torch.empty(60000, 1, *size)).boxes.double()
    for axis, side in enumerate(size):
        least = side / 2 if min_size is None else min_size
        start, length = boxes[:, axis], boxes[:, 2 + axis]
        assert (length > least - 1e-4).all() and (length <= side).all()
        assert abs((length == side).double().mean() - 0.5) < 0.01  # rectified: half of all windows are whole
        lost = (side - length)[length < side - 1e-5]
        law = stats.truncnorm(0, 1 / sigma, scale=sigma * (side - least))
        assert stats.kstest(lost.numpy(), law.cdf).pvalue > 1e-3
        offset = start + length / 2 - side / 2
        relative = offset / (sigma * (side + length))  # a unit normal, cut at 1 / (2 sigma)
        assert stats.kstest(relative.numpy(), stats.truncnorm(-0.5 / sigma, 0.5 / sigma).cdf).pvalue > 1e-3
        assert (start < side).all() and (start + length > 0).all()


def test_noise_is_normal():
    plan = SoftNoise(10, sigma=0.2, noise_sigma=0.5).plan(torch.empty(20000, 1, 2, 3))
    assert stats.kstest((plan.amount / 0.5).numpy(), stats.norm(scale=0.2).cdf).pvalue > 1e-3
    assert stats.kstest(plan.noise.flatten().numpy(), "norm").pvalue > 1e-3


def test_random_fill_is_a_faint_colour_per_image():
    x = torch.zeros(5000, 3, 4, 4)
    plan = SoftCrop(10, fill="random").plan(x)
    assert plan.fill.shape == (5000, 3)
    assert stats.kstest(plan.fill.flatten().numpy(), stats.norm(scale=0.01).cdf).pvalue > 1e-3
    shown = plan.apply(x + 9)
    background = torch.where(shown == 9, plan.fill[:, :, None, None], shown)
    assert same_bits(background, plan.fill[:, :, None, None].expand_as(shown).contiguous())


# ---------------------------------------------------------------- plans and switches

@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_plans_repeat_pickle_and_keep_the_format(name, dtype, layout):
    x, y = batch(dtype=dtype)
    x = LAYOUTS[layout](x)
    augment = MAKERS[name]()
    plan = augment.plan(x)
    first = plan.mix(x, y)
    assert first[0].dtype == dtype and first[1].weight.dtype == torch.float32
    assert first[0].is_contiguous(memory_format=getattr(torch, {"contiguous": "contiguous_format"}.get(layout, layout)))
    assert equal(first, plan.mix(x, y)) and equal(first, pickle.loads(pickle.dumps(plan)).mix(x, y))
    assert equal(first, plan.to("cpu").mix(x, y)) and equal(first, (plan.apply(x), plan.target(y)))
    assert plan.confidence.shape == (6,) and plan.confidence.dtype == torch.float32
    assert not equal(augment.plan(x).mix(x, y)[1], first[1])


@every
def test_a_generator_repeats_and_leaves_torch_s_own_alone(name):
    x, y = batch()
    runs = []
    for _ in range(2):
        before = torch.get_rng_state()
        runs.append(MAKERS[name](generator=seeded(5))(x, y))
        assert torch.equal(before, torch.get_rng_state())
    assert equal(*runs)


@pytest.mark.parametrize("name", SAME_SIZE)
def test_switched_off_is_the_identity(name):
    x, y = batch()
    never, off = MAKERS[name](prob=0.0), MAKERS[name]()
    off.enabled = False
    for augment in (never, off):
        images, target = augment(x, y)
        assert same_bits(images, x) and (target.confidence() == 1).all()
        assert torch.equal(target.dense(7), SoftTarget.from_labels(y).dense(7))


@pytest.mark.parametrize("name", SAME_SIZE)
def test_prob_is_drawn_per_image(name):
    x, y = batch(2000, 1)
    images, target = MAKERS[name](prob=0.3, **({"sigma": 1.0} if "Crop" in name else {}))(x, y % 7)
    p = target.confidence()
    kept = (images == x).flatten(1).all(1)
    assert 0.6 < kept.double().mean() < 0.8 and (p[kept] == 1).all() and (p[~kept] < 1).all()


@every
def test_sigma_and_the_switch_recompile_nothing(name):
    x, y = batch()
    augment = MAKERS[name]()
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    step = torch.compile(lambda a, b: augment(a, b), fullgraph=True, backend=counter)
    assert (step(x, y)[1].confidence() < 1).any()
    augment.sigma = augment.sigma / 1000
    assert (step(x, y)[1].confidence() > 0.99).all()
    augment.sigma = augment.sigma * 1000
    assert (step(x, y)[1].confidence() < 0.99).any()
    augment.enabled = False
    assert (step(x, y)[1].confidence() == 1).all()
    assert counter.frame_count == 1


@pytest.mark.parametrize("name", ["SoftCrop-random", "SoftResizedCrop", "SoftNoise"])
def test_inductor_draws_anew_and_within_the_law(name):
    x, y = batch(64)
    augment = MAKERS[name]()
    torch._dynamo.reset()
    step = torch.compile(lambda a, b: augment(a, b), fullgraph=True)
    a, b = step(x, y)[1].confidence(), step(x, y)[1].confidence()
    assert not torch.equal(a, b) and a.min() > 1 / 7 - 1e-6 and a.max() <= 1 and a.std() > 0.02


@every
@pytest.mark.parametrize("n", [0, 1, 5])
def test_batches_of_any_size(name, n):
    x, y = batch(n)
    images, target = MAKERS[name]()(x, y)
    assert len(images) == len(target.index) == len(target.confidence()) == n
    images, *_ = MAKERS[name]()(torch.randn(2, 3, 1, 1), torch.zeros(2, dtype=torch.long))
    assert images.isfinite().all()


@every
def test_a_copy_has_a_sigma_of_its_own(name):
    augment = MAKERS[name]()
    other = copy.deepcopy(augment)
    other.sigma = 0.0
    x, y = batch()
    assert augment.sigma > 0 and (augment(x, y)[1].confidence() < 1).any()
    assert (other(x, y)[1].confidence() == 1).all()
    assert augment.state_dict() == {} and augment.to(torch.float32).sigma == augment.sigma


def test_soft_targets_of_an_earlier_mixture_are_softened():
    """Linear in the target: t becomes (p - q) t + q, whose rows still sum to one."""
    x, y = batch(8)
    torch.manual_seed(1)
    both = Compose(Mixup(1.0, mode="elem"), SoftCrop(8))
    plan = both.plan(x)
    images, target = plan.mix(x, y)
    blend, crop = plan.plans
    assert same_bits(images, crop.apply(blend.apply(x)))
    p, t = crop.confidence.unsqueeze(1), blend.target(y).dense(8)
    torch.testing.assert_close(target.dense(8), (p - (1 - p) / 7) * t + (1 - p) / 7)
    torch.testing.assert_close(target.dense(8).sum(1), torch.ones(8))
    smoothed = SoftTarget.from_labels(y).smooth(0.1, 8)
    dense = crop.target(smoothed).dense(8)
    torch.testing.assert_close(dense, (p - (1 - p) / 7) * smoothed.dense(8) + (1 - p) / 7)


def test_the_loss_takes_what_the_augmentation_gives():
    """All four weightings of the KL against their equations, in float64."""
    x, y = batch(6)
    _, target = SoftCrop(7)(x, y)
    p = target.confidence()
    z = torch.randn(6, 7, dtype=torch.float64)
    t, log_q = target.dense(7).double(), z.log_softmax(1)
    kl = (torch.special.xlogy(t, t) - t * log_q).sum(1)
    hard = -log_q.gather(1, y.unsqueeze(1)).squeeze(1)
    want = {"sample": (p * kl).mean(), "none": kl.mean(), "weight": (p * hard).mean(),
            "batch_mean": p.mean() * kl.mean()}
    for weighting, value in want.items():
        for got in (F.soft_target_kl(z, y, p, weighting=weighting), F.soft_target_kl(z, target, weighting=weighting),
                    SoftTargetKL(weighting=weighting)(z, target)):
            torch.testing.assert_close(got.double(), value.double(), rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- errors

X = torch.zeros(3, 1, 4, 4)


@pytest.mark.parametrize("call,error,text", [
    (lambda: SoftCrop(0), ValueError, "SoftCrop: num_classes is 0, want at least 1"),
    (lambda: SoftCrop(10, sigma=-1), ValueError, "SoftCrop: sigma is -1, want a finite number >= 0"),
    (lambda: SoftCrop(10, k=0), ValueError, "SoftCrop: k is 0, want a finite number above 0"),
    (lambda: SoftCrop(10, chance=2), ValueError, r"SoftCrop: chance is 2, want a value in \[0, 1\]"),
    (lambda: SoftCrop(10, fill="grey"), ValueError, "SoftCrop: fill is 'grey', want one of 'random'"),
    (lambda: SoftCrop(10, prob=1.5), ValueError, r"SoftCrop: prob is 1.5, want a value in \[0, 1\]"),
    (lambda: SoftCrop(10).plan(X[0]), ValueError, r"SoftCrop: x has shape \(1, 4, 4\), want images"),
    (lambda: setattr(SoftCrop(10), "sigma", math.inf), ValueError, "SoftCrop: sigma is inf, want a finite"),
    (lambda: SoftCrop(10)(X, torch.zeros(2, dtype=torch.long)), ValueError, "CropPlan.target: y has 2 rows, want 3"),
    (lambda: SoftResizedCrop(10, 0), ValueError, "SoftResizedCrop: size is 0, want at least 1"),
    (lambda: SoftResizedCrop(10, 4, min_size=5).plan(X), ValueError, "SoftResizedCrop: min_size is 5, want at most 4"),
    (lambda: SoftNoise(10, sigma=0), ValueError, "SoftNoise: sigma is 0, want a finite number above 0"),
    (lambda: SoftNoise(10).plan(X).apply(X[:2]), ValueError, r"NoisePlan.apply: plan.noise has shape \(3, 1, 4, 4\)"),
    (lambda: visibility(torch.zeros(3, 3), (4, 4)), ValueError, r"visibility: shift has shape \(3, 3\), want \(3, 2\)"),
])
def test_errors(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_a_plan_can_be_made_by_hand():
    x, y = batch(2, 1, (3, 3))
    plan = CropPlan(torch.tensor([[1, 0], [0, 0]]), torch.tensor([0.4, 1.0]), torch.tensor([0.1, 0.0]), 0.0)
    assert same_bits(plan.apply(x)[1], x[1]) and plan.target(y).dense(7)[0].tolist() == pytest.approx([0.4] + [0.1] * 6)
    assert fastmix.SoftCrop is SoftCrop
