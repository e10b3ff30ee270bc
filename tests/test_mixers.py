"""The mixers: what a plan does to images and labels, the identity, compilation, pickling, choices."""

import copy
import math
import pickle
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from support import seeded
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

import fastmix
from fastmix import (
    Compose,
    CutMix,
    Cutout,
    DCutMix,
    DMixup,
    Mixup,
    RandomChoice,
    RLMix,
    RMix,
    SoftTarget,
    sampling,
)
from fastmix.functional import saliency_mask
from fastmix.plans import mix_targets

MAKERS = {
    "Mixup": lambda **k: Mixup(0.4, **k),
    "Mixup-elem": lambda **k: Mixup(0.4, mode="elem", **k),
    "CutMix": lambda **k: CutMix(1.0, **k),
    "CutMix-elem": lambda **k: CutMix(1.0, mode="elem", **k),
    "DMixup": lambda **k: DMixup(3, 0.5, **k),
    "DMixup-1": lambda **k: DMixup(1, 0.5, **k),
    "DCutMix": lambda **k: DCutMix(4, 0.5, **k),
    "DCutMix-1": lambda **k: DCutMix(1, 0.5, **k),
    "RMix": lambda **k: RMix(**k),
    "RMix-flip": lambda **k: RMix(0.2, patches=(2,), pairing="flip", **k),
    "RLMix": lambda **k: RLMix(patches=4, **k),
    "Cutout": lambda **k: Cutout(5, **k),
    "Cutout-batch": lambda **k: Cutout(5, mode="batch", **k),
    "Compose": lambda **k: Compose(RMix(), Mixup(1.0, mode="elem"), DCutMix(3, 0.5), **k),
}
MIXING = [name for name in MAKERS if not name.startswith("Cutout")]
ELEM = [name for name in MAKERS if name.endswith("-elem") or name == "Cutout"]
SINGLE = ("DMixup-1", "DCutMix-1")  # K = 1 changes nothing
every = pytest.mark.parametrize("name", MAKERS)

pytestmark = pytest.mark.usefixtures("one_thread")


def batch(n=6, c=3, size=(8, 12), dtype=torch.float32, seed=0):
    """Images, labels that differ, saliency."""
    g = seeded(seed)
    x = torch.randn(n, c, *size, generator=g).to(dtype)
    return x, torch.arange(n), torch.randn(n, c, *size, generator=g).to(dtype)


