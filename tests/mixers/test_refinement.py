"""Refined data augmentation: the phases, their switch under torch.compile, the risks on clean and augmented data."""

import math

import pytest
import torch
from helpers.mixing import MAKERS, batch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import fastmix.functional as F
from fastmix import ManifoldMixup, Mixup, Refinement, RMix, SoftTarget, risk_gap
from fastmix.refinement import RiskGap

pytestmark = pytest.mark.usefixtures("one_thread")


def sgd(**kwargs):
    groups = [{"params": [nn.Parameter(torch.zeros(2))], "lr": 0.3}, {"params": [nn.Parameter(torch.zeros(2))]}]
    return torch.optim.SGD(groups, **({"lr": 0.1} | kwargs))


@pytest.mark.parametrize("refine_epochs", [0, 1, 3])
def test_phases_by_epoch(refine_epochs):
    refinement, mixer, optimizer = Refinement(5, refine_epochs, 0.002), Mixup(1.0), sgd()
    seen = []
    for epoch in range(1, 6):
        refining = refinement.begin(epoch, mixer, optimizer)
        assert refining is refinement.refining is (not mixer.enabled)
        seen.append((refining, [group["lr"] for group in optimizer.param_groups]))
    assert seen == [(False, [0.3, 0.1])] * (5 - refine_epochs) + [(True, [0.002, 0.002])] * refine_epochs
    assert refinement.first == 6 - refine_epochs
    assert not refinement.begin(1, mixer) and mixer.enabled  # the phase is that of the epoch, not a state
    assert refinement.state_dict() == {}


def test_rate_of_the_last_stage_is_kept():
    optimizer, refinement = sgd(), Refinement(4, 2)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1], gamma=0.1)
    rates = []
    for epoch in range(1, 5):
        refining = refinement.begin(epoch, None, optimizer)
        rates.append(optimizer.param_groups[1]["lr"])
        optimizer.step()
        if not refining:
            scheduler.step()
    assert rates == pytest.approx([0.1, 0.01, 0.01, 0.01], rel=1e-12)


def test_a_rate_on_the_device_is_written_in_place():
    rate = torch.tensor(0.1)
    parameter = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([parameter], lr=rate)
    Refinement(2, 1, 0.25).begin(2, None, optimizer)
    assert optimizer.param_groups[0]["lr"] is rate and rate.item() == 0.25


@pytest.mark.parametrize(("arguments", "words"), [
    ((5, 5), "refine_epochs is 5, want less than epochs, 5"), ((5, -1), "refine_epochs is -1"),
    ((5, 1, 0.0), "lr is 0.0"), ((5, 1, math.inf), "lr is inf"),
])
def test_bad_arguments(arguments, words):
    with pytest.raises(ValueError, match=f"Refinement: {words}"):
        Refinement(*arguments)
    with pytest.raises(TypeError, match="Refinement: epochs is '5', want a whole number"):
        Refinement("5", 2)
    for epoch in (0, 6):
        with pytest.raises(ValueError, match=f"Refinement: epoch is {epoch}, want 1 to 5"):
            Refinement(5, 1).begin(epoch)


def test_smoothing_ends_with_the_augmentation():
    refinement, y = Refinement(2, 1), torch.tensor([1, 0])
    soft = SoftTarget(torch.tensor([[0, 1], [2, 2]]), torch.tensor([[0.3, 0.7], [0.5, 0.5]]))
    for target in (y, soft):
        plain = SoftTarget.from_labels(y) if target is y else soft
        refinement.begin(1)
        torch.testing.assert_close(refinement.smooth(target, 0.2, 4).dense(4), 0.8 * plain.dense(4) + 0.05)
        refinement.begin(2)
        assert torch.equal(refinement.smooth(target, 0.2, 4).dense(4), plain.dense(4))


