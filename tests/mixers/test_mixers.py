"""The mixers: what a plan does to images and labels, the identity, modes, distributions."""

import math
import pickle

import pytest
import torch
from helpers.mixing import ELEM, MAKERS, MIXING, SINGLE, batch, every, given_shares, same
from helpers.support import seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode

import fastmix
from fastmix import Compose, CutMix, Cutout, DMixup, Mixup, SoftCrop, SoftTarget
from fastmix.mixers.plans import mix_targets

pytestmark = pytest.mark.usefixtures("one_thread")

# ---------------------------------------------------------------- images and labels agree

@pytest.mark.parametrize("name", MIXING)
@settings(deadline=None, max_examples=25)
@given(n=st.integers(0, 7), height=st.integers(1, 6), width=st.integers(1, 6), seed=st.integers(0, 2**31))
def test_labels_are_the_shares_of_the_pixels(name, n, height, width, seed):
    """Image n is 1 in channel n and 0 elsewhere: the channel means of a mixture are its soft label."""
    torch.manual_seed(seed)
    size = (4 * height, 4 * width) if name.startswith(("RMix", "RLMix")) or name == "Compose" else (height, width)
    x = torch.eye(n).view(n, n, 1, 1).expand(n, n, *size)
    mixed, target = MAKERS[name]()(x, torch.arange(n), torch.randn(n, n, *size))
    assert mixed.shape == x.shape and target.weight.dtype == torch.float32
    dense = target.dense(n)
    if name == "Compose":  # a later box need not cover the average of an earlier one's patches
        torch.testing.assert_close(dense.sum(1), torch.ones(n), rtol=0, atol=1e-6)
        return
    torch.testing.assert_close(mixed.mean((2, 3)), dense, rtol=0, atol=1e-6)
    if "CutMix" in name:
        counted = (mixed == 1).sum((2, 3)).float() / (size[0] * size[1])
        torch.testing.assert_close(dense, counted, rtol=0, atol=1.2e-7)


def test_compose_of_uniform_images_has_their_label():
    torch.manual_seed(0)
    mixer = Compose(DMixup(2, 1.0), Mixup(1.0), DMixup(3, 0.5))
    x = torch.eye(5).view(5, 5, 1, 1).expand(5, 5, 4, 4)
    mixed, target = mixer(x, torch.arange(5))
    assert target.index.shape == (5, 2 * 2 * 3)
    torch.testing.assert_close(mixed.mean((2, 3)), target.dense(5))


def test_mixture_of_soft_targets_against_dense_matrices():
    g = seeded()
    y = SoftTarget(torch.randint(0, 7, (5, 3), generator=g), torch.rand(5, 3, generator=g), torch.rand(5, generator=g))
    index = torch.randint(0, 5, (5, 4), generator=g)
    weight = torch.rand(5, 4, generator=g)
    got = mix_targets("test", index, weight, y)
    expected = (weight.unsqueeze(2) * y.dense(7)[index]).sum(1)
    torch.testing.assert_close(got.dense(7), expected)
    assert got.base.shape == (5,)
    assert mix_targets("test", index, weight, y._replace(base=None)).base is None


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_dtype_and_memory_format_are_kept(name, dtype):
    torch.manual_seed(0)
    x, y, saliency = batch(5, dtype=dtype)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        mixed, target = MAKERS[name]()(x.contiguous(memory_format=memory_format), y, saliency)
        assert mixed.dtype == dtype and mixed.shape == x.shape
        assert mixed.is_contiguous(memory_format=memory_format)
        assert target.weight.dtype == torch.float32 and target.index.dtype == torch.int64
        torch.testing.assert_close(target.weight.sum(1), torch.ones(5), rtol=0, atol=1e-6)


@every
@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_small_batches(name, n):
    torch.manual_seed(0)
    x, y, saliency = batch(n)
    mixed, target = MAKERS[name]()(x, y, saliency)
    assert mixed.shape == x.shape and target.index.shape[0] == n
    if n == 1 and not name.startswith("Cutout"):
        torch.testing.assert_close(mixed, x)
        torch.testing.assert_close(target.dense(1), torch.ones(1, 1))


# ---------------------------------------------------------------- plans

