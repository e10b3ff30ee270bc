"""Memory and open files stay what they are over 10,000 calls of every operator, errors too; over 1,000 gradients of it
and calls of every module, which take ten times as long."""

import mmap
import os

import pytest
import torch
from helpers import public

import fastmix
import fastmix.functional as F
from fastmix import SoftTarget, View
from fastmix.losses import isda_strength
from fastmix.ops import library
from fuzz.memory import growth

pytestmark = pytest.mark.usefixtures("one_thread")
MANY, FEWER = 10_000, 1_000
MOST = {MANY: 1 << 20, FEWER: 1 << 18}  # bytes over all calls: about 100 or 260 a call

N, J, A = 2, 3, 4
X = torch.randn(N, 3, 8, 8, requires_grad=True)
PIXELS = torch.randint(0, 256, (N, 3, 8, 8), dtype=torch.uint8)
Y, Z, W = torch.tensor([0, 2]), torch.randn(N, J, requires_grad=True), torch.randn(J, A, requires_grad=True)
INDEX, SHARES = torch.tensor([[0, 1], [1, 0]]), torch.rand(N, 2)
BOXES, BOX = torch.tensor([[[1, 1, 3, 3]]] * N, dtype=torch.int32), torch.rand(N, 4) * 8
CELLS = torch.rand(N, 2, 2) < 0.5
Q, LAM, SOFT = torch.tensor(0.5), torch.tensor(0.5), SoftTarget(INDEX, SHARES)
COV, FEATURES = torch.eye(A).repeat(J, 1, 1), torch.randn(N, A, requires_grad=True)
STATE = torch.zeros(J, dtype=torch.int64), torch.zeros(J, A), torch.zeros(J, A, A)
VIEW = View(torch.rand(3), torch.rand(3) + 1, torch.rand(N) < 0.5, torch.randint(-2, 3, (N, 2)))
GRAD = X.detach()
NET = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, J))


@pytest.fixture(autouse=True)
def as_in_use(_poisoned_allocations):
    """No element is filled for the test's sake: that takes as long as the calls."""
    torch.use_deterministic_algorithms(False)
    if library.missing is None:
        torch.ops.fastmix._cpu_poison(False)


class Gradient:
    """A call whose gradient is checked too."""

    def __init__(self, call, *leaves):
        self.call, self.leaves = call, leaves

    def __call__(self):
        with torch.no_grad():
            return self.call()

    def backward(self):
        return torch.autograd.grad(self.call().sum(), self.leaves)


def wrong(call):
    def run():
        with pytest.raises((ValueError, TypeError, IndexError)):
            call()
    return run


