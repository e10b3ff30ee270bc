"""Manifold Mixup: against a forward pass by hand, gradients, layers, clean-up, compilation, two processes."""

import pickle

import pytest
import torch
from helpers import training
from helpers.mixing import batch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import fastmix.functional as F
from fastmix import ManifoldMixup, Mixup
from fastmix.app import models
from fastmix.mixers.manifold import units

pytestmark = pytest.mark.usefixtures("one_thread")


class Part(nn.Linear):
    """In code of its own: dynamo skips frames of torch.nn."""

    def forward(self, x):
        return x @ self.weight.T + self.bias


class Net(nn.Module):
    """Two linear maps by hand: what a mixed layer gives can be written down."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, 4), Part(4, 4), nn.Linear(4, 3)
        self.relu, self.unused = nn.ReLU(), nn.Linear(2, 2)

    def forward(self, x, twice=False):
        h = self.relu(self.first(x))
        h = self.second(h).tanh()
        return self.last(self.relu(h) if twice else h)


def by_hand(net, x, plan, layer):
    """Net's forward pass in dense matrices: row n of `mix` holds the shares of image n."""
    mix = torch.zeros(len(x), len(x), dtype=x.dtype)
    for n in range(0 if layer is None else len(x)):
        for source, weight in zip(plan.index[n].tolist(), plan.weight[n].tolist(), strict=True):
            mix[n, source] += weight

    def at(name, h):
        return mix @ h if name == layer else h

    h = at("first", at("input", x) @ net.first.weight.T + net.first.bias).relu()
    h = at("second", h @ net.second.weight.T + net.second.bias).tanh()
    return at("last", h @ net.last.weight.T + net.last.bias)


def untouched(*modules):
    """No module of these carries anything of the mixer."""
    for root in modules:
        for module in root.modules():
            assert "forward" not in module.__dict__ and not module._forward_hooks and not module._forward_pre_hooks


@pytest.mark.parametrize("layer", ["input", "first", "second", "last"])
def test_equals_the_forward_pass_by_hand_with_gradients(layer):
    torch.manual_seed(0)
    net = Net().double()
    x, y = torch.randn(6, 5, dtype=torch.float64, requires_grad=True), torch.arange(6) % 3
    mixer = ManifoldMixup(1.0, ["input", "first", "second", "last"])
    plan = mixer.plan(x)
    wanted = [*net.first.parameters(), *net.second.parameters(), *net.last.parameters(), x]
    with mixer.inside(net, plan, layer) as name:
        logits = net(x)
    assert name == layer
    truth = by_hand(net, x, plan, layer)
    torch.testing.assert_close(logits, truth, rtol=0, atol=1e-12)
    target = plan.target(y)
    loss = F.soft_cross_entropy(logits, target)
    # In float64: shares of one class added in float32 would be rounded.
    matrix = (target.weight.double().unsqueeze(2) * torch.nn.functional.one_hot(target.index, 3)).sum(1)
    dense = -(matrix * truth.log_softmax(1)).sum(1).mean()
    for a, b in zip(torch.autograd.grad(loss, wanted), torch.autograd.grad(dense, wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    untouched(net)
    torch.testing.assert_close(net(x), by_hand(net, x, None, None))


def test_the_input_layer_is_mixup():
    x, y, _ = batch()
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 12, 4))
    torch.manual_seed(1)
    mixer = ManifoldMixup(0.4, "input")
    plan = mixer.plan(x)
    with mixer.inside(model, plan):
        logits = model(x)
    torch.manual_seed(1)
    mixed, target = Mixup(0.4)(x, y)
    assert torch.equal(logits, model(mixed)) and torch.equal(plan.target(y).weight, target.weight)


def test_several_forward_passes_and_eval():
    net = Net()
    mixer = ManifoldMixup(1.0, ["second"])
    x, other = torch.randn(4, 5), torch.randn(4, 5)
    plan = mixer.plan(x)
    with mixer.inside(net, plan):
        first, second = net(x), net(other)
        net.eval()
        plain = net(x)
    torch.testing.assert_close(first, by_hand(net, x, plan, "second"))
    torch.testing.assert_close(second, by_hand(net, other, plan, "second"))
    assert torch.equal(plain, net(x)) and not torch.allclose(first, plain)
    with mixer.inside(net, plan, in_eval=True):
        torch.testing.assert_close(net(x), first)