@every
def test_plan_is_a_value(name):
    """Applied twice, pickled, moved: the same images. x gives shape and device only."""
    torch.manual_seed(0)
    x, y, saliency = batch()
    mixer = MAKERS[name]()
    plan = mixer.plan(torch.full_like(x, float("nan")), saliency)
    first = plan.apply(x), plan.target(y)
    assert same(first, plan.mix(x, y))
    assert same(plan, pickle.loads(pickle.dumps(plan)))
    assert same(first, plan.to("cpu").mix(x, y))
    assert all(t.device.type == "meta" for t in torch.utils._pytree.tree_leaves(plan.to("meta")))
    leaves, spec = torch.utils._pytree.tree_flatten(plan)
    assert all(isinstance(leaf, torch.Tensor) for leaf in leaves)
    assert same(plan, torch.utils._pytree.tree_unflatten(leaves, spec))


@every
def test_generator_and_pickled_mixer_repeat_the_draws(name):
    if name == "Compose":
        pytest.skip("its members hold their own generators")
    x, _, saliency = batch()
    mixer = MAKERS[name](generator=seeded(5), prob=0.7)
    copies = [pickle.loads(pickle.dumps(mixer)), MAKERS[name](generator=seeded(5), prob=0.7)]
    plans = [mixer.plan(x, saliency) for _ in range(4)]
    torch.manual_seed(1)
    for other in copies:
        assert all(same(plan, other.plan(x, saliency)) for plan in plans)
    if name not in SINGLE:
        assert not all(same(plans[0], plan) for plan in plans[1:])


class _HostReads(TorchDispatchMode):
    """Fails on operators that wait for the device or bake a host value into a graph."""

    forbidden = ("_local_scalar_dense", "nonzero", "lift_fresh", "masked_select", "is_nonzero", "unique", "equal.")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not any(name in str(func) for name in self.forbidden), func
        return func(*args, **(kwargs or {}))


@every
@pytest.mark.parametrize("prob", [1.0, 0.5])
def test_plans_never_read_the_device(name, prob):
    x, _, saliency = batch()
    mixer = MAKERS[name](prob=prob)
    with _HostReads():
        mixer.plan(x, saliency)  # apply and target check their indices on the CPU


def test_host_reads_are_seen():
    with pytest.raises(AssertionError, match="_local_scalar_dense"), _HostReads():
        torch.ones(()).item()


# ---------------------------------------------------------------- identity, prob, modes

@every
@pytest.mark.parametrize("how", ["prob", "enabled", "both"])
def test_identity(name, how):
    torch.manual_seed(0)
    x, y, saliency = batch()
    mixer = MAKERS[name](prob=1.0 if how == "enabled" else 0.0)
    mixer.enabled = how == "prob"
    mixed, target = mixer(x, y, saliency)
    assert torch.equal(mixed, x)
    assert torch.equal(target.dense(6), torch.eye(6))
    assert torch.equal(target.hard(), y)
    if how == "enabled":
        mixer.enabled = True
        assert mixer.enabled
        if name not in SINGLE:
            assert not torch.equal(mixer(x, y, saliency)[0], x)


@pytest.mark.parametrize("name", ELEM)
def test_prob_per_sample(name):
    torch.manual_seed(0)
    n, prob = 4000, 0.3
    x = torch.ones(n, 1, 8, 8)
    plan = MAKERS[name](prob=prob).plan(x)
    if name == "Cutout":
        mixes = plan.boxes[:, 0, 2] > 0
    else:
        mixes = plan.index[:, 1] != torch.arange(n)
        assert torch.equal(plan.index[mixes, 1].sort().values, plan.index[mixes, 1].unique())
        assert (plan.weight[~mixes][:, 0] == 1).sum() >= (~mixes).sum() - 10  # fixed points of the permutation
    assert abs(mixes.float().mean() - prob) < 4 * math.sqrt(prob * (1 - prob) / n) + 1 / n


@pytest.mark.parametrize("name", ["Mixup", "CutMix", "DMixup", "DCutMix", "RMix", "Compose"])
def test_prob_per_batch(name):
    torch.manual_seed(0)
    x, _, saliency = batch(16, 1, (4, 4))
    mixer = MAKERS[name](prob=0.3)
    own = torch.arange(16).unsqueeze(1)
    mixed = []
    for _ in range(300):
        plan = mixer.plan(x, saliency)
        plan = plan.plans[1] if name == "Compose" else plan
        mixed.append(bool((plan.index != own).any()))
    assert abs(sum(mixed) / 300 - 0.3) < 4 * math.sqrt(0.21 / 300)


