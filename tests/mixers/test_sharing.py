"""A mixer that several threads share, and work that a number typed wrong would ask for."""

import threading

import pytest
import torch
from helpers.mixing import MAKERS, batch, every

import fastmix
from fastmix.ops import memory
from fastmix.subsampling import uncertainty


def test_two_threads_of_one_mixer_have_percentiles_of_their_own():
    """The mask follows from saliency and percentile alone: no thread may get that of the other's."""
    mixer, failures = fastmix.RLMix(patches=4, levels=10), []
    x, y, saliency = batch(6, size=(8, 8))
    wanted = {q: mixer.plan(x, saliency, q=torch.full((6,), q)).mask for q in (0.0, 0.99)}
    assert not torch.equal(wanted[0.0], wanted[0.99])
    barrier = threading.Barrier(2)

    def work(q):
        given = torch.full((6,), q)
        barrier.wait()
        for _ in range(150):
            if not torch.equal(mixer.plan(x, saliency, q=given).mask, wanted[q]):
                failures.append(q)
            mixer(x, y, saliency, q=given)

    threads = [threading.Thread(target=work, args=(q,)) for q in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@every
def test_a_call_leaves_nothing_in_the_mixer(name):
    """What a call kept there, another thread's would find."""
    mixer = MAKERS[name](generator=torch.Generator().manual_seed(0))
    x, y, saliency = batch(size=(8, 8))

    def kept():
        return [(key, id(value)) for module in mixer.modules() for key, value in vars(module).items()
                if key not in ("_buffers", "_modules")] + [(key, id(value)) for key, value in mixer.named_buffers()]

    before = kept()
    for _ in range(2):
        mixer.plan(x, saliency) if mixer.needs_saliency else mixer.plan(x)
        mixer(x, y, saliency) if mixer.needs_saliency else mixer(x, y)
    assert kept() == before


def test_work_that_has_no_end_is_refused_with_its_size(monkeypatch):
    monkeypatch.setattr(memory, "total", lambda device: 2**34)
    features, weight = torch.randn(8, 16), torch.randn(4, 16)
    call = [features, weight, None, torch.eye(16).expand(4, 16, 16), torch.zeros(8, dtype=torch.int64), 0.5]
    with pytest.raises(ValueError, match=r"explicit_sda: samples is 1000000000, which comes to about 596.0 GiB of "
                                         r"random numbers and logits; want at most 13421772 \(8.0 GiB, half of"):
        fastmix.functional.explicit_sda(*call, 10**9)
    assert fastmix.functional.explicit_sda(*call, 10).ndim == 0
    data = torch.utils.data.TensorDataset(torch.rand(12, 1, 4, 4), torch.arange(12) % 3)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    with pytest.raises(ValueError, match=r"AnchoredDCutMix: others is 10000000, want at most 1023"):
        uncertainty(model, data, others=10**7)
    assert len(uncertainty(model, data, others=5, samples=2).cv) == 12


def test_the_memory_of_this_machine_is_known():
    assert 2**28 < memory.total(torch.device("cpu")) < 2**46


@pytest.mark.parametrize("make", [fastmix.DMixup, fastmix.DCutMix, fastmix.SaliencyDCutMix])
def test_so_many_images_are_not_mixed_into_one(make):
    with pytest.raises(ValueError, match=rf"{make.__name__}: k is 1000000, want at most 1024"):
        make(k=10**6)
    x = torch.rand(3, 1, 2, 2)
    assert make(k=1024)(x, torch.arange(3), x)[1].index.shape == (3, 1024)


def test_a_size_that_memory_has_no_room_for_is_refused(monkeypatch):
    monkeypatch.setattr(memory, "total", lambda device: 2**32)
    target = fastmix.SoftTarget.from_labels(torch.arange(3))
    for call, words in (
            (lambda: fastmix.RMix(levels=10**9).percentiles(), r"RMix: levels is 1000000000, .* about 7.5 GiB"),
            (lambda: fastmix.RLMix(levels=10**9).percentiles(), r"RLMix: levels is 1000000000"),
            (lambda: target.dense(10**9), r"SoftTarget.dense: num_classes is 1000000000, .* GiB of a dense matrix"),
            (lambda: fastmix.ISDACovariance(1000, 2048),
             r"ISDACovariance: num_classes, num_features is \(1000, 2048\), .* about 15.6 GiB of statistics; want"),
            (lambda: fastmix.ISDALoss(2048, 1000), r"ISDACovariance: num_classes, num_features"),
            (lambda: fastmix.functional.resized_crop(torch.rand(1, 3, 4, 4), torch.rand(1, 4), (2**20, 2**10)),
             r"resized_crop: size is \(1048576, 1024\), which comes to about 12.0 GiB of images"),
            (lambda: fastmix.functional.resized_crop(torch.rand(0, 3, 4, 4), torch.rand(0, 4), (2**31, 2**31)),
             "resized_crop: size is"),
            (lambda: fastmix.SoftResizedCrop(5, size=2**20)(torch.rand(1, 3, 4, 4), torch.tensor([0])),
             "resized_crop: size is")):
        with pytest.raises(ValueError, match=words):
            call()
    assert fastmix.RMix(levels=10**9)(torch.rand(2, 1, 4, 4), torch.arange(2), torch.rand(2, 1, 4, 4))[0].shape[0] == 2
