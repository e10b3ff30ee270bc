"""isda_logits, isda_consistency, ISDALoss and the schedule against the equations in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import DTYPES, compiled, dtype_id, embedded, same_bits, within_budget

import fastmix
import fastmix.functional as F
from fastmix import ISDACovariance, ISDALoss, isda_strength
from fastmix.ops.covariance import KINDS, cov_shape

SIZES = [(0, 3, 4), (1, 1, 1), (9, 7, 37), (20, 50, 6), (33, 21, 130)]


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


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pixels", [(), (3, 5)], ids=["rows", "pixels"])
def test_logits_and_gradients(variant, kind, pixels, dtype):
    for n, j, a in SIZES:
        z, w, cov, y = make(kind, n, j, a, dtype, pixels)
        z, g = embedded(z, 7), torch.randn_like(z)
        def call(z, w, cov=cov, y=y):
            return F.isda_logits(z, w, cov, y, 0.7, kind=kind)

        ours = with_grads(call, z, w, g)
        with fastmix.backend("reference"):
            stock = with_grads(call, z, w, g)
        truth = with_grads(lambda z, w, cov=cov, y=y: oracle_logits(z, w, cov.double(), y, 0.7, kind), z.double(),
                           w.double(), g.double())
        for name, got, want, torchs in zip(("logits", "d logits", "d weight"), ours, truth, stock, strict=True):
            # The weight's gradient is a sum over classes and samples in another order than stock's.
            within_budget(got, want, torchs, f"{name} {n}x{j}x{a}", units=8)
        assert same_bits(ours[1], g)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("kind", KINDS)
def test_own_column_and_ignored_rows_are_the_logits(variant, kind, dtype):
    z, w, cov, y = make(kind, 9, 7, 37, dtype)
    z[3] = -0.0
    out = F.isda_logits(z, w, cov, y, 2.5, kind=kind)
    own = y.clamp(min=0).unsqueeze(1)
    assert same_bits(out.gather(1, own), z.gather(1, own))
    assert same_bits(out[1], z[1])
    zp, w, cov, yp = make(kind, 4, 7, 37, dtype, (2, 3))
    out = F.isda_logits(zp, w, cov, yp, 2.5, kind=kind)
    own = yp.clamp(min=0).unsqueeze(1)
    assert same_bits(out.gather(1, own), zp.gather(1, own)) and same_bits(out[1], zp[1])
    broken = torch.full_like(cov, float("inf"))
    if kind != "identity":
        out = F.isda_logits(z, w, broken, y, 1.0, kind=kind)
        assert same_bits(out.gather(1, y.clamp(min=0).unsqueeze(1)), z.gather(1, y.clamp(min=0).unsqueeze(1)))


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("kind", KINDS)
def test_consistency_and_gradients(variant, kind, dtype):
    for n, j, a in [(0, 3, 4), (1, 1, 1), (9, 7, 37), (20, 18, 6), (6, 21, 60)]:
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


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(variant, kind):
    z, w, cov, y = make(kind, 5, 3, 4, torch.float64)
    z.requires_grad_()
    w.requires_grad_()
    assert torch.autograd.gradcheck(lambda z, w: F.isda_logits(z, w, cov, y, 0.7, kind=kind), (z, w))
    assert torch.autograd.gradgradcheck(lambda z, w: F.isda_logits(z, w, cov, y, 0.7, kind=kind), (z, w))
    for reduction in ("mean", "none"):
        def loss(z, w, reduction=reduction):
            return F.isda_consistency(z, w, cov, 0.7, kind=kind, reduction=reduction)
        # p is a constant of the loss, which finite differences do not know: only the weight.
        assert torch.autograd.gradcheck(lambda w: loss(z.detach(), w), w)


@pytest.mark.parametrize("kind", ["full", "diag", "shared"])
def test_covariance_that_requires_grad(variant, kind):
    """Meta-learning the covariance: first and second derivatives."""
    z, w, cov, y = make(kind, 5, 3, 4, torch.float64)
    for t in (z, w, cov):
        t.requires_grad_()

    def symmetric(cov):
        return cov if kind == "diag" else (cov + cov.mT) / 2

    def call(z, w, cov):
        return F.isda_logits(z, w, symmetric(cov), y, 0.7, kind=kind)

    assert torch.autograd.gradcheck(call, (z, w, cov))
    assert torch.autograd.gradgradcheck(call, (z, w, cov))
    pixel_z, _, _, pixel_y = make(kind, 2, 3, 4, torch.float64, (2, 2))
    assert torch.autograd.gradcheck(lambda cov: F.isda_logits(pixel_z, w, symmetric(cov), pixel_y, 0.7, kind=kind), cov)
    assert torch.autograd.gradcheck(
        lambda w, cov: F.isda_consistency(z.detach(), w, symmetric(cov), 0.7, kind=kind), (w, cov))
    # One step on the covariance through a step on the weight, as meta-learning does.
    inner, = torch.autograd.grad(F.soft_cross_entropy(call(z, w, cov), y), w, create_graph=True)
    outer, = torch.autograd.grad((w - 0.1 * inner).square().sum(), cov)
    assert outer.abs().sum() > 0


def test_no_gradient_to_a_covariance_that_wants_none(variant):
    z, w, cov, y = make("full", 5, 3, 4)
    out = F.isda_logits(z.requires_grad_(), w, cov, y, 0.7)
    out.sum().backward()
    assert z.grad is not None and w.grad is None and cov.grad is None
    w.requires_grad_()
    F.isda_logits(z.detach(), w, cov, y, 0.7).sum().backward()
    assert w.grad is not None


@pytest.mark.parametrize("layout", ["channels_last", "sliced", "expanded", "transposed"])
def test_strides(variant, layout):
    z, w, cov, y = make("diag", 6, 5, 9, pixels=(4, 3))
    other = {"channels_last": lambda: z.contiguous(memory_format=torch.channels_last),
             "sliced": lambda: torch.nn.functional.pad(z, (1, 2, 2, 1))[:, :, 2:6, 1:4],
             "expanded": lambda: z[:1].expand_as(z),
             "transposed": lambda: z.transpose(2, 3).contiguous().transpose(2, 3)}[layout]()
    g = torch.randn_like(z)
    ours = with_grads(lambda z, w: F.isda_logits(z, w, cov, y, 0.5), other, w, g)
    dense = with_grads(lambda z, w: F.isda_logits(z, w, cov, y, 0.5), other.contiguous(), w, g)
    torch.testing.assert_close(ours, dense)
    if layout == "channels_last":
        assert F.isda_logits(other, w, cov, y, 0.5).is_contiguous(memory_format=torch.channels_last)
    rows = torch.randn(6, 10)[:, ::2]
    turned_w = w.t().contiguous().t()
    torch.testing.assert_close(F.isda_logits(rows, turned_w, cov, y[:, 0, 0], 0.5),
                               F.isda_logits(rows.contiguous(), w, cov, y[:, 0, 0], 0.5))
    torch.testing.assert_close(F.isda_consistency(rows, turned_w, cov, 0.5),
                               F.isda_consistency(rows.contiguous(), w, cov, 0.5))


@pytest.mark.parametrize("kind", KINDS)
def test_repeatable_and_independent_of_threads(variant, kind, threads):
    if variant == "reference":
        pytest.skip("torch's own products split by threads")
    z, w, cov, y = make(kind, 200, 40, 70)
    zp, _, _, yp = make(kind, 3, 40, 70, pixels=(20, 20))
    results = []
    for count in (1, 2, 2):
        threads(count)
        results.append([*with_grads(lambda z, w: F.isda_logits(z, w, cov, y, 0.5, kind=kind), z, w, z),
                        *with_grads(lambda z, w: F.isda_logits(z, w, cov, yp, 0.5, kind=kind), zp, w, zp),
                        *with_grads(lambda z, w: F.isda_consistency(z, w, cov, 0.5, kind=kind), z, w, torch.ones(()))])
    for other in results[1:]:
        assert all(same_bits(a, b) for a, b in zip(other, results[0], strict=True))


@given(n=st.integers(0, 9), j=st.integers(1, 30), a=st.integers(1, 60), kind=st.sampled_from(tuple(KINDS)),
       strength=st.floats(0, 3))
def test_any_shape(n, j, a, kind, strength):
    z, w, cov, y = make(kind, n, j, a, torch.float64)
    g = torch.randn_like(z)
    ours = with_grads(lambda z, w: F.isda_logits(z, w, cov, y, strength, kind=kind), z, w, g)
    truth = with_grads(lambda z, w: oracle_logits(z, w, cov, y, strength, kind), z, w, g)
    torch.testing.assert_close(ours, truth, rtol=1e-9, atol=1e-9)


def test_strength_as_a_tensor(variant):
    z, w, cov, y = make("full", 5, 3, 4)
    for dtype in (torch.float32, torch.float64):
        strength = torch.tensor(0.25, dtype=dtype)
        torch.testing.assert_close(F.isda_logits(z, w, cov, y, strength), F.isda_logits(z, w, cov, y, 0.25))
        torch.testing.assert_close(F.isda_consistency(z, w, cov, strength), F.isda_consistency(z, w, cov, 0.25))
    assert torch.equal(F.isda_logits(z, w, cov, y, 0.0), z)


def test_strength_zero_is_plain_consistency(variant):
    z, w, cov, _ = make("full", 6, 5, 4)
    entropy = -(torch.softmax(z, 1) * torch.log_softmax(z, 1)).sum(1)
    torch.testing.assert_close(F.isda_consistency(z, w, cov, 0.0, reduction="none"), entropy)


# ---------------------------------------------------------------- the bound

def test_bound_holds_and_tightens():
    """Against 100,000 Monte-Carlo samples of Eq. 5; the gap closes with the strength."""
    generator = torch.Generator().manual_seed(3)
    for kind in KINDS:
        a, w, b = torch.randn(4, 6), torch.randn(5, 6) * 0.5, torch.randn(5)
        y = torch.tensor([0, 3, 4, 4])
        cov = make_cov(kind, 5, 6)
        gaps = []
        for strength in (2.0, 0.5, 0.1):
            bound = F.soft_cross_entropy(F.isda_logits(a @ w.T + b, w, cov, y, strength, kind=kind), y)
            sampled = F.explicit_sda(a, w, b, cov, y, strength, 100_000, generator, kind=kind)
            gaps.append((bound - sampled).item())
        assert gaps[0] > gaps[1] > gaps[2] > -2e-3, (kind, gaps)
        assert gaps[2] < gaps[0] / 4


def test_consistency_bounds_the_sampled_loss():
    """Eq. 15 against Eq. 14: the expected cross-entropy between prediction and augmented prediction."""
    generator = torch.Generator().manual_seed(4)
    a, w, b, cov = torch.randn(3, 6), torch.randn(5, 6) * 0.5, torch.randn(5), make_cov("full", 5, 6)
    z = a @ w.T + b
    p, pseudo = torch.softmax(z, 1), z.argmax(1)
    gaps = []
    for strength in (1.0, 0.2):
        noise = torch.randn(100_000, 3, 6, generator=generator)
        root = torch.linalg.cholesky(cov[pseudo])
        augmented = a + strength ** 0.5 * (root @ noise.unsqueeze(-1)).squeeze(-1)
        sampled = -(p * torch.log_softmax(augmented @ w.T + b, 2)).sum(2).mean(0)
        gaps.append(F.isda_consistency(z, w, cov, strength, reduction="none") - sampled)
    assert (gaps[0] > gaps[1]).all() and (gaps[1] > -2e-3).all()


def test_explicit_sda_is_differentiable_and_repeatable():
    a, w = torch.randn(4, 6, requires_grad=True), torch.randn(5, 6, requires_grad=True)
    y, cov = torch.tensor([0, 1, 2, 4]), make_cov("full", 5, 6)
    losses = [F.explicit_sda(a, w, None, cov, y, 0.5, 10, torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*losses)
    losses[0].backward()
    assert a.grad.abs().sum() > 0 and w.grad.abs().sum() > 0
    plain = torch.nn.functional.cross_entropy(a @ w.T, y)
    torch.testing.assert_close(F.explicit_sda(a, w, None, cov, y, 0.0, 3), plain)


# ---------------------------------------------------------------- compile, opcheck

@pytest.mark.parametrize("kind", ["full", "diag", "shared", "identity"])
def test_compiled_equals_eager(variant, kind):
    z, w, cov, y = make(kind, 4, 3, 5)
    zp, _, _, yp = make(kind, 2, 3, 5, pixels=(2, 2))

    def step(z, w, zp):
        return (F.isda_logits(z * 2, w, cov, y, 0.5, kind=kind).square().sum()
                + F.isda_logits(zp, w, cov, yp, 0.5, kind=kind).square().sum()
                + F.isda_consistency(z, w, cov, 0.5, kind=kind)
                + F.isda_consistency(z, w, cov, 0.5, kind=kind, reduction="none").square().sum())

    leaves = [t.requires_grad_() for t in (z, w, zp)]
    want = torch.autograd.grad(step(*leaves), leaves)
    got = torch.autograd.grad(compiled(step)(*leaves), leaves)
    torch.testing.assert_close(got, want)


def test_compiled_loss_updates_and_trains():
    torch.manual_seed(1)
    fc, x, y = torch.nn.Linear(6, 4), torch.randn(9, 6), torch.randint(0, 4, (9,))
    for kind in ("full", "diag"):
        eager, traced = ISDALoss(6, 4, kind), ISDALoss(6, 4, kind)

        def step(criterion, x, y, strength):
            loss, logits = criterion(x, fc, y, strength)
            return loss + 0 * logits.sum()

        fast = compiled(lambda x, y, s, traced=traced, step=step: step(traced, x, y, s))
        for strength in (torch.tensor(0.5), torch.tensor(0.9)):
            a = torch.autograd.grad(step(eager, x, y, strength), fc.weight)
            b = torch.autograd.grad(fast(x, y, strength), fc.weight)
            torch.testing.assert_close(a, b)
        torch.testing.assert_close(traced.state_dict(), eager.state_dict())


def test_opcheck():
    ops = torch.ops.fastmix
    for kind, code in KINDS.items():
        for grad in (False, True):
            z, w, cov, y = make(kind, 4, 3, 5)
            zp, _, _, yp = make(kind, 4, 3, 5, pixels=(6,))
            for logits, labels in ((z, y), (zp, yp)):
                torch.library.opcheck(ops.isda_logits.default,
                                      (logits.requires_grad_(grad), w.requires_grad_(grad), cov, labels,
                                       torch.tensor(0.5), 1.0, -100, code))
                torch.library.opcheck(ops.isda_logits_backward.default,
                                      (logits.detach(), w.detach(), cov, labels, None, 0.5, -100, code))
            for reduction in (0, 1):
                torch.library.opcheck(ops.isda_consistency.default,
                                      (z.detach().requires_grad_(grad), w, cov, None, None, 0.5, reduction, code,
                                       grad and reduction > 0))


def test_registered_operator_equals_the_eager_way():
    z, w, cov, y = make("full", 6, 5, 8)
    z.requires_grad_()
    w.requires_grad_()
    out = torch.ops.fastmix.isda_logits.default(z, w, cov, y, None, 0.5, -100, 0)
    ours = torch.autograd.grad(F.isda_logits(z, w, cov, y, 0.5).square().sum(), (z, w))
    theirs = torch.autograd.grad(out.square().sum(), (z, w))
    assert all(same_bits(a, b) for a, b in zip(ours, theirs, strict=True))


def test_functorch_grad():
    z, w, cov, y = make("diag", 6, 5, 8)
    got = torch.func.grad(lambda w: F.isda_logits(z, w, cov, y, 0.5).square().sum())(w)
    want, = torch.autograd.grad(F.isda_logits(z, w.requires_grad_(), cov, y, 0.5).square().sum(), w)
    torch.testing.assert_close(got, want)


# ---------------------------------------------------------------- ISDALoss, isda_strength

@pytest.mark.parametrize("kind", KINDS)
def test_loss_is_update_augment_cross_entropy(variant, kind):
    criterion, fc = ISDALoss(6, 4, kind), torch.nn.Linear(6, 4)
    by_hand = ISDACovariance(4, 6, kind)
    for strength in (0.0, 0.3, 0.6):
        x, y = torch.randn(9, 6, requires_grad=True), torch.randint(0, 4, (9,))
        y[2] = -100
        loss, logits = criterion(x, fc, y, strength)
        by_hand.update(x, y, -100)
        assert same_bits(criterion.covariance.cov, by_hand.cov)
        torch.testing.assert_close(logits, fc(x))
        augmented = F.isda_logits(fc(x), fc.weight, by_hand.cov, y, strength, kind=kind)
        want = torch.nn.functional.cross_entropy(augmented, y)
        torch.testing.assert_close(loss, want)
        parts = (x, fc.weight, fc.bias)
        torch.testing.assert_close(torch.autograd.grad(loss, parts, retain_graph=True),
                                   torch.autograd.grad(want, parts, retain_graph=True))
    before = criterion.covariance.cov.clone()
    criterion(x, fc, y, 0.5, update=False)
    criterion.eval()(x, fc, y, 0.5)
    assert same_bits(criterion.covariance.cov, before)
    all_ignored, _ = criterion.train()(x, fc, torch.full_like(y, -100), 0.5)
    assert all_ignored.item() == 0 and same_bits(criterion.covariance.cov, before)


def test_loss_on_pixels(variant):
    criterion, fc = ISDALoss(6, 4, "diag", ignore_index=255), torch.nn.Conv2d(6, 4, 1)
    x, y = torch.randn(2, 6, 5, 3), torch.randint(0, 4, (2, 5, 3))
    y[:, 0] = 255
    loss, logits = criterion(x, fc, y, 0.5)
    augmented = F.isda_logits(fc(x), fc.weight.flatten(1), criterion.covariance.cov, y, 0.5, ignore_index=255)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(augmented, y, ignore_index=255))
    assert criterion.covariance.count.sum() == (y != 255).sum() and logits.shape == (2, 4, 5, 3)
    loss.backward()
    assert fc.weight.grad.abs().sum() > 0
    nothing, _ = criterion(x, fc, torch.full_like(y, 255), 0.5)
    assert nothing.item() == 0


def test_loss_under_autocast_keeps_its_state():
    criterion, fc = ISDALoss(6, 4), torch.nn.Linear(6, 4)
    with torch.autocast("cpu", torch.bfloat16):
        loss, logits = criterion(torch.randn(9, 6), fc, torch.randint(0, 4, (9,)), 0.5)
    assert logits.dtype == torch.bfloat16 and loss.dtype == torch.float32
    loss.backward()
    assert fc.weight.grad.dtype == criterion.covariance.cov.dtype == torch.float32


def test_strength():
    assert [isda_strength(0.5, step, 100) for step in (0, 50, 100)] == [0, 0.25, 0.5]
    assert isda_strength(0.5, 3, 100, schedule="constant") == 0.5
    step = torch.tensor(50)
    assert isda_strength(0.5, step, 100).item() == 0.25
    assert isda_strength(0.5, step, 100, schedule="constant").item() == 0.5
    with pytest.raises(ValueError, match="total is 0"):
        isda_strength(0.5, 0, 0)
    with pytest.raises(ValueError, match="schedule is 'cosine'"):
        isda_strength(0.5, 0, 1, schedule="cosine")


# ---------------------------------------------------------------- memory, errors

def peak_bytes(fn):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        fn()
    level = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            level += event.nbytes()
            most = max(most, level)
    return most


def test_pixels_need_little_memory():
    """4 x 19 x 97 x 97 with A = 512: the augmented logits and nothing else of their size."""
    z, w, cov, y = make("diag", 4, 19, 512, pixels=(97, 97))
    z.requires_grad_()
    w.requires_grad_()
    g = torch.ones_like(z)

    def step():
        torch.autograd.grad(F.isda_logits(z, w, cov, y, 0.5), (z, w), g)

    step()
    assert peak_bytes(step) < 2 * z.nbytes


def test_labels_out_of_range(variant):
    z, w, cov, y = make("diag", 4, 3, 5)
    for bad in (3, -1, 2 ** 40):
        y[2] = bad
        with pytest.raises(IndexError, match=rf"isda_logits: labels of row 2 is {bad}.*\[0, 3\)"):
            F.isda_logits(z, w, cov, y, 0.5)
    with pytest.raises(IndexError, match="explicit_sda: labels"):
        F.explicit_sda(torch.randn(4, 5), w, None, cov, y, 0.5, 2)


@pytest.mark.parametrize("call,error,text", [
    (lambda z, w, c, y: F.isda_logits(z[:, :2], w, c, y, 1), ValueError, r"logits has shape \(4, 2\), want \(N, 3\)"),
    (lambda z, w, c, y: F.isda_logits(z.long(), w, c, y, 1), TypeError, "logits has dtype int64"),
    (lambda z, w, c, y: F.isda_logits(z, w[0], c, y, 1), ValueError, "weight has shape"),
    (lambda z, w, c, y: F.isda_logits(z, w[:, :4], c, y, 1), ValueError, r"cov has shape \(3, 5\), want one of"),
    (lambda z, w, c, y: F.isda_logits(z, w, c.bfloat16(), y, 1), TypeError, "cov has dtype bfloat16"),
    (lambda z, w, c, y: F.isda_logits(z, w, c, y[:2], 1), ValueError, r"labels has shape \(2,\), want \(4,\)"),
    (lambda z, w, c, y: F.isda_logits(z, w, c, y.int(), 1), TypeError, "labels has dtype int32"),
    (lambda z, w, c, y: F.isda_logits(z, w, c, y.to("meta"), 1), ValueError, "labels is on meta, want cpu"),
    (lambda z, w, c, y: F.isda_logits(z, w, c.to("meta"), y, 1), ValueError, "cov is on meta, want cpu"),
    (lambda z, w, c, y: F.isda_logits(z, w, c, y, torch.ones(1)), ValueError, r"strength has shape \(1,\)"),
    (lambda z, w, c, y: F.isda_logits(z, w, c, y, torch.ones((), requires_grad=True)), ValueError, "strength requires"),
    (lambda z, w, c, y: F.isda_logits(z, w, None, y, 1, kind="full"), ValueError, "cov is None"),
    (lambda z, w, c, y: F.isda_logits(z, w, c, y, 1, kind="full"), ValueError, r"want \(3, 5, 5\) for kind 'full'"),
    (lambda z, w, c, y: F.isda_consistency(z.unsqueeze(2), w, c, 1), ValueError, "logits has shape"),
    (lambda z, w, c, y: F.isda_consistency(z, w, c, 1, reduction="avg"), ValueError, "reduction is 'avg'"),
    (lambda z, w, c, y: F.explicit_sda(z, w, None, c, y, 1, 0), ValueError, r"weight has shape|samples is 0"),
    (lambda z, w, c, y: ISDALoss(5, 4)(torch.randn(4, 5), torch.nn.Linear(5, 3), y, 1), ValueError, "fc.weight has"),
])
def test_errors(call, error, text):
    z, w, cov, y = make("diag", 4, 3, 5)
    y[1] = 0
    with pytest.raises(error, match=text):
        call(z, w, cov, y)