@pytest.mark.parametrize("make", [Mixup, CutMix])
def test_batch_mode_draws_once_and_elem_per_sample(make):
    torch.manual_seed(0)
    x = torch.zeros(64, 1, 32, 32)
    one = make(1.0, mode="batch").plan(x)
    many = make(1.0, mode="elem").plan(x)
    assert (one.weight == one.weight[0]).all()
    assert many.weight[:, 0].unique().numel() > 40
    if make is CutMix:
        assert (one.boxes == one.boxes[0]).all()
        assert many.boxes.unique(dim=0).shape[0] > 40
    for plan in (one, many):
        assert torch.equal(plan.index[:, 1].sort().values, torch.arange(64))


@pytest.mark.parametrize("mode", ["batch", "elem"])
def test_lambda_of_mixup_is_beta(mode):
    n, alpha = 4000, 0.5
    g = seeded(3)
    mixer = Mixup(alpha, mode=mode, generator=g)
    if mode == "elem":
        lam = mixer.plan(torch.zeros(n, 1)).weight[:, 0]
    else:
        lam = torch.cat([mixer.plan(torch.zeros(1, 1)).weight[:, 0] for _ in range(n)])
    assert stats.kstest(lam.double().numpy(), stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_cutmix_box_side_and_label(monkeypatch):
    height, width, n = 20, 30, 400
    one_minus_lam = torch.linspace(0, 1, n)
    given_shares(monkeypatch, torch.stack([1 - one_minus_lam, one_minus_lam], 1))
    plan = CutMix(1.0, mode="elem", generator=seeded()).plan(torch.zeros(n, 1, height, width))
    clipped = 0
    for row, share in enumerate(one_minus_lam.tolist()):
        top, left, tall, wide = plan.boxes[row, 0].tolist()
        for start, extent, length in ((top, tall, height), (left, wide, width)):
            side = int(length * math.sqrt(share))
            assert extent == side or (extent < side and (start == 0 or start + extent == length))
            clipped += extent < side
        assert plan.weight[row, 1].item() == pytest.approx(tall * wide / (height * width), abs=1e-7)
    assert n / 4 < clipped < 2 * n


def test_dmixup_permutations_are_independent():
    plan = DMixup(4, 1.0, generator=seeded()).plan(torch.zeros(500, 1))
    assert torch.equal(plan.index[:, 0], torch.arange(500))
    assert torch.equal(plan.index.sort(0).values, torch.arange(500).unsqueeze(1).expand(-1, 4))
    for i in range(4):
        for j in range(i):
            assert (plan.index[:, i] == plan.index[:, j]).sum() < 8  # one is expected


# ---------------------------------------------------------------- Cutout

@pytest.mark.parametrize("mode", ["batch", "elem"])
def test_cutout(mode):
    torch.manual_seed(0)
    x = torch.randn(40, 2, 9, 7)
    x[:, 0, 0, 0] = float("inf")
    plan = Cutout(4, mode=mode).plan(x)
    assert (plan.boxes.unique(dim=0).shape[0] == 1) == (mode == "batch")
    out = plan.apply(x)
    for row, (top, left, tall, wide) in enumerate(plan.boxes[:, 0].tolist()):
        expected = x[row].clone()
        expected[:, top:top + tall, left:left + wide] = 0
        assert torch.equal(out[row], expected)
        assert tall == 4 or top == 0 or top + tall == 9
        assert wide == 4 or left == 0 or left + wide == 7
    soft = SoftTarget(torch.zeros(40, 3, dtype=torch.int64), torch.ones(40, 3), torch.ones(40))
    assert same(plan.target(soft), soft)


def test_cutout_gradient_is_zero_in_the_square():
    x = torch.randn(3, 1, 6, 6, requires_grad=True)
    plan = Cutout(3).plan(x)
    plan.apply(x).sum().backward()
    assert torch.equal(x.grad, plan.apply(torch.ones_like(x)))


def test_public_names():
    for name in ("Compose", "CutMix", "Cutout", "DCutMix", "DMixup", "Mixup", "RMix", "RandomChoice"):
        assert name in fastmix.__all__ and issubclass(getattr(fastmix, name), torch.nn.Module)


def test_a_flag_that_moves_to_the_images_keeps_its_value():
    """From any other device; meta stands in for one."""
    x, y, _ = batch()
    mixer = Mixup(0.4).to("meta")
    mixer.enabled = False
    assert torch.equal(mixer(x, y)[0], x) and mixer._flag.device == x.device
    soft = SoftCrop(10).to("meta")
    soft.sigma = 0.0
    assert torch.equal(soft(x, y)[0], x)
    soft.to("meta").sigma = 0.5
    assert (soft.plan(x).shift != 0).any()
