"""Compiled mixers, views, losses and ISDA take every batch size: two compilations, and one more for a batch of one."""

import pytest
import torch
from helpers.mixing import MAKERS
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import fastmix
import fastmix.functional as F
from fastmix import (
    CutMix,
    FocalLoss,
    ISDALoss,
    Mixup,
    RMix,
    SoftBCE,
    SoftCrop,
    SoftCrossEntropy,
    SoftNoise,
    SoftResizedCrop,
    SoftTarget,
    SoftTargetKL,
    View,
)

pytestmark = pytest.mark.usefixtures("one_thread")
BATCHES = (8, 5, 12, 1, 9, 3, 7, 4, 11, 6, 2)
SOFT = {"SoftCrop": lambda: SoftCrop(4, fill="random"), "SoftResizedCrop": lambda: SoftResizedCrop(4),
        "SoftResizedCrop-6": lambda: SoftResizedCrop(4, size=6, prob=0.5), "SoftNoise": lambda: SoftNoise(4)}
CLASSES, WIDTH = 6, 5
# dynamic=True makes numbers of the options symbols as well; dynamo starts anew once it has seen that they are not.
DYNAMIC = 2


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()


def images(n, dtype=torch.float32):
    x = torch.randn(n, 3, 8, 12) if dtype.is_floating_point else torch.randint(256, (n, 3, 8, 12), dtype=dtype)
    return x, torch.arange(n) % 4, torch.randn(n, 3, 8, 12)