@pytest.mark.parametrize("name", MAKERS)
def test_a_compiled_step_is_not_compiled_again(name):
    torch._dynamo.reset()
    torch.manual_seed(0)
    x, y, saliency = batch()
    mixer, refinement, counter = MAKERS[name](), Refinement(4, 2), CompileCounterWithBackend("aot_eager")
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 12, 6))

    def step(x, y, saliency):
        mixed, target = mixer(x, y, saliency)
        target = refinement.smooth(target, 0.1, 6)
        return mixed, target, F.soft_cross_entropy(model(mixed), target)

    compiled = torch.compile(step, fullgraph=True, backend=counter)
    plain = nn.functional.cross_entropy(model(x), y)
    for epoch in (1, 2, 3, 4, 1):
        refining = refinement.begin(epoch, mixer)
        mixed, target, loss = compiled(x, y, saliency)
        assert torch.equal(mixed, x) or not refining
        assert torch.equal(target.dense(6), torch.eye(6)) is refining
        assert torch.isclose(loss, plain).item() or not refining
    assert counter.frame_count == 1


def test_a_disabled_mixer_asks_for_no_saliency():
    x, y, _ = batch()
    mixer = RMix()
    Refinement(2, 1).begin(2, mixer)
    assert torch.equal(mixer(x, y)[0], x)


# ---------------------------------------------------------------- risk_gap

class Fixed(nn.Module):
    """Logits (a, 0) where a is the image's first pixel: losses can be written down."""

    def forward(self, x):
        assert not self.training
        a = x[:, 0, 0, 0]
        return torch.stack([a, torch.zeros_like(a)], 1)


def softplus(a):
    return math.log1p(math.exp(a))


def test_risks_of_a_hand_made_model():
    x = torch.tensor([2.0, -1.0, 0.5]).view(3, 1, 1, 1)
    y = torch.tensor([0, 1, 1])
    clean = (softplus(-2.0) + softplus(-1.0) + softplus(0.5)) / 3

    class Halves(Mixup):  # every image with the next, half and half
        def plan(self, x, saliency=None):
            rows = torch.arange(len(x))
            return super().plan(x)._replace(index=torch.stack([rows, rows.roll(-1)], 1),
                                            weight=torch.full((len(x), 2), 0.5))

    def mixed(a, b, p):
        """-(p log s(z) + (1-p) log s(-z)), z the mean of a and b, p the share of class 0."""
        z = (a + b) / 2
        return p * softplus(-z) + (1 - p) * softplus(z)

    augmented = (mixed(2.0, -1.0, 0.5) + mixed(-1.0, 0.5, 0.0) + mixed(0.5, 2.0, 0.5)) / 3
    model = Fixed().train()
    for loader in ([(x, y)], [(x, y), (x, y)]):
        got = risk_gap(model, loader, Halves(1.0))
        assert got == pytest.approx((clean, augmented), rel=1e-6) and got.gap == pytest.approx(augmented - clean)
    assert model.training
    uneven = [(x[:1], y[:1]), (x[1:], y[1:])]  # the mean is over samples, not over batches
    assert risk_gap(model, uneven, None) == pytest.approx((clean, clean), rel=1e-6)
    off = Halves(1.0)
    assert all(map(math.isnan, risk_gap(model, [], off)))


def test_risk_of_hidden_features_and_of_methods_with_saliency():
    torch.manual_seed(0)
    x, y, _ = batch()
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6))
    model[2].eval()  # frozen by the caller: comes back as it was
    before = {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(5)
    got = risk_gap(model, [(x, y)], ManifoldMixup(1.0, ["1"]))
    assert [module.training for module in model] == [True, True, False, True, True]
    torch.manual_seed(5)
    mixer = ManifoldMixup(1.0, ["1"])
    plan = mixer.plan(x)
    model.eval()
    with torch.no_grad():
        hidden = F.blend(model[:2](x), plan.index, plan.weight)
        want = F.soft_cross_entropy(model[2:](hidden), plan.target(y))
        clean = nn.functional.cross_entropy(model(x), y)
    assert got == pytest.approx((clean.item(), want.item()), rel=1e-6)

    seen = []
    mixer = RMix()
    forward = mixer.forward
    mixer.forward = lambda x, y, saliency, view: (seen.append(saliency), forward(x, y, saliency, view))[1]
    assert isinstance(risk_gap(model, [(x, y)], mixer), RiskGap) and seen[0].shape == x.shape
    mixer.enabled = False
    assert risk_gap(model, [(x, y)], mixer).gap == pytest.approx(0, abs=1e-7) and seen[1] is None
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
