"""input_saliency: the gradient, what it leaves alone, what it does not compute."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import fastmix
from fastmix import RMix, SoftTarget, input_saliency
from fastmix.functional import soft_cross_entropy

pytestmark = pytest.mark.usefixtures("one_thread")


def make_model(norm=nn.BatchNorm2d):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), norm(6), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5))


def batch(n=4):
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, 9, 7, generator=g), torch.randint(0, 5, (n,), generator=g)


def buffers(model):
    return {name: value.clone() for name, value in model.named_buffers()}


def plain_gradient(model, x, y):
    """By the book, on a copy."""
    model = copy.deepcopy(model)
    x = x.clone().requires_grad_()
    F.cross_entropy(model(x), y).backward()
    return x.grad, buffers(model)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("update_stats", [True, False])
def test_gradient_mode_and_statistics(training, update_stats):
    model = make_model().train(training)
    x, y = batch()
    expected, updated = plain_gradient(model, x, y)
    before = buffers(model)
    identities = {name: value.data_ptr() for name, value in model.named_buffers()}
    for p in model.parameters():
        p.grad = torch.full_like(p, 3.0)
    grad = input_saliency(model, x, y, update_stats=update_stats)
    torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-8)
    assert not grad.requires_grad and not x.requires_grad
    assert model.training == training
    for p in model.parameters():
        assert p.requires_grad and (p.grad == 3.0).all()
    for name, value in model.named_buffers():
        assert torch.equal(value, (updated if update_stats else before)[name]), name
        assert value.data_ptr() == identities[name]
    if training and update_stats:
        assert model[1].num_batches_tracked == 1 and not torch.equal(model[1].running_mean, before["1.running_mean"])


def test_statistics_of_instance_norm_are_kept_too():
    model = make_model(lambda c: nn.InstanceNorm2d(c, track_running_stats=True))
    before = buffers(model)
    input_saliency(model, *batch(), update_stats=False)
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())


def test_frozen_parameters_stay_frozen_and_an_error_thaws_the_rest():
    model = make_model()
    model[0].weight.requires_grad_(False)
    flags = [p.requires_grad for p in model.parameters()]
    x, y = batch()
    input_saliency(model, x, y)
    assert [p.requires_grad for p in model.parameters()] == flags
    before = buffers(model)
    with pytest.raises(ZeroDivisionError):
        input_saliency(model, x, y, loss_fn=lambda *_: 1 / 0, update_stats=False)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())


class _Backwards(TorchDispatchMode):
    """Collects the output masks (input, weight, bias) of the backward kernels."""

    def __init__(self):
        super().__init__()
        self.masks = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.convolution_backward.default, torch.ops.aten.native_batch_norm_backward.default):
            self.masks.append(tuple(args[-1]))
        return func(*args, **(kwargs or {}))


def test_no_weight_gradient_is_computed():
    model, (x, y) = make_model(), batch()
    with _Backwards() as seen:
        input_saliency(model, x, y)
    assert seen.masks == [(True, False, False)] * 3
    with _Backwards() as seen:
        F.cross_entropy(model(x), y).backward()
    assert (True, True, True) in seen.masks


def test_compiled_model_computes_no_weight_gradient():
    torch._dynamo.reset()
    backwards = []

    def backend(graph, inputs):
        from torch._dynamo.backends.common import aot_autograd

        def keep(fx, example_inputs):
            backwards.append([tuple(node.args[-1]) for node in fx.graph.nodes
                              if node.target == torch.ops.aten.convolution_backward.default])
            return fx.forward

        return aot_autograd(fw_compiler=lambda fx, _: fx.forward, bw_compiler=keep)(graph, inputs)

    model, (x, y) = make_model(), batch()
    expected, _ = plain_gradient(model, x, y)
    compiled = torch.compile(model, backend=backend)
    for _ in range(3):  # a training step and a saliency pass in turn: two graphs, compiled once each
        F.cross_entropy(compiled(x), y).backward()
        grad = input_saliency(compiled, x, y)
    torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-8)
    assert len(backwards) == 2
    assert all(mask[1] for mask in backwards[0])
    assert backwards[1] == [(True, False, False)] * 2


@pytest.mark.parametrize("inside", [torch.no_grad, torch.enable_grad])
def test_grad_mode_of_the_caller(inside):
    model, (x, y) = make_model().eval(), batch()
    with inside():
        grad = input_saliency(model, x.requires_grad_(), y)
        assert torch.is_grad_enabled() == (inside is torch.enable_grad)
    assert grad.abs().sum() > 0 and x.grad is None


def test_autocast_and_a_training_step_in_the_same_context():
    model, (x, y) = make_model(), batch()
    alone = copy.deepcopy(model)
    with torch.autocast("cpu", torch.bfloat16):
        soft_cross_entropy(alone(x), y).backward()
    with torch.autocast("cpu", torch.bfloat16):
        grad = input_saliency(model, x, y, update_stats=False)
        loss = soft_cross_entropy(model(x), y)
    loss.backward()
    assert grad.dtype == torch.float32 and grad.abs().sum() > 0
    for ours, theirs in zip(model.parameters(), alone.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_soft_targets_and_loss_fn():
    model, (x, y) = make_model().eval(), batch()
    expected = input_saliency(model, x, y)
    torch.testing.assert_close(input_saliency(model, x, SoftTarget.from_labels(y)), expected)
    scaled = input_saliency(model, x, y, loss_fn=lambda logits, y: 8 * F.cross_entropy(logits, y, reduction="sum"))
    torch.testing.assert_close(scaled, 8 * len(y) * expected, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(input_saliency(lambda images: model(images), x, y), expected)


def test_create_graph_reaches_the_weights():
    model, (x, y) = make_model().double().train(), batch()
    x = x.double()
    grad = input_saliency(model, x, y, create_graph=True, update_stats=False)
    assert grad.requires_grad
    grad.square().sum().backward()
    weight = model[0].weight
    analytic = weight.grad[1, 2, 0, 1].item()
    values = []
    for step in (1e-5, -1e-5):
        with torch.no_grad():
            weight[1, 2, 0, 1] += step
            values.append(input_saliency(model, x, y, update_stats=False).square().sum().item())
            weight[1, 2, 0, 1] -= step
    assert analytic == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4)
    assert x.grad is None


def test_create_graph_keeps_x_in_the_graph():
    model, (x, y) = make_model().double().eval(), batch()
    source = x.double().requires_grad_()
    input_saliency(model, source * 2, y, create_graph=True).square().sum().backward()
    assert source.grad is not None


def test_memory_format_and_dtype():
    model, (x, y) = make_model().to(torch.bfloat16, memory_format=torch.channels_last), batch()
    grad = input_saliency(model, x.bfloat16().contiguous(memory_format=torch.channels_last), y)
    assert grad.dtype == torch.bfloat16 and grad.is_contiguous(memory_format=torch.channels_last)


def test_empty_batch():
    x, y = batch(0)
    assert input_saliency(make_model(), x, y).shape == (0, 3, 9, 7)


def test_bad_arguments():
    x, y = batch()
    with pytest.raises(ValueError, match="input_saliency: x has shape"):
        input_saliency(make_model(), x[0], y)
    with pytest.raises(TypeError, match="input_saliency: x has dtype uint8"):
        input_saliency(make_model(), x.byte(), y)


def test_distributed_data_parallel(tmp_path):
    """The reducer neither waits for the pass nor loses the hooks of a later step."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model, (x, y) = make_model(), batch()
        alone = copy.deepcopy(model)
        parallel = nn.parallel.DistributedDataParallel(model)
        reduced = []

        def hook(_, bucket):
            reduced.append(bucket.index())
            future = torch.futures.Future()
            future.set_result(bucket.buffer())
            return future

        parallel.register_comm_hook(None, hook)
        calls = []
        parallel.register_forward_pre_hook(lambda *_: calls.append(1))
        for step in range(3):
            expected, _ = plain_gradient(alone, x, y)
            grad = input_saliency(parallel, x, y, update_stats=False)
            torch.testing.assert_close(grad, expected)
            assert len(calls) == len(reduced) == step  # one bucket a training step, none for the pass
            F.cross_entropy(parallel(x), y).backward()
            F.cross_entropy(alone(x), y).backward()
        assert len(reduced) == 3
        for ours, theirs in zip(model.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad)
    finally:
        torch.distributed.destroy_process_group()


