"""The classifiers: shapes, sizes, errors."""

from importlib.util import find_spec

import pytest
import torch

from fastmix import models
from fastmix._cli import CommandError, UsageError
from fastmix.models.preact_resnet import PreActResNet
from fastmix.models.wide_resnet import WideResNet


@pytest.mark.parametrize("name", ["cnn", "preact-resnet18", "wrn10-1"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 19, 30)])
def test_forward_and_gradients(name, shape):
    torch.manual_seed(0)
    model = models.build(name, 7, shape)
    logits = model(torch.randn(3, *shape))
    assert logits.shape == (3, 7)
    logits.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_sizes_are_those_of_the_papers():
    def millions(model):
        return round(sum(p.numel() for p in model.parameters()) / 1e6, 1)

    assert millions(PreActResNet(3, 100)) == 11.2
    assert millions(WideResNet(3, 100, 16, 8)) == 11.0
    with torch.device("meta"):
        assert millions(WideResNet(3, 100, 28, 10)) == 36.5
    assert sum(p.numel() for p in models.build("cnn", 10, (1, 28, 28)).parameters()) < 200_000


def test_the_small_cnn_is_memory_format_blind():
    torch.manual_seed(0)
    model = models.build("cnn", 10, (3, 32, 32)).eval()
    x = torch.randn(4, 3, 32, 32)
    want = model(x)
    model = model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last)), want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["", "resnet", "wrn11-1", "wrn4-2", "wrn16-0", "cnn2"])
def test_unknown_names(name):
    with pytest.raises(UsageError, match="--model"):
        models.build(name, 10, (3, 32, 32))


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_models_of_other_libraries(library, monkeypatch):
    if find_spec(library) is None:
        with pytest.raises(CommandError, match=f"pip install {library}"):
            models.build(f"{library}:resnet18", 10, (3, 32, 32))
        return
    for channels in (1, 3):
        model = models.build(f"{library}:resnet18", 5, (channels, 64, 64))
        assert model(torch.zeros(2, channels, 64, 64)).shape == (2, 5)
    with pytest.raises(UsageError, match="nonsense"):
        models.build(f"{library}:nonsense", 10, (3, 32, 32))
