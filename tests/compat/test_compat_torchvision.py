"""fastmix.compat.torchvision against torchvision itself."""

import pickle

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset, default_collate

v2 = pytest.importorskip("torchvision.transforms.v2", exc_type=ImportError)
tv_tensors = pytest.importorskip("torchvision.tv_tensors", exc_type=ImportError)

from fastmix import SoftTarget  # noqa: E402
from fastmix.compat import torchvision as ours  # noqa: E402

NAMES = pytest.mark.parametrize("name", ["MixUp", "CutMix"])


def seeded(call, seed=0):
    torch.manual_seed(seed)
    return call()


@NAMES
@pytest.mark.parametrize("wrap", [torch.Tensor, tv_tensors.Image, tv_tensors.Video])
@pytest.mark.parametrize("labels", ["index", "one-hot", "bool"])
def test_a_seed_mixes_the_same(name, wrap, labels):
    x = wrap(torch.rand(5, 2, 3, 8, 9) if wrap is tv_tensors.Video else torch.rand(5, 3, 8, 9))
    y = torch.randint(4, (5,))
    if labels != "index":
        y = torch.nn.functional.one_hot(y, 4).to(torch.bool if labels == "bool" else torch.float32)
    for seed in range(5):
        x1, t1 = seeded(lambda: getattr(v2, name)(num_classes=4)(x, y), seed)
        x2, t2 = seeded(lambda: getattr(ours, name)(num_classes=4)(x, y), seed)
        assert type(x1) is type(x2)
        torch.testing.assert_close(x2, x1, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(t2, t1.to(t2.dtype))


@NAMES
def test_dicts_and_what_else_a_sample_holds(name):
    sample = {"images": torch.rand(4, 3, 8, 8), "labels": torch.arange(4), "names": list("abcd")}
    kind = {"num_classes": 4, "labels_getter": lambda found: found["labels"]}
    wanted = seeded(lambda: getattr(v2, name)(**kind)(sample))
    found = seeded(lambda: getattr(ours, name)(**kind)(sample))
    assert found["names"] == wanted["names"] and found.keys() == wanted.keys()
    torch.testing.assert_close(found["images"], wanted["images"])
    torch.testing.assert_close(found["labels"], wanted["labels"].float())


@NAMES
def test_in_a_collate_function_with_workers(name):
    mix = getattr(ours, name)(num_classes=4)
    pickle.loads(pickle.dumps(mix))
    data = TensorDataset(torch.rand(8, 3, 8, 8), torch.arange(8) % 4)
    loader = DataLoader(data, batch_size=4, num_workers=1, collate_fn=_Collate(mix))
    for x, target in loader:
        assert x.shape == (4, 3, 8, 8) and target.shape == (4, 4)
        torch.testing.assert_close(target.sum(1), torch.ones(4))


class _Collate:
    def __init__(self, mix):
        self.mix = mix

    def __call__(self, samples):
        return self.mix(default_collate(samples))


@NAMES
def test_sparse(name):
    x, y = torch.rand(4, 3, 8, 8), torch.arange(4)
    dense = seeded(lambda: getattr(ours, name)(num_classes=4)(x, y))[1]
    sparse = seeded(lambda: getattr(ours, name)(num_classes=4, sparse=True)(x, y))[1]
    assert isinstance(sparse, SoftTarget)
    torch.testing.assert_close(sparse.dense(4), dense)


@NAMES
@pytest.mark.parametrize("x,y,classes", [
    (torch.rand(3, 8, 8), torch.arange(3), 4), (torch.rand(4, 3, 8, 8), torch.arange(3), 4),
    (torch.rand(4, 3, 8, 8), torch.arange(4), None), (torch.rand(4, 3, 8, 8), torch.zeros(4, 2, 2), 4)])
def test_the_same_errors(name, x, y, classes):
    raised = []
    for module in (v2, ours):
        with pytest.raises(ValueError) as caught:
            getattr(module, name)(num_classes=classes)(x, y)
        raised.append(str(caught.value))
    assert raised[0] == raised[1]
