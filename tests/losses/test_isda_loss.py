"""ISDALoss and the schedule of its strength; that the losses bound what they are to bound."""

import pytest
import torch
from helpers.isda_cases import make_cov
from helpers.support import compiled, same_bits

import fastmix.functional as F
from fastmix import ISDACovariance, ISDALoss, isda_strength
from fastmix.ops.covariance import KINDS

# ---------------------------------------------------------------- ISDALoss, isda_strength

@pytest.mark.operator("covariance", "isda", form_from="kind")
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


@pytest.mark.operator("covariance", "isda", form="full")
def test_a_batch_that_is_not_finite_does_no_lasting_harm(variant):
    """The row is counted and left out; the next batch's loss and the state are those of a clean history."""
    criterion, clean, fc = ISDALoss(6, 4), ISDALoss(6, 4), torch.nn.Linear(6, 4)
    x, y = torch.randn(9, 6), torch.randint(0, 4, (9,))
    bad = x.clone()
    bad[3, 2] = float("nan")
    criterion(bad, fc, y, 0.5)
    clean(x[torch.arange(9) != 3], fc, y[torch.arange(9) != 3], 0.5)
    assert criterion.covariance.skipped == 1 and clean.covariance.skipped == 0
    torch.testing.assert_close(criterion(x, fc, y, 0.5), clean(x, fc, y, 0.5))


@pytest.mark.operator("covariance", "isda", form="diag")
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


def test_logits_that_the_model_has_computed_are_taken():
    torch.manual_seed(0)
    features, y, head = torch.randn(8, 5), torch.arange(8) % 3, torch.nn.Linear(5, 3)
    ours, theirs = ISDALoss(5, 3), ISDALoss(5, 3)
    logits = head(features)
    loss, same = ours(features, head, y, 0.5, logits=logits)
    assert same is logits and torch.equal(loss, theirs(features, head, y, 0.5)[0])


def test_label_smoothing_of_samples_and_pixels():
    torch.manual_seed(0)
    features, y, head = torch.randn(8, 5), torch.arange(8) % 3, torch.nn.Linear(5, 3)
    criterion = ISDALoss(5, 3, label_smoothing=0.2)
    loss, logits = criterion(features, head, y, 0.5)
    augmented = F.isda_logits(logits, head.weight, criterion.covariance.cov, y, 0.5)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(augmented, y, label_smoothing=0.2))
    pixels, labels, head = torch.randn(2, 5, 3, 4), torch.randint(3, (2, 3, 4)), torch.nn.Conv2d(5, 3, 1)
    criterion = ISDALoss(5, 3, "diag", label_smoothing=0.2)
    loss, logits = criterion(pixels, head, labels, 0.5)
    augmented = F.isda_logits(logits, head.weight.flatten(1), criterion.covariance.cov, labels, 0.5, kind="diag")
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(augmented, labels, label_smoothing=0.2))
    with pytest.raises(ValueError, match=r"ISDALoss: label_smoothing is 2, want a value in \[0, 1\]"):
        ISDALoss(5, 3, label_smoothing=2)


def test_consistency_of_unlabelled_samples():
    torch.manual_seed(0)
    features, y, head = torch.randn(8, 5), torch.arange(8) % 3, torch.nn.Linear(5, 3)
    criterion = ISDALoss(5, 3)
    criterion(features, head, y, 0.5)
    logits = head(torch.randn(6, 5))
    want = F.isda_consistency(logits, head.weight, criterion.covariance.cov, 0.5)
    assert torch.equal(criterion.consistency(logits, head, 0.5), want)
    with pytest.raises(ValueError, match=r"fc.weight has shape \(4, 5\), want \(3, 5\)"):
        criterion.consistency(logits, torch.nn.Linear(5, 4), 0.5)
