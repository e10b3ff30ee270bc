"""Each evaluation against hand numbers."""

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("scipy")
pytest.importorskip("matplotlib")
pytest.importorskip("torchmetrics")

from helpers.support import seeded
from torch import nn
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_calibration_error

from fastmix.app import models
from fastmix.app.evaluation import (
    WeightLoss,
    class_activation_maps,
    fgsm,
    filter_normalised,
    grid,
    iou,
    largest_box,
    noise,
    occlude,
    pgd,
    reliability,
    top_eigenvectors,
)
from fastmix.app.evaluation.cam import NoMaps
from fastmix.app.evaluation.surface import steps
from fastmix.app.training.evaluate import BELOW_ONE

pytestmark = pytest.mark.usefixtures("one_thread")


# Calibration

HAND = torch.tensor([[.95, .05], [.92, .08], [.30, .70], [.75, .25], [1.0, 0.0], [.55, .45]])
HAND_LABELS = torch.tensor([0, 1, 1, 1, 0, 0])


def test_reliability_by_hand():
    bins = reliability(HAND, HAND_LABELS)
    assert [b["count"] for b in bins] == [0, 0, 0, 0, 0, 1, 0, 2, 0, 3]
    assert bins[9]["accuracy"] == pytest.approx(2 / 3)
    assert bins[9]["confidence"] == pytest.approx((.95 + .92 + 1) / 3)
    assert (bins[7]["accuracy"], bins[7]["confidence"]) == pytest.approx((0.5, 0.725))
    assert (bins[5]["accuracy"], bins[5]["confidence"]) == pytest.approx((1.0, 0.55))
    by_hand = (3 * abs(2 / 3 - 2.87 / 3) + 2 * 0.225 + 0.45) / 6
    assert sum(b["count"] * abs(b["accuracy"] - b["confidence"]) for b in bins) / 6 == pytest.approx(by_hand)
    ece = multiclass_calibration_error(HAND.clamp(max=BELOW_ONE), HAND_LABELS, 2, n_bins=10)
    assert ece.item() == pytest.approx(by_hand, abs=1e-6)


def test_a_confidence_of_one_belongs_to_the_last_bin():
    """Half right at 0.95 and all right at 1: together 0.75 right at 0.975, an error of 0.225 in one bin."""
    p = torch.tensor([[.95, .05], [.95, .05], [1.0, 0.0], [1.0, 0.0]])
    y = torch.tensor([0, 1, 0, 0])
    ece = multiclass_calibration_error(p.clamp(max=BELOW_ONE), y, 2, n_bins=10)
    assert ece.item() == pytest.approx(0.225, abs=1e-6)


# Occlusion

@pytest.mark.parametrize(("share", "size", "patch"), [
    (0.0, (10, 10), 0), (0.2, (32, 32), 14 * 14), (0.8, (28, 28), 625), (0.4, (10, 20), 6 * 13), (1.0, (9, 9), 81)])
def test_exactly_the_share_is_hidden(share, size, patch):
    x = torch.ones(200, 2, *size)
    hidden, exact = occlude(x, share, seeded())
    assert ((hidden == 0).sum((1, 2, 3)) == 2 * patch).all() and exact == patch / (size[0] * size[1])
    assert torch.equal(hidden[:, 0], hidden[:, 1])
    if 0 < share < 1:
        # A rectangle, anywhere in the image, the corners included.
        rows, columns = (hidden[:, 0] == 0).any(2), (hidden[:, 0] == 0).any(1)
        assert (rows.sum(1) * columns.sum(1) == patch).all()
        assert rows[:, 0].any() and rows[:, -1].any() and columns[:, 0].any() and columns[:, -1].any()
    with pytest.raises(ValueError, match=r"share is 1\.5"):
        occlude(x, 1.5)


# Attacks

class Line(nn.Module):
    """Two classes, logits (0, w . x)."""

    def __init__(self):
        super().__init__()
        self.w = torch.tensor([1.0, -2.0, 0.0, 3.0])

    def forward(self, x):
        z = (x.flatten(1) * self.w.to(x.dtype)).sum(1)
        return torch.stack([torch.zeros_like(z), z], 1)


PIXELS = torch.tensor([[.5, .5, .5, .5], [.01, .99, .2, 1.0]]).view(2, 1, 2, 2)


def test_fgsm_by_hand():
    """The loss of class 1 falls with w . x: every pixel moves against the sign of its weight, inside [0, 1]."""
    e = 8 / 255
    found = fgsm(Line(), PIXELS, torch.tensor([1, 1]))
    want = torch.tensor([[.5 - e, .5 + e, .5, .5 - e], [0, 1, .2, 1 - e]]).view(2, 1, 2, 2)
    assert torch.allclose(found, want, atol=1e-7)
    found = fgsm(Line(), PIXELS, torch.tensor([0, 0]))
    assert torch.allclose(found[0].flatten(), torch.tensor([.5 + e, .5 - e, .5, .5 + e]), atol=1e-7)