def compilations(fn, make, sizes=BATCHES, **options):
    """How often fn is compiled for batches make(n) of all sizes; every call must run, and none falls back."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(fn, fullgraph=True, backend=counter, **options)
    for n in sizes:
        compiled(*make(n))
    return counter.frame_count


def test_the_example():
    m = Mixup(1.0)
    f = torch.compile(lambda x, y: m(x, y)[0], fullgraph=True)
    for n in (8, 5):
        assert f(torch.rand(n, 3, 8, 8), torch.arange(n) % 4).shape == (n, 3, 8, 8)


@pytest.mark.parametrize("name", [*MAKERS, *SOFT])
def test_mixers(name):
    mixer = MAKERS[name]() if name in MAKERS else SOFT[name]()
    assert compilations(lambda x, y, s: mixer(x, y, s), images) <= 3


@pytest.mark.parametrize("prob", [0.5])
@pytest.mark.parametrize("name", ["Mixup", "CutMix-elem", "DCutMix", "RMix", "Cutout"])
def test_mixers_with_a_probability(name, prob):
    mixer = MAKERS[name](prob=prob)
    assert compilations(lambda x, y, s: mixer(x, y, s), images) <= 3


@pytest.mark.parametrize("name", ["none", "Mixup", "CutMix", "RMix"])
def test_views(name):
    mean, std = torch.zeros(3), torch.ones(3)
    mixer = None if name == "none" else MAKERS[name]()

    def step(x, y, s):
        view = View.draw(x, mean, std, pad=2)
        return view.apply(x) if mixer is None else mixer(x, y, s, view)
    assert compilations(step, lambda n: images(n, torch.uint8)) <= 3


TARGETS = {
    "labels": lambda n: torch.arange(n) % CLASSES,
    "soft": lambda n: SoftTarget(torch.randint(CLASSES, (n, 3)), torch.rand(n, 3), torch.rand(n)),
    "dense": lambda n: torch.rand(n, CLASSES),
}
LOSSES = {
    "ce": (SoftCrossEntropy(label_smoothing=0.1), TARGETS), "bce": (SoftBCE(), TARGETS), "kl": (F.soft_kl, TARGETS),
    "target_kl": (SoftTargetKL(), {"soft": TARGETS["soft"]}), "focal": (FocalLoss(), {"labels": TARGETS["labels"]}),
}


@pytest.mark.parametrize("name,kind", [(name, kind) for name, (_, kinds) in LOSSES.items() for kind in kinds])
def test_losses_and_their_gradients(name, kind):
    loss, kinds = LOSSES[name]

    def step(z, t):
        return loss(z * 2, t)

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, fullgraph=True, backend=counter)
    for n in BATCHES:
        z, t = torch.randn(n, CLASSES, requires_grad=True), kinds[kind](n)
        got, = torch.autograd.grad(compiled(z, t), z)
        want, = torch.autograd.grad(step(z, t), z)
        torch.testing.assert_close(got, want)
    assert counter.frame_count <= 3


@pytest.mark.parametrize("kind", ["full", "diag", "shared", "identity"])
def test_isda(kind):
    fc, loss = nn.Linear(WIDTH, CLASSES), ISDALoss(WIDTH, CLASSES, kind)
    assert compilations(lambda f, y: loss(f, fc, y, 0.5)[0],
                        lambda n: (torch.randn(n, WIDTH, requires_grad=True), torch.arange(n) % CLASSES)) <= 3
    torch._dynamo.reset()
    assert compilations(lambda z: loss.consistency(z, fc, 0.5),
                        lambda n: (torch.randn(n, CLASSES, requires_grad=True),)) <= 3


def test_isda_of_pixels():
    fc, loss = nn.Conv2d(WIDTH, CLASSES, 1), ISDALoss(WIDTH, CLASSES, "diag")
    assert compilations(lambda f, y: loss(f, fc, y, 0.5)[0], lambda n: (
        torch.randn(n, WIDTH, 3, 4, requires_grad=True), torch.randint(CLASSES, (n, 3, 4)))) <= 3


def test_isda_with_a_strength_that_changes():
    """The usual ``isda_strength(0.5, step, total)``, a float of every step."""
    fc, loss = nn.Linear(WIDTH, CLASSES), ISDALoss(WIDTH, CLASSES)
    features, labels = torch.randn(8, WIDTH), torch.arange(8) % CLASSES
    counter = CompileCounterWithBackend("aot_eager")

    def step(strength):
        return loss(features, fc, labels, strength, update=False)[0]
    compiled = torch.compile(step, fullgraph=True, backend=counter)
    loss(features, fc, labels, 0.5)
    for i in range(1, 12):
        torch.testing.assert_close(compiled(0.5 * i / 12), step(0.5 * i / 12))
    assert counter.frame_count <= 3


# ---------------------------------------------------------------- image sizes, dynamic=True, export

@pytest.mark.parametrize("name", [*MAKERS, *SOFT])
def test_image_sizes_that_are_marked_dynamic(name):
    mixer = MAKERS[name]() if name in MAKERS else SOFT[name]()

    def make(side):
        x, saliency = torch.randn(6, 3, side, 2 * side), torch.randn(6, 3, side, 2 * side)
        for t in (x, saliency):
            torch._dynamo.mark_dynamic(t, 2)
            torch._dynamo.mark_dynamic(t, 3)
        return x, torch.arange(6) % 4, saliency

    assert compilations(lambda x, y, s: mixer(x, y, s), make, (8, 12, 16, 32, 24)) <= 2


@pytest.mark.parametrize("name", ["Mixup", "CutMix", "DCutMix", "RMix", "Cutout", "SoftCrop", "SoftResizedCrop"])
def test_dynamic_true(name):
    mixer = MAKERS[name]() if name in MAKERS else SOFT[name]()
    assert compilations(lambda x, y, s: mixer(x, y, s), images, (7, 5, 10), dynamic=True) <= DYNAMIC


def test_dynamic_true_of_a_loss():
    assert compilations(lambda z, t: F.soft_cross_entropy(z, t),
                        lambda n: (torch.randn(n, CLASSES, requires_grad=True), TARGETS["soft"](n)), (7, 5, 10),
                        dynamic=True) <= DYNAMIC


class Step(nn.Module):
    """A loss as a module of tensors alone, for export."""

    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def forward(self, *args):
        return self.loss(*args)


@pytest.mark.parametrize("kind", TARGETS)
def test_export_of_a_loss(kind):
    loss = Step(F.soft_cross_entropy)
    batch = torch.export.Dim("batch", min=2, max=512)
    target = TARGETS[kind](4)
    sizes = [{0: batch}, {0: batch}, {0: batch}] if kind == "soft" else {0: batch}
    program = torch.export.export(loss, (torch.randn(4, CLASSES), target), dynamic_shapes=(({0: batch}, sizes),))
    z, t = torch.randn(9, CLASSES), TARGETS[kind](9)
    torch.testing.assert_close(program.module()(z, t), loss(z, t))


def test_export_of_isda():
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.isda = nn.Linear(WIDTH, CLASSES), ISDALoss(WIDTH, CLASSES)

        def forward(self, features, labels):
            return self.isda(features, self.fc, labels, 0.5, update=False)[0]

    head = Head()
    head.isda.covariance.update(torch.randn(40, WIDTH), torch.arange(40) % CLASSES)
    batch = torch.export.Dim("batch", min=2, max=512)
    program = torch.export.export(head, (torch.randn(4, WIDTH), torch.arange(4) % CLASSES),
                                  dynamic_shapes=({0: batch}, {0: batch}))
    features, labels = torch.randn(9, WIDTH), torch.arange(9) % CLASSES
    torch.testing.assert_close(program.module()(features, labels), head(features, labels))


def test_a_whole_step_under_inductor():
    """Mixing, model, loss and backward through code generation, at three batch sizes."""
    mixer, model = CutMix(), nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 12, CLASSES))

    def step(x, y):
        mixed, target = mixer(x, y)
        return fastmix.functional.soft_cross_entropy(model(mixed), target)

    compiled = torch.compile(step, fullgraph=True)
    for n in (8, 5, 12):
        x, y, _ = images(n)
        compiled(x, y).backward()
    assert isinstance(RMix()(x, y, torch.randn_like(x))[1], SoftTarget)