def test_the_choice_is_uniform_and_from_the_cpu_generator():
    net = Net()
    mixer = ManifoldMixup(1.0, ["input", "first", "last"], generator=torch.Generator().manual_seed(3))
    draws = {}
    for seed in (7, 7, 8):
        torch.manual_seed(seed)
        names = [mixer.choose(net) for _ in range(600)]
        assert draws.setdefault(seed, names) == names
    counts = [draws[7].count(name) for name in ("input", "first", "last")]
    assert all(abs(count - 200) < 60 for count in counts) and draws[7] != draws[8]
    torch.manual_seed(7)
    seen = []
    for _ in range(600):
        with mixer.inside(net, mixer.plan(torch.zeros(2, 5))) as name:
            seen.append(name)
    assert seen == draws[7]  # nothing else draws from it: the plans have a generator of their own


def test_layers_by_name_module_number_and_auto():
    net = Net()
    assert units(net) == ["first", "second", "last", "unused"]
    mixed = ManifoldMixup(1.0, ["input", 0, 2, net.first, net, "second"])
    assert mixed.names(net) == ["input", "input", "second", "first", "input", "second"]
    assert ManifoldMixup(1.0, "second").names(net) == ["second"]
    assert ManifoldMixup(1.0).names(net) == ["input", "first", "second"]
    model = models.build("preact-resnet18", 10, (3, 8, 8))
    assert units(model) == ["stem", *(f"blocks.{i}" for i in range(8)), "norm", "classifier"]
    assert ManifoldMixup(1.0).names(model) == ["input", "blocks.1", "blocks.4"]
    wrapped = nn.Sequential(nn.Sequential(model))
    assert ManifoldMixup(1.0).names(wrapped) == ["input", "0.0.blocks.1", "0.0.blocks.4"]
    assert ManifoldMixup(1.0).names(nn.Sequential(nn.Flatten(), nn.Linear(2, 2))) == ["input"]
    assert pickle.loads(pickle.dumps(ManifoldMixup(1.0, ["first", 2]))).names(net) == ["first", "second"]


class Tuples(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(5, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.rnn(x)[0].mean(1))


@pytest.mark.parametrize(("model", "layers", "x", "kind", "words"), [
    (Tuples(), ["rnn"], torch.randn(4, 2, 5), TypeError, "layer 'rnn' gives tuple, want a tensor"),
    (Net(), ["relu"], torch.randn(4, 5), ValueError, "layer 'relu' ran a second time"),
    (Net(), ["first"], torch.randn(3, 5), ValueError, r"layer 'first' gives shape \(3, 4\), want 4 rows"),
    (Net(), ["unused"], torch.randn(4, 5), RuntimeError, "layer 'unused' did not run"),
])
def test_errors_name_the_layer_and_leave_nothing_behind(model, layers, x, kind, words):
    mixer = ManifoldMixup(1.0, layers)
    plan = mixer.plan(torch.zeros(4, 5))
    with pytest.raises(kind, match=f"ManifoldMixup: {words}"), mixer.inside(model, plan):
        model(x, True) if "second" in words else model(x)
    untouched(model)


def test_nothing_stays_when_the_model_or_the_caller_raises():
    net = Net()
    mixer = ManifoldMixup(1.0, ["first"])
    plan = mixer.plan(torch.zeros(4, 5))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), mixer.inside(net, plan):
        net(torch.zeros(4, 6))
    untouched(net)
    with pytest.raises(KeyError), mixer.inside(net, plan):
        raise KeyError
    untouched(net)
    with mixer.inside(net, plan):  # an error that the caller handles is no missing layer
        with pytest.raises(RuntimeError):
            net(torch.zeros(4, 6))
        net(torch.zeros(4, 5))
    net.first.forward = own = net.first.forward  # somebody else's replacement comes back
    with mixer.inside(net, plan):
        net(torch.zeros(4, 5))
    assert net.first.__dict__["forward"] is own


@pytest.mark.parametrize(("layers", "kind", "words"), [
    ([], ValueError, "layers is empty"), ([1.5], TypeError, "layers holds float"),
    (["nowhere"], ValueError, "layers holds 'nowhere', which the model does not have; it has input, first, second"),
    ([9], ValueError, r"layers holds 9, want a number from 0 \(the input\) to 4"),
    ([nn.Linear(1, 1)], ValueError, "layers holds a Linear that is no module"),
])
def test_bad_layers(layers, kind, words):
    with pytest.raises(kind, match=f"ManifoldMixup: {words}"):
        ManifoldMixup(1.0, layers).names(Net())


