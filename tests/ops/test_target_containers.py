"""A SoftTarget among what moves, stores and splits batches."""

import copy
import io
import pickle

import pytest
import torch
from torch.utils.data import default_collate

import fastmix
import fastmix.functional as F
from fastmix import SoftTarget

LOGITS = torch.randn(6, 5)


def target(base=True):
    return SoftTarget(torch.randint(5, (6, 2)), torch.rand(6, 2), torch.rand(6) if base else None)


@pytest.mark.parametrize("base", [False, True])
def test_it_says_where_and_how_large_it_is(base):
    t = target(base)
    assert t.shape == (6,) and t.size() == (6,) and t.size(0) == len(t) == 6 and t.device == torch.device("cpu")
    assert t.cpu() == t and t.to("cpu", non_blocking=True) == t and t.to(LOGITS) == t
    assert t.to(device="meta").index.is_meta
    pixels = SoftTarget(torch.zeros(2, 3, 4, 1, dtype=torch.int64), torch.ones(2, 3, 4, 1))
    assert pixels.shape == (2, 3, 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int32])
def test_a_dtype_changes_nothing(dtype):
    t = target()
    assert t.to(dtype) is t and t.to(torch.empty(0, dtype=dtype)) == t
    F.soft_cross_entropy(LOGITS, t.to("cpu", dtype))


@pytest.mark.parametrize("base", [False, True])
def test_it_is_split_as_a_tensor_is(base):
    t = target(base)
    for rows in (4, [1, 5], 6):
        parts = t.split(rows)
        assert [len(part) for part in parts] == [len(part) for part in LOGITS.split(rows)]
        assert torch.cat(parts) == t


@pytest.mark.parametrize("base", [False, True])
@pytest.mark.parametrize("through", [
    lambda t, file: torch.load(file(torch.save, t), weights_only=True),
    lambda t, file: torch.load(file(torch.save, {"batch": [t]}), weights_only=True)["batch"][0],
    lambda t, file: pickle.loads(pickle.dumps(t)), lambda t, file: copy.deepcopy(t),
    lambda t, file: default_collate([t[n:n + 1] for n in range(len(t))])])
def test_it_survives(through, base):
    def file(write, value):
        opened = io.BytesIO()
        write(value, opened)
        opened.seek(0)
        return opened

    t = target(base)
    found = through(t, file)
    assert SoftTarget(*(None if f is None else f.view(was.shape) for f, was in zip(found, t, strict=True))) == t


@pytest.mark.parametrize("loss", [F.soft_cross_entropy, F.soft_kl, F.soft_target_kl, F.soft_bce])
def test_losses_take_the_fields_as_a_tuple(loss):
    for t in (target(), target(base=False)):
        assert torch.equal(loss(LOGITS, tuple(t)), loss(LOGITS, t))
    index, weight, _ = target(base=False)
    assert torch.equal(loss(LOGITS, (index, weight)), loss(LOGITS, SoftTarget(index, weight)))


@pytest.mark.parametrize("fields", [(), (LOGITS,), (LOGITS, 1), (LOGITS, LOGITS, "x"), (LOGITS,) * 4])
def test_other_tuples_are_an_error(fields):
    with pytest.raises(TypeError, match=r"soft_kl: target is a tuple of .*want \(index, weight\) or"):
        F.soft_kl(LOGITS, fields)


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double"])
def test_casts_of_a_parent_module_leave_strengths_alone(cast):
    x, y = torch.rand(8, 3, 8, 8), torch.arange(8)
    for make in (lambda: fastmix.SoftCrop(10, sigma=0.3), lambda: fastmix.SoftResizedCrop(10, (8, 8)),
                 lambda: fastmix.SoftNoise(10)):
        parent = torch.nn.Sequential(make())
        getattr(parent, cast)()
        module = parent[0]
        torch.manual_seed(1)
        found = module(x, y)
        torch.manual_seed(1)
        wanted = make()(x, y)
        assert torch.equal(found[0], wanted[0]) and found[1] == wanted[1]