def same(a, b):
    """Nested tuples of tensors are equal bit for bit."""
    if isinstance(a, tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a is b is None or torch.equal(a, b)


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
    monkeypatch.setattr(sampling, "dirichlet", lambda *_: torch.stack([1 - one_minus_lam, one_minus_lam], 1))
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


# ---------------------------------------------------------------- R-Mix

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


# ---------------------------------------------------------------- groups

def test_compose_applies_in_order():
    torch.manual_seed(0)
    x, y, saliency = batch()
    mixer = Compose(RMix(), Cutout(4), CutMix(1.0))
    assert mixer.needs_saliency
    plan = mixer.plan(x, saliency)
    by_hand, target = x, y
    for member in plan.plans:
        by_hand, target = member.apply(by_hand), member.target(target)
    assert same(plan.mix(x, y), (by_hand, target))
    assert same((plan.apply(x), plan.target(y)), (by_hand, target))


def test_disabled_member_stays_disabled_in_a_group():
    torch.manual_seed(0)
    x, y, _ = batch()
    member = Mixup(1.0)
    for group in (Compose(member), RandomChoice([member])):
        member.enabled = False
        assert torch.equal(group(x, y)[0], x)
        member.enabled = True
        assert not torch.equal(group(x, y)[0], x)
        group.enabled = False
        assert torch.equal(group(x, y)[0], x)


@pytest.mark.parametrize("weights", [None, [3, 0, 1]])
def test_random_choice_frequencies(weights):
    members = [Mixup(1.0), CutMix(1.0), DMixup(3, 1.0)]
    choice = RandomChoice(members, weights, generator=seeded())
    drawn = [members.index(choice.choose()) for _ in range(3000)]
    share = torch.bincount(torch.tensor(drawn), minlength=3) / 3000
    expected = torch.tensor(weights or [1, 1, 1], dtype=torch.float32)
    torch.testing.assert_close(share, expected / expected.sum(), rtol=0, atol=4 * 0.5 / math.sqrt(3000))
    assert (share[expected == 0] == 0).all()


def test_random_choice_plans_a_member():
    torch.manual_seed(0)
    x, y, saliency = batch()
    choice = RandomChoice([Mixup(1.0), CutMix(1.0), RMix()])
    assert choice.needs_saliency and not RandomChoice([Mixup(1.0)]).needs_saliency
    kinds = {type(choice.plan(x, saliency)).__name__ for _ in range(30)}
    assert kinds == {"BlendPlan", "PastePlan", "PatchPlan"}
    mixed, target = choice(x, y, saliency)
    assert mixed.shape == x.shape and target.index.shape == (6, 2)


def test_random_choice_repeats_under_manual_seed():
    choice = RandomChoice([Mixup(1.0), CutMix(1.0)])
    drawn = []
    for _ in range(2):
        torch.manual_seed(7)
        drawn.append([type(choice.choose()).__name__ for _ in range(20)])
    assert drawn[0] == drawn[1] and len(set(drawn[0])) == 2


# ---------------------------------------------------------------- compilation

@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()


@every
@pytest.mark.parametrize("prob", [1.0, 0.5])
def test_fullgraph_compile_and_toggling_recompiles_nothing(name, prob):
    torch.manual_seed(0)
    x, y, saliency = batch()
    mixer = MAKERS[name](prob=prob)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(mixer, fullgraph=True, backend=counter)
    draws = [compiled(x, y, saliency)[0] for _ in range(12)]
    if name not in SINGLE:
        assert any(not torch.equal(draws[0], draw) for draw in draws[1:])  # no draw is baked into the graph
    for _ in range(2):
        mixer.enabled = False
        mixed, target = compiled(x, y, saliency)
        assert torch.equal(mixed, x) and torch.equal(target.dense(6), torch.eye(6))
        mixer.enabled = True
        if name not in SINGLE:
            assert any(not torch.equal(compiled(x, y, saliency)[0], x) for _ in range(12))
    assert counter.frame_count == 1


@every
def test_compiled_apply_equals_eager(name):
    torch.manual_seed(0)
    x, y, saliency = batch()
    plan = MAKERS[name]().plan(x, saliency)
    compiled = torch.compile(lambda plan, x, y: plan.mix(x, y), fullgraph=True, backend="aot_eager")
    assert same(compiled(plan, x, y), plan.mix(x, y))


@pytest.mark.parametrize("name", ["CutMix-elem", "DCutMix", "RMix"])
def test_inductor(name):
    """The whole mixer through code generation; plans stay valid and repeat under manual_seed."""
    x, y, saliency = batch()
    mixer = MAKERS[name](prob=0.5)
    compiled = torch.compile(lambda x, y, s: (plan := mixer.plan(x, s), *plan.mix(x, y)), fullgraph=True)
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append([compiled(x, y, saliency) for _ in range(8)])
    assert same(tuple(results[0]), tuple(results[1]))
    for plan, mixed, target in results[0]:
        eager = plan.mix(x, y)
        torch.testing.assert_close(mixed, eager[0])
        torch.testing.assert_close(target.dense(6), eager[1].dense(6))
        columns = plan.index[:, 1:] if "elem" not in name else plan.index[:, :1]
        assert torch.equal(columns.sort(0).values, torch.arange(6).unsqueeze(1).expand_as(columns))
    assert any(not torch.equal(results[0][0][1], mixed) for _, mixed, _ in results[0][1:])


def test_compiled_members_of_a_random_choice():
    x, y, _ = batch()
    choice = RandomChoice([Mixup(1.0), CutMix(1.0)])
    steps = {member: torch.compile(member, fullgraph=True, backend="aot_eager") for member in choice.mixers}
    for _ in range(4):
        assert steps[choice.choose()](x, y)[0].shape == x.shape
    whole = torch.compile(choice, backend="aot_eager")  # breaks at the choice, and works
    assert whole(x, y)[0].shape == x.shape
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="draws on the host"):
        torch.compile(choice, backend="aot_eager", fullgraph=True)(x, y)


