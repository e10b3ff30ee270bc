"""The classifiers: shapes, sizes, errors."""

from importlib.util import find_spec

import pytest
import torch

from fastmix import models
from fastmix._cli import CommandError, UsageError
from fastmix.models.preact_resnet import PreActResNet
from fastmix.models.pyramidnet import PyramidNet
from fastmix.models.resnet import ResNet
from fastmix.models.wide_resnet import WideResNet


@pytest.mark.parametrize("name", ["cnn", "preact-resnet18", "resnet18", "resnet32", "wrn10-1", "pyramidnet11-5"])
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
        assert millions(PyramidNet(3, 100, 110, 64)) == 1.7
        assert millions(PyramidNet(3, 100, 200, 240)) == 26.8
        assert millions(ResNet(3, 100, *models.RESNETS["resnet18"])) == 11.2
        assert millions(ResNet(3, 10, *models.RESNETS["resnet32"])) == 0.5
        assert millions(ResNet(3, 10, *models.RESNETS["resnet110"])) == 1.7
    assert sum(p.numel() for p in models.build("cnn", 10, (1, 28, 28)).parameters()) < 200_000


def test_the_small_cnn_is_memory_format_blind():
    torch.manual_seed(0)
    model = models.build("cnn", 10, (3, 32, 32)).eval()
    x = torch.randn(4, 3, 32, 32)
    want = model(x)
    model = model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last)), want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["", "resnet", "wrn11-1", "wrn4-2", "wrn16-0", "cnn2", "resnet19", "pyramidnet12-5",
                                  "pyramidnet2-5", "pyramidnet11-0"])
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


def test_pyramidnet_widens_evenly_and_its_shortcut_is_the_input():
    model = PyramidNet(3, 10, 29, 30)
    assert [block.conv2.out_channels for block in model.blocks] == [round(16 + 30 * i / 9) for i in range(1, 10)]
    assert [block.stride for block in model.blocks] == [1, 1, 1, 2, 1, 1, 2, 1, 1]
    block = model.blocks[3].eval()
    torch.nn.init.zeros_(block.norm4.weight)
    x = torch.randn(2, block.conv1.in_channels, 5, 4)
    out = block(x)
    assert torch.equal(out[:, :x.shape[1]], torch.nn.functional.avg_pool2d(x, 2, ceil_mode=True))
    assert out.shape[2:] == (3, 2) and not out[:, x.shape[1]:].any()