def test_the_loop_of_rmix():
    """Mixer, saliency, model, loss, backward, step: the loss of a small fit falls."""
    model, (x, y) = make_model(), batch(16)
    x = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    mixer = RMix(generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    losses = []
    for _ in range(60):
        mixed, target = mixer(x, y, input_saliency(model, x, y))
        loss = soft_cross_entropy(model(mixed), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    assert fastmix.functional.input_saliency is input_saliency


# ---------------------------------------------------------------- modes, checkpoints, half precision

class Checkpointed(nn.Module):
    """A model whose first part is run again in backward."""

    def __init__(self, first, second, reentrant):
        super().__init__()
        self.first, self.second, self.reentrant = first, second, reentrant

    def forward(self, x):
        return self.second(torch.utils.checkpoint.checkpoint(self.first, x, use_reentrant=self.reentrant))


def parts():
    first = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    return first, nn.Sequential(nn.Flatten(), nn.Linear(4 * 6 * 6, 5))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_models(reentrant):
    torch.manual_seed(1)
    first, second = parts()
    x, y = torch.randn(4, 3, 8, 8), torch.arange(4)
    want = fastmix.input_saliency(nn.Sequential(first, second), x, y, update_stats=False)
    model = Checkpointed(first, second, reentrant)
    steps = first[1].num_batches_tracked.item()
    for run in (1, 2):
        torch.testing.assert_close(fastmix.input_saliency(model, x, y), want)
        # Running it again in backward updates the statistics once more, as in any training with checkpoints.
        assert first[1].num_batches_tracked.item() <= steps + 2 * run
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    if reentrant:
        with pytest.raises(RuntimeError, match="create_graph is True, want a model without reentrant"):
            fastmix.input_saliency(Checkpointed(*parts(), True), x, y, create_graph=True)


def test_inside_inference_mode():
    model, x, y = nn.Sequential(*parts()), torch.randn(4, 3, 8, 8), torch.arange(4)
    want = fastmix.input_saliency(model, x, y, update_stats=False)
    with torch.inference_mode():
        torch.testing.assert_close(fastmix.input_saliency(model, x, y, update_stats=False), want)
        inner, labels = x.clone(), y.clone()
        assert inner.is_inference()
        torch.testing.assert_close(fastmix.input_saliency(model, inner, labels, update_stats=False), want)
        soft = fastmix.SoftTarget.from_labels(labels)
        torch.testing.assert_close(fastmix.input_saliency(model, inner, soft, update_stats=False), want)


def test_a_model_made_inside_inference_mode():
    with torch.inference_mode():
        model = nn.Sequential(*parts())
    with pytest.raises(ValueError, match="parameters that were made in inference_mode"):
        fastmix.input_saliency(model, torch.randn(4, 3, 8, 8), torch.arange(4))


def test_small_gradients_survive_float16_autocast():
    """The mean over 4096 images and a small weight: below the smallest float16 without a scale."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 8, bias=False), nn.Linear(8, 2, bias=False))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.02)
    x, y = torch.randn(4096, 3, 1, 1), torch.arange(4096) % 2
    want = fastmix.input_saliency(model, x, y)
    with torch.autocast("cpu", torch.float16):
        got = fastmix.input_saliency(model, x, y)
    assert got.dtype == torch.float32 and (got != 0).float().mean() > 0.9
    torch.testing.assert_close(got, want, rtol=0.05, atol=float(want.abs().max()) * 0.02)


def test_clips():
    model = nn.Sequential(nn.Flatten(), nn.Linear(2 * 3 * 4 * 4, 5))
    x, y = torch.randn(4, 2, 3, 4, 4), torch.arange(4)
    assert fastmix.input_saliency(model, x, y).shape == x.shape