def test_a_sure_model_is_attacked_all_the_same():
    """1 - p of the right class is exp(-66) here, and 1 in the arithmetic: the gradient of the loss itself is 0."""
    forward = Line()
    forward.w = forward.w * 30
    x = torch.tensor([.9, .1, .5, .5]).view(1, 1, 2, 2)
    assert F.cross_entropy(forward(x), torch.tensor([1])) == 0
    assert torch.allclose(fgsm(forward, x, torch.tensor([1]), 0.1).flatten(), torch.tensor([.8, .2, .5, .4]))


def test_pgd_by_hand_and_its_bounds():
    y = torch.tensor([1, 1])
    e = 8 / 255
    # Enough steps reach FGSM's corner; one without a random start is FGSM of that step.
    far = pgd(Line(), PIXELS, y, e, step=2 / 255, steps=10, random_start=False)
    assert torch.allclose(far, fgsm(Line(), PIXELS, y, e), atol=1e-6)
    near = pgd(Line(), PIXELS, y, e, step=2 / 255, steps=1, random_start=False)
    assert torch.allclose(near, fgsm(Line(), PIXELS, y, 2 / 255), atol=1e-7)
    start = pgd(Line(), PIXELS, y, e, step=0.0, steps=1, generator=seeded())
    assert (start != PIXELS).any() and torch.equal(start, pgd(Line(), PIXELS, y, e, step=0.0, steps=1,
                                                              generator=seeded()))
    torch.manual_seed(0)
    model = models.build("cnn", 4, (1, 12, 12)).eval()
    x, y = torch.rand(30, 1, 12, 12), torch.arange(30) % 4

    def loss(images):
        return F.cross_entropy(model(images), y).item()

    one, many = fgsm(model, x, y), pgd(model, x, y, steps=10, generator=seeded())
    for found in (one, many, pgd(model, x, y, step=1.0, generator=seeded())):
        assert (found - x).abs().max() <= e + 1e-6 and found.min() >= 0 and found.max() <= 1
        assert not found.requires_grad
    assert loss(x) < loss(one) <= loss(many)
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(fgsm(model, x, y, 0.0), x)


@pytest.mark.parametrize("attack", [fgsm, pgd])
def test_attack_arguments(attack):
    with pytest.raises(ValueError, match=r"y has shape \(1,\)"):
        attack(Line(), PIXELS, torch.tensor([1]))
    with pytest.raises(ValueError, match=r"epsilon is 8"):
        attack(Line(), PIXELS, torch.tensor([1, 1]), 8.0)
    with pytest.raises(TypeError, match="x has dtype uint8"):
        attack(Line(), PIXELS.to(torch.uint8), torch.tensor([1, 1]))


# Loss surface

class Quadratic(WeightLoss):
    """w^T A w / 2 over weights of two shapes, at a given origin."""

    def __init__(self, matrix, origin):
        self.matrix, self.origin = matrix, origin
        self._total = lambda value: value

    def _batch(self, weights, x, y):
        flat = torch.cat([w.reshape(-1) for w in weights])
        return flat @ self.matrix @ flat / 2

    _batches = ((None, None),)


@pytest.fixture
def quadratic():
    basis = torch.linalg.qr(torch.randn(30, 30, dtype=torch.float64, generator=seeded()))[0]
    values = torch.linspace(-1, 1, 30, dtype=torch.float64)
    values[3], values[17] = 5.0, -9.0
    origin = [torch.randn(4, 5, dtype=torch.float64, generator=seeded(1)),
              torch.randn(10, dtype=torch.float64, generator=seeded(2))]
    return Quadratic(basis @ values.diag() @ basis.T, origin), basis


def test_eigenvectors_of_a_known_hessian(quadratic):
    loss, basis = quadratic
    calls = []
    found, vectors = top_eigenvectors(loss, 2, tolerance=1e-10, advance=lambda: calls.append(1))
    assert found == pytest.approx([-9.0, 5.0]) and len(calls) > 2
    for column, vector in zip((17, 3), vectors, strict=True):
        assert [part.shape for part in vector] == [(4, 5), (10,)]
        flat = torch.cat([part.reshape(-1) for part in vector])
        assert flat.norm().item() == pytest.approx(1) and abs(flat @ basis[:, column]).item() == pytest.approx(1)
    with pytest.raises(ValueError, match="count is 30, want 1 to 29"):
        top_eigenvectors(loss, 30)


def test_the_surface_of_a_quadratic(quadratic):
    loss, basis = quadratic
    directions = [[basis[:20, i].reshape(4, 5), basis[20:, i]] for i in (17, 3)]
    calls = []
    found = grid(loss, *directions, span=2.0, points=5, advance=lambda: calls.append(1))
    assert found["steps"] == [-2, -1, 0, 1, 2] and len(calls) == 25
    w = torch.cat([part.reshape(-1) for part in loss.origin])
    for i, a in enumerate(found["steps"]):
        for j, b in enumerate(found["steps"]):
            move = w + a * basis[:, 17] + b * basis[:, 3]
            assert found["loss"][i][j] == pytest.approx((move @ loss.matrix @ move / 2).item())
    assert steps(0.5, 4) == pytest.approx([-0.5, -1 / 6, 1 / 6, 0.5])


