"""The classifiers: shapes, sizes, errors."""

import re
from importlib.util import find_spec

import pytest
import torch

from fastmix.app import models
from fastmix.app.console import CommandError, UsageError
from fastmix.app.models.densenet import DenseNet
from fastmix.app.models.preact_resnet import PreActResNet
from fastmix.app.models.pyramidnet import PyramidNet
from fastmix.app.models.resnet import BasicBlock, SEBlock
from fastmix.app.models.resnext import ResNeXt
from fastmix.app.models.shake import ShakeBlock, shake_drop, shake_shake
from fastmix.app.models.wide_resnet import WideResNet

SMALL = ["cnn", "preact-resnet18", "resnet18", "resnet32", "resnet50", "wrn10-1", "pyramidnet11-5",
         "pyramidnet20-5-shakedrop", "resnext11-2-8", "densenet-bc10-3", "shake-shake8-4"]


@pytest.mark.parametrize("name", SMALL)
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
        for name, classes, size in (
                ("resnet18", 100, 11.2), ("resnet32", 10, 0.5), ("resnet110", 10, 1.7), ("se-resnet110", 10, 1.7),
                ("resnet50", 100, 23.7), ("resnext29-8-64", 10, 34.4), ("resnext29-4-24", 100, 4.9),
                ("densenet-bc100-12", 100, 0.8), ("shake-shake26-32", 10, 2.9), ("shake-shake26-96", 10, 26.2),
                ("pyramidnet272-200-shakedrop", 10, 26.2), ("cnn13", 10, 3.1)):
            pattern, make = next(f for f in models.FAMILIES if re.fullmatch(f[0], name))
            assert millions(make(3, classes, *map(int, re.fullmatch(pattern, name).groups()))) == size, name
        # The published counts, to the last weight.
        assert sum(p.numel() for p in DenseNet(3, 10, 100, 12).parameters()) == 769_162
        assert sum(p.numel() for p in ResNeXt(3, 10, 29, 8, 64).parameters()) == 34_426_698
    assert sum(p.numel() for p in models.build("cnn", 10, (1, 28, 28)).parameters()) < 200_000


def test_the_small_cnn_is_memory_format_blind():
    torch.manual_seed(0)
    model = models.build("cnn", 10, (3, 32, 32)).eval()
    x = torch.randn(4, 3, 32, 32)
    want = model(x)
    model = model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last)), want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["", "resnet", "wrn11-1", "wrn4-2", "wrn16-0", "cnn2", "resnet19", "pyramidnet12-5",
                                  "pyramidnet2-5", "pyramidnet11-0", "resnext28-2-2", "resnext29-0-2",
                                  "densenet-bc11-2", "shake-shake26-0", "shake-shake27-2", "pyramidnet11-5-shake",
                                  "cnn13 "])
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


def test_cnn13_is_its_table():
    model = models.build("cnn13", 100, (3, 32, 32)).eval()
    convolutions = [(m.out_channels, m.kernel_size[0]) for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    assert convolutions == [(128, 3)] * 3 + [(256, 3)] * 3 + [(512, 3), (256, 1), (128, 1)]
    assert model.features(torch.zeros(1, 3, 32, 32)).shape == (1, 128, 6, 6)
    with pytest.raises(UsageError, match="cannot take images of 8x8 pixels"):
        models.build("cnn13", 10, (1, 8, 8))


def test_a_squeezed_block_weighs_channels():
    torch.manual_seed(0)
    block, x = SEBlock(32, 32, 1).eval(), torch.randn(2, 32, 5, 5)
    torch.nn.init.zeros_(block.weigh.excite.weight)
    torch.nn.init.constant_(block.weigh.excite.bias, 100.0)  # a sigmoid of 1: the block without it
    plain = BasicBlock(32, 32, 1).eval()
    plain.load_state_dict({k: v for k, v in block.state_dict().items() if not k.startswith("weigh.")})
    torch.testing.assert_close(block(x), plain(x))


def test_dense_layers_keep_what_they_were_given():
    model = DenseNet(3, 10, 22, 6).eval()
    x = torch.randn(2, 12, 8, 8)
    assert torch.equal(model.blocks[0](x)[:, :12], x) and model.blocks[0](x).shape[1] == 18
    assert model.classifier.in_features == ((12 + 18) // 2 + 18) // 2 + 18


def shares(out, x):
    return (out / x).flatten(1)


def test_shake_shake_draws_anew_for_the_gradient():
    torch.manual_seed(0)
    a = torch.ones(400, 2, 3, 3, requires_grad=True)
    b = torch.zeros(400, 2, 3, 3, requires_grad=True)
    out = shake_shake(a, b, True)
    weight = shares(out.detach(), torch.ones_like(out))
    gradient, other = torch.autograd.grad(out.sum(), (a, b))
    backward = shares(gradient, torch.ones_like(a))
    for w in (weight, backward):  # one per image, uniform
        assert (w == w[:, :1]).all() and w.min() >= 0 and w.max() <= 1 and abs(w.mean() - 0.5) < 0.05
        assert abs(w[:, 0].var() - 1 / 12) < 0.02
    assert abs(torch.corrcoef(torch.stack([weight[:, 0], backward[:, 0]]))[0, 1]) < 0.15
    torch.testing.assert_close(gradient + other, torch.ones_like(a))
    assert torch.equal(shake_shake(a, b, False), torch.full_like(a, 0.5))


def test_shake_drop_keeps_or_shakes():
    torch.manual_seed(0)
    x = torch.ones(8, 1, 2, 2, requires_grad=True)
    kept = 0
    values = []
    for _ in range(300):
        out = shake_drop(x, 0.7, True)
        gradient, = torch.autograd.grad(out.sum(), x)
        if torch.equal(out, x):
            assert torch.equal(gradient, torch.ones_like(x))
            kept += 1
            continue
        values.append(shares(out.detach(), torch.ones_like(x))[:, 0])
        assert (gradient >= 0).all() and (gradient <= 1).all()
    values = torch.cat(values)
    assert abs(kept / 300 - 0.7) < 0.1 and -1 <= values.min() < -0.9 and 0.9 < values.max() <= 1
    assert abs(values.mean()) < 0.06
    assert torch.equal(shake_drop(x, 0.7, False), torch.full_like(x, 0.7))


def test_the_shaken_shortcut_sees_every_second_pixel_of_both_kinds():
    block = ShakeBlock(1, 2, 2).eval()
    for branch in block.branches:
        torch.nn.init.zeros_(branch[-1].weight)
    for convolution in (block.even, block.odd):
        torch.nn.init.ones_(convolution.weight)
    x = torch.arange(16.0).view(1, 1, 4, 4)
    out = block(x) * (1 + block.norm.eps) ** 0.5
    torch.testing.assert_close(out[0, 0], x[0, 0, ::2, ::2])
    torch.testing.assert_close(out[0, 1], x[0, 0, 1::2, 1::2])
