"""Own generators: in DataLoader workers, in copies and pickles, in CUDA graphs; torch's defaults change no draw."""

import copy
import pickle

import pytest
import torch
from helpers.mixing import MAKERS, batch, same
from torch.utils.data import DataLoader, Dataset

from fastmix import DMixup, Mixup, RandomChoice, SoftCrop, SoftNoise, SoftResizedCrop, View
from fastmix.ops import random

SOFT = {"SoftCrop": SoftCrop(6, fill="random"), "SoftResizedCrop": SoftResizedCrop(6, fill="random"),
        "SoftNoise": SoftNoise(6)}


class Plans(Dataset):
    """Item i: what a mixer and a view with generators of their own draw."""

    def __init__(self):
        self.mixer = DMixup(generator=torch.Generator().manual_seed(3))

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return self.mixer.plan(torch.empty(5, 3)).weight.flatten()


def drawn(context, **options):
    """The items of two epochs."""
    torch.manual_seed(0)
    loader = DataLoader(Plans(), batch_size=None, num_workers=2, multiprocessing_context=context, **options)
    return [tuple(item.tolist()) for _ in range(2) for item in loader]


@pytest.mark.parametrize("context,options", [("fork", {}), ("spawn", {}), ("fork", {"persistent_workers": True})])
def test_every_worker_and_epoch_draws_numbers_of_its_own(context, options):
    """And the same ones again in the next run."""
    first = drawn(context, **options)
    assert len(set(first)) == 8
    if context == "fork":
        assert drawn(context, **options) == first


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda mixer: pickle.loads(pickle.dumps(mixer))])
def test_a_copy_goes_on_with_the_same_numbers(copied):
    mixer = Mixup(mode="elem", generator=torch.Generator().manual_seed(5))
    x = torch.empty(6, 3)
    mixer.plan(x)
    other = copied(mixer)
    assert other.generator is not mixer.generator
    assert same(mixer.plan(x), other.plan(x))
    assert copied(Mixup()).generator is None


def test_own_generators_leave_torchs_alone():
    x, _, saliency = batch()
    choice = RandomChoice([Mixup(), Mixup()], generator=torch.Generator().manual_seed(1))
    before = torch.get_rng_state()
    g = torch.Generator().manual_seed(1)
    for name, make in MAKERS.items():
        if name not in ("Compose", "ManifoldMixup"):
            make(generator=g).plan(x, saliency)
    choice.choose()
    View.draw(x, torch.zeros(3), torch.ones(3), pad=1, generator=g)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_cuda_graph_that_does_not_know_the_generator(monkeypatch):
    """torch says that the offset cannot be increased; we say what to do."""
    class OnCuda:
        device = torch.device("cuda")

    def refuses(*args, generator, **options):
        raise RuntimeError("Attempt to increase offset for a CUDA generator not in capture mode.")

    monkeypatch.setattr(torch, "rand", refuses)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match=r"want graph.register_generator_state\(generator\) before the capture"):
        random.uniform((3,), torch.device("cpu"), OnCuda())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    with pytest.raises(RuntimeError, match="Attempt to increase offset"):
        random.uniform((3,), torch.device("cpu"), OnCuda())


@pytest.mark.parametrize("name", [*MAKERS, *SOFT])
def test_draws_do_not_depend_on_the_default_dtype(name):
    x, y, saliency = batch()
    results = []
    for dtype in (torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
        try:
            torch.manual_seed(7)
            mixer = MAKERS[name]() if name in MAKERS else SOFT[name]
            results.append(mixer(x, y, saliency))
        finally:
            torch.set_default_dtype(torch.float32)
    (mixed, target), (other, again) = results
    assert torch.equal(mixed, other) and torch.equal(target, again)
    assert mixed.dtype == torch.float32 and again.weight.dtype == torch.float32


@pytest.mark.parametrize("name", [*MAKERS, *SOFT])
def test_inside_inference_mode(name):
    """Mixers made inside of it and outside; afterwards their switches work outside as well."""
    mixer = MAKERS[name]() if name in MAKERS else copy.deepcopy(SOFT[name])
    with torch.inference_mode():
        inner = MAKERS[name]() if name in MAKERS else SoftCrop(6)
        x, y, saliency = batch()
        for m in (mixer, inner):
            mixed, target = m(x, y, saliency)
            assert mixed.shape == x.shape and len(target) == len(x)
            m.enabled = False
            assert torch.isfinite(m(x, y)[0]).all()
            m.plan(torch.empty(4, 3, 8, 12, device="meta"))  # moves the switch
    x, y, saliency = batch()
    x.requires_grad_()
    for m in (mixer, inner):
        m.enabled = True
        m(x, y, saliency)[0].sum().backward()