def test_hessian_products_of_a_network_are_differences_of_its_gradients():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double().eval()
    x, y = torch.randn(7, 1, 2, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    loss = WeightLoss(model, [(x[:4], y[:4]), (x[4:], y[4:])])
    before = [p.clone() for p in model.parameters()]
    assert loss.at() == pytest.approx(F.cross_entropy(model(x), y).item())
    vector = [torch.randn_like(w) for w in loss.origin]

    def gradient(step):
        with torch.no_grad():
            for p, w, v in zip(model.parameters(), before, vector, strict=True):
                p.copy_(w + step * v)
        return torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))

    product = loss.hessian_product(vector)
    assert all(torch.equal(p, w) and p.grad is None for p, w in zip(model.parameters(), before, strict=True))
    differences = [(a - b) / 2e-5 for a, b in zip(gradient(1e-5), gradient(-1e-5), strict=True)]
    assert all(torch.allclose(p, d, atol=1e-8) for p, d in zip(product, differences, strict=True))


def test_filter_normalised_directions_have_the_filters_lengths():
    weights = [torch.randn(4, 3, 3, 3), torch.randn(5, 7), torch.randn(4)]
    first, second = filter_normalised(weights, seeded()), filter_normalised(weights, seeded(1))
    for w, d in zip(weights[:2], first[:2], strict=True):
        assert torch.allclose(d.flatten(1).norm(dim=1), w.flatten(1).norm(dim=1))
    assert (first[2] == 0).all() and not torch.allclose(first[0], second[0])


def test_noise_on_a_quadratic_raises_the_loss_by_half_the_trace(quadratic):
    """E of (sigma e)^T A (sigma e) / 2 is sigma^2 tr(A) / 2, at the minimum."""
    loss, _ = quadratic
    loss.matrix = torch.eye(30, dtype=torch.float64)
    loss.origin = [torch.zeros_like(w) for w in loss.origin]
    found = noise(loss, [0.0, 0.1, 0.2], draws=300, generator=seeded())
    assert [entry["sigma"] for entry in found] == [0.0, 0.1, 0.2] and set(found[0]["loss"]) == {0.0}
    for entry in found[1:]:
        assert np.mean(entry["loss"]) == pytest.approx(entry["sigma"]**2 * 15, rel=0.05)
    assert np.allclose(np.array(found[2]["loss"]), 4 * np.array(found[1]["loss"]))
    loss.matrix = loss.matrix * float("inf")
    assert noise(loss, [0.1], 1)[0]["loss"] == [None]


# Localisation

@pytest.mark.parametrize("name", ["cnn", "preact-resnet18", "wrn10-1"])
def test_the_mean_of_a_map_is_its_logit(name):
    torch.manual_seed(0)
    model = models.build(name, 5, (2, 16, 16)).eval()
    x = torch.randn(3, 2, 16, 16)
    logits, maps = class_activation_maps(model, x)
    head = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    assert maps.shape[:2] == (3, 5) and maps.shape[2] > 1
    assert torch.allclose(maps.mean((2, 3)) + head.bias, logits, atol=1e-4)
    assert torch.allclose(logits, model(x), atol=1e-6) and not any(m._forward_hooks for m in model.modules())


def test_models_without_maps_are_named():
    x = torch.randn(2, 1, 4, 4)
    with pytest.raises(NoMaps, match="no linear layer"):
        class_activation_maps(nn.Conv2d(1, 3, 1), x)
    with pytest.raises(NoMaps, match="does not take the mean"):
        class_activation_maps(nn.Sequential(nn.Conv2d(1, 3, 1), nn.AdaptiveMaxPool2d(1), nn.Flatten(),
                                            nn.Linear(3, 2)), x)


def test_boxes_by_hand():
    heat = torch.zeros(8, 9)
    heat[1:3, 1:3] = 1.0  # 4 pixels
    heat[4:7, 5:8] = 0.6  # 9 pixels
    heat[7, 8] = 0.6  # touches at a corner only: another region
    assert largest_box(heat, 0.5) == (4, 5, 3, 3)
    assert largest_box(heat, 0.8) == (1, 1, 2, 2)
    assert largest_box(heat, 2.0) == (0, 0, 0, 0)
    assert iou((0, 0, 2, 2), torch.tensor([[1, 1, 2, 2]])) == pytest.approx(1 / 7)
    assert iou((0, 0, 2, 2), torch.tensor([[5, 5, 2, 2], [0, 0, 2, 4]])) == pytest.approx(0.5)
    assert iou((0, 0, 0, 0), torch.tensor([[1, 1, 2, 2]])) == 0 and iou((0, 0, 1, 1), torch.zeros(0, 4)) == 0
