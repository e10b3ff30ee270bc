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
    with pytest.raises(ValueError, match=r"uncertainty: others is 10000000, which comes to about 14.3 GiB of plans"):
        uncertainty(model, data, others=10**7)
    assert len(uncertainty(model, data, others=5, samples=2).cv) == 12


def test_the_memory_of_this_machine_is_known():
    assert 2**28 < memory.total(torch.device("cpu")) < 2**46