OPERATORS = {
    "blend": Gradient(lambda: F.blend(X, INDEX, SHARES), X), "paste": Gradient(lambda: F.paste(X, INDEX, BOXES), X),
    "paste_areas": lambda: F.paste_areas(BOXES, (8, 8)),
    "patch_mix": Gradient(lambda: F.patch_mix(X, INDEX[:, 1], CELLS, LAM)[0], X),
    "rmix": lambda: F.rmix(GRAD, GRAD, (2, 2), Q, INDEX[:, 1], LAM),
    "saliency_map": lambda: F.saliency_map(GRAD, (2, 2)), "saliency_mask": lambda: F.saliency_mask(GRAD, (2, 2), Q),
    "saliency_peak": lambda: F.saliency_peak(GRAD), "percentile_mask": lambda: F.percentile_mask(GRAD[:, 0], Q),
    "crop": Gradient(lambda: F.crop(X, INDEX), X), "resized_crop": Gradient(lambda: F.resized_crop(X, BOX, (4, 4)), X),
    "soft_cross_entropy": Gradient(lambda: F.soft_cross_entropy(Z, SOFT), Z), "soft_kl": Gradient(
        lambda: F.soft_kl(Z, SOFT), Z),
    "soft_bce": Gradient(lambda: F.soft_bce(Z, SOFT), Z),
    "soft_target_kl": Gradient(lambda: F.soft_target_kl(Z, SOFT), Z),
    "isda_logits": Gradient(lambda: F.isda_logits(Z, W, COV, Y, 0.5), Z, W),
    "isda_consistency": Gradient(lambda: F.isda_consistency(Z, W, COV, 0.5), Z, W),
    "explicit_sda": lambda: F.explicit_sda(FEATURES, W, None, None, Y, 0.5, 1),
    "covariance_update_": lambda: F.covariance_update_(*STATE, FEATURES.detach(), Y),
    "input_saliency": lambda: F.input_saliency(NET, GRAD, Y),
    "visibility": lambda: F.visibility(INDEX, (8, 8)), "confidence": lambda: F.confidence(SHARES, 2, 0.1),
    "pair_iou": lambda: F.pair_iou(BOX, BOX), "pair_weight": lambda: F.pair_weight(SHARES[:, 0]),
}
OTHERS = {
    "View": lambda: VIEW.apply(PIXELS), "View of a mixture": lambda: F.paste(PIXELS, INDEX, BOXES, view=VIEW),
    "SoftTarget": lambda: (SOFT.dense(J), SOFT.hard(), SOFT.smooth(0.1, J), SoftTarget.cat([SOFT, SOFT[:1]])),
    "isda_strength": lambda: isda_strength(0.5, 3, 10), "dense target": Gradient(
        lambda: F.soft_cross_entropy(Z, SHARES.new_ones(N, J)), Z),
    "an error of C++": wrong(lambda: F.blend(X, INDEX + 5, SHARES)),
    "an error of Python": wrong(lambda: F.blend(X, INDEX, 3)),
    "an error of a loss": wrong(lambda: F.soft_cross_entropy(Z, Y + 7)),
}
SLOW = ("explicit_sda", "input_saliency", "SoftTarget")  # a few dozen operators of torch each
KL, ISDA, FC = fastmix.SoftTargetKL(), fastmix.ISDALoss(A, J), torch.nn.Linear(A, J)
CRITERIA = {
    "FocalLoss": fastmix.FocalLoss(), "SoftBCE": fastmix.SoftBCE(), "SoftCrossEntropy": fastmix.SoftCrossEntropy(),
    "SoftTargetKL": lambda z, y: KL(z, SOFT), "ISDALoss": lambda z, y: ISDA(FEATURES, FC, y, 0.5)[0],
}
MIXERS = {
    **{name: getattr(fastmix, name)() for name in ("CutMix", "Cutout", "DCutMix", "DMixup", "ManifoldMixup", "Mixup",
                                                   "RLMix", "RMix", "SaliencyDCutMix")},
    **{name: getattr(fastmix, name)(J) for name in ("SoftCrop", "SoftNoise", "SoftResizedCrop")},
    "Compose": fastmix.Compose(fastmix.RMix(), fastmix.Mixup()),
    "RandomChoice": fastmix.RandomChoice([fastmix.Mixup()]),
}


def flat(call, calls):
    found = growth(call, calls)
    assert found.bytes <= MOST[calls] and found.files == 0, found


@pytest.mark.parametrize("name", [*OPERATORS, *OTHERS])
def test_memory_of_an_operator(name):
    call = (OPERATORS | OTHERS)[name]
    flat(call, FEWER if name in SLOW else MANY)
    if isinstance(call, Gradient):
        flat(call.backward, FEWER)


@pytest.mark.parametrize("name", [*CRITERIA, *MIXERS])
def test_memory_of_a_module(name):
    if name in MIXERS:
        flat(lambda: MIXERS[name](GRAD, Y, GRAD), FEWER)
    else:
        flat(Gradient(lambda: CRITERIA[name](Z, Y), FEATURES if name == "ISDALoss" else Z).backward, FEWER)


def test_every_operator_is_here():
    assert set(F.__all__) == set(OPERATORS)
    modules = {name.rpartition(".")[2] for name, each in public.PUBLIC.items()
               if isinstance(each, type) and issubclass(each, torch.nn.Module)}
    assert modules - {"ISDACovariance", "Mixer", "Refinement"} == {*CRITERIA, *MIXERS}


def test_a_leak_is_seen():
    kept = []

    def leak():  # pages of its own: small tensors may fit into memory that the process holds already
        kept.append(mmap.mmap(-1, 1 << 14))
        kept[-1].write(b"1" * (1 << 14))

    assert growth(leak, FEWER).bytes > MOST[FEWER]
    for pages in kept:
        pages.close()
    files = []
    try:
        assert growth(lambda: files.append(os.open(os.devnull, os.O_RDONLY)), 40, warm=2).files == 40
    finally:
        for descriptor in files:
            os.close(descriptor)