def test_prob_and_switch_leave_the_features_alone():
    net, x = Net(), torch.randn(4, 5)
    off = ManifoldMixup(1.0, ["first"])
    off.enabled = False
    for mixer in (off, ManifoldMixup(1.0, ["first"], prob=0.0)):
        plan = mixer.plan(x)
        with mixer.inside(net, plan):
            torch.testing.assert_close(net(x), by_hand(net, x, None, None))
        assert plan.target(torch.arange(4)).dense(4).equal(torch.eye(4))


def test_channels_last_features_autocast_and_checkpointing():
    torch.manual_seed(0)
    x, y, _ = batch(size=(8, 8))
    model = models.build("cnn", 6, (3, 8, 8)).to(memory_format=torch.channels_last)
    seen = []
    model.features[5].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    mixer = ManifoldMixup(1.0, ["features.4"])
    plan = mixer.plan(x)
    with mixer.inside(model, plan), torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(x.contiguous(memory_format=torch.channels_last))
    F.soft_cross_entropy(logits, plan.target(y)).backward()
    assert seen[0].dtype == torch.bfloat16 and seen[0].is_contiguous(memory_format=torch.channels_last)
    assert all(p.grad.isfinite().all() and p.grad.any() for p in model.parameters())

    net, x = Net(), torch.randn(4, 5, requires_grad=True)
    mixer = ManifoldMixup(1.0, ["second"])
    plan, grads = mixer.plan(x), []
    for run in (lambda: net(x).square().sum(), lambda: checkpoint(net, x, use_reentrant=False).square().sum()):
        with mixer.inside(net, plan):
            grads.append(torch.autograd.grad(run(), [x, net.first.weight]))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("way", ["torch.compile", "model.compile", "a part"])
def test_compiled_models_are_traced_once_a_layer(way):
    torch._dynamo.reset()
    torch.manual_seed(0)
    net, x = Net(), torch.randn(4, 5)
    counter = CompileCounterWithBackend("aot_eager")
    mixer = ManifoldMixup(1.0, ["input", "first", "second"])
    if way == "torch.compile":
        model = torch.compile(net, backend=counter, fullgraph=True)
    elif way == "model.compile":
        net.compile(backend=counter, fullgraph=True)
        model = net
    else:
        net.second.compile(backend=counter, fullgraph=True)
        model = net
    torch.testing.assert_close(model(x), by_hand(net, x, None, None))
    for _ in range(3):
        for layer in mixer.names(net):
            plan = mixer.plan(x)
            with mixer.inside(model, plan, layer):
                torch.testing.assert_close(model(x), by_hand(net, x, plan, layer))
        torch.testing.assert_close(model(x), by_hand(net, x, None, None))
    assert counter.frame_count == (2 if way == "a part" else 4)


def test_two_processes(tmp_path):
    """Different layers in the two processes of a DistributedDataParallel: their gradients are averaged."""
    script = tmp_path / "two.py"
    script.write_text("""
import torch, torch.distributed as dist, fastmix
import fastmix.functional as F
from fastmix.app import models
from fastmix.app.training.distributed import processes

def agree(rank):
    torch.manual_seed(0)
    model = models.build("cnn", 5, (1, 8, 8))
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    mixer = fastmix.ManifoldMixup(1.0, ["input", "features.4"])
    for step in range(3):
        torch.manual_seed(10 * step + rank)
        x, y = torch.randn(6, 1, 8, 8), torch.arange(6) % 5
        layer = mixer.names(parallel)[(step + rank) % 2]
        plan = mixer.plan(x)
        with mixer.inside(parallel, plan, layer):
            F.soft_cross_entropy(parallel(x), plan.target(y)).backward()
        with mixer.inside(model, plan, layer):
            own = torch.autograd.grad(F.soft_cross_entropy(model(x), plan.target(y)), list(model.parameters()))
        for p, g in zip(model.parameters(), own):
            dist.all_reduce(g)
            torch.testing.assert_close(p.grad, g / 2, atol=1e-6, rtol=1e-4)
            p.grad = None

with processes("cpu") as here:
    agree(here.rank)
    if here.first:
        print("agreed")
""")
    result = training.torchrun(script)
    assert result.returncode == 0 and "agreed" in result.stdout, result.stderr