def test_the_flag_follows_the_images():
    mixer = Mixup(1.0)
    mixer.enabled = False
    plan = mixer.plan(torch.empty(4, 3, device="meta"))
    assert plan.weight.device.type == "meta"
    assert not mixer.enabled
    plan = mixer.plan(torch.zeros(4, 3))
    assert plan.weight.tolist() == [[1, 0]] * 4
    assert mixer.state_dict() == {}
    assert not copy.deepcopy(mixer).enabled


# ---------------------------------------------------------------- errors

@pytest.mark.parametrize(("make", "words"), [
    (lambda: Mixup(0.0), "Mixup: alpha is 0.0"),
    (lambda: CutMix(float("nan")), "CutMix: alpha is nan"),
    (lambda: DMixup(0, 1.0), "DMixup: k is 0"),
    (lambda: DCutMix(3, -1.0), "DCutMix: alpha is -1.0"),
    (lambda: Mixup(1.0, prob=1.5), "Mixup: prob is 1.5"),
    (lambda: CutMix(1.0, mode="pair"), "CutMix: mode is 'pair'"),
    (lambda: RMix(patches=()), r"RMix: patches is \(\)"),
    (lambda: RMix(levels=0), "RMix: levels is 0"),
    (lambda: RMix(pairing="none"), "RMix: pairing is 'none'"),
    (lambda: Cutout(-1), "Cutout: length is -1"),
    (lambda: Compose(), "Compose: mixers is empty"),
    (lambda: Compose(Mixup(1.0), RMix()), r"Compose: mixers\[1\], RMix, needs the saliency"),
    (lambda: RandomChoice([Mixup(1.0)], [1, 2]), "RandomChoice: weights has 2 entries, want 1"),
    (lambda: RandomChoice([Mixup(1.0)], [0]), "RandomChoice: weights is"),
])
def test_bad_arguments(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_bad_calls():
    x, y, saliency = batch(6, 3, (8, 12))
    with pytest.raises(TypeError, match=r"Compose: mixers\[0\] is int"):
        Compose(3)
    with pytest.raises(ValueError, match=r"RMix: saliency is None, want the gradient.*input_saliency"):
        RMix()(x, y)
    with pytest.raises(ValueError, match="Compose: saliency is None"):
        Compose(RMix())(x, y)
    with pytest.raises(ValueError, match="RMix: saliency has shape"):
        RMix()(x, y, saliency[:, :1])
    with pytest.raises(ValueError, match=r"RMix: x has images of 8 x 12, want sides divisible by 8, .*\(2, 8\)"):
        RMix(patches=(2, 8))(x, y, saliency)
    with pytest.raises(ValueError, match="CutMix: x has shape"):
        CutMix(1.0)(x[0], y)
    with pytest.raises(ValueError, match="Mixup: x has shape"):
        Mixup(1.0)(x.new_zeros(()), y)
    with pytest.raises(TypeError, match="Mixup: x is list"):
        Mixup(1.0)([1], y)
    plan = CutMix(1.0).plan(x)
    with pytest.raises(ValueError, match=r"PastePlan.target: y has 5 rows, want 6"):
        plan.target(y[:5])
    with pytest.raises(TypeError, match=r"PastePlan.target: y has dtype int32"):
        plan.target(y.int())
    with pytest.raises(ValueError, match=r"PastePlan.target: y has shape"):
        plan.target(torch.eye(6))
    with pytest.raises(ValueError, match="Cutout"):
        Cutout(2).plan(x).apply(x[:5])
    with pytest.raises(TypeError, match="paste: x has dtype uint8"):
        plan.apply(x.byte())


def test_import_leaves_dynamo_alone():
    """It takes 2 s to import: torch.compiler.disable as a decorator would pull it in."""
    code = "import sys, fastmix; assert 'torch._dynamo' not in sys.modules"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_public_names():
    for name in ("Compose", "CutMix", "Cutout", "DCutMix", "DMixup", "Mixup", "RMix", "RandomChoice"):
        assert name in fastmix.__all__ and issubclass(getattr(fastmix, name), torch.nn.Module)
