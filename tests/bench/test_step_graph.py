"""The whole training step waits for nothing: on meta tensors here, in one CUDA graph where a GPU is.

A meta tensor has no values, so a step that runs on them never looks at one: `.item()`, a shape that depends on data, a
branch on a tensor all raise. It also takes the code's way for devices, where values are not checked. Once through the
reference, once through the operators, of which only the shape functions run: the launchers of kernels need a GPU.
"""

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastmix.bench.device.step_graph import METHODS, Result, Step, check_replays
from fastmix.ops.dispatch import AUTO
from fastmix.ops.operator import NAMESPACES

META, CPU = torch.device("meta"), torch.device("cpu")
every = pytest.mark.parametrize("method", METHODS)


class OnOneDevice(TorchDispatchMode):
    """Fails on an operator that waits for the device, or that takes a tensor (not a number) to it or from it."""

    forbidden = ("_local_scalar_dense", "nonzero", "lift_fresh", "masked_select", "unique", "equal.")

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
        on_device = any(t.device.type == "meta" for t in tensors)
        assert on_device or not tensors, f"{func} makes a tensor on the host"
        assert not any(t.dim() and t.device.type != "meta" for t in tensors), f"{func} crosses to the device"
        assert not any(name in str(func) for name in self.forbidden), f"{func} waits for the device"
        self.names.add(str(func))
        return out


class NothingFromTheHost(TorchFunctionMode):
    """Fails where numbers of the host become a tensor of the device: a copy that waits, which meta tensors skip."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        assert func not in (torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy), f"{func} copies"
        return func(*args, **(kwargs or {}))


@pytest.fixture(params=["reference", "triton"])
def served(request, monkeypatch):
    """What serves meta tensors."""
    for by_device in AUTO.values():
        monkeypatch.setitem(by_device, "meta", request.param)
    return request.param


@every
def test_a_step_waits_for_nothing(method, served, monkeypatch):
    step = Step(method, META)
    if method == "manifold-mixup":  # the host chooses the layer, a code path
        chosen = step.setup.mixer.names(step.setup.model)[-1]
        monkeypatch.setattr(step.setup.mixer, "choose", lambda model: chosen)
    with OnOneDevice() as mode, NothingFromTheHost():
        result = step()
    assert result.loss.device == META and result.images.shape == step.pixels.shape
    assert "aten.convolution_backward.default" in mode.names  # the modes see backward
    assert (served == "triton") == any(name.startswith(NAMESPACES["triton"] + ".") for name in mode.names)


@pytest.mark.parametrize("bad", [
    lambda x: x.sum().item(),
    lambda x: x[x > 0],
    lambda x: x + torch.tensor([1.0] * 4),
    lambda x: x + torch.tensor([1.0] * 4, device=META),
    lambda x: x.to("cpu"),
    lambda x: torch.randperm(4),
    lambda x: 1 if x.any() else 0,
])
def test_a_wait_is_seen(bad):
    x = torch.zeros(4, device=META)
    with pytest.raises((AssertionError, RuntimeError)), OnOneDevice(), NothingFromTheHost():
        bad(x)


@every
def test_every_step_draws_anew(method):
    """What the replays below must do, call by call."""
    step = Step(method, CPU)
    first, second = step(), step()
    assert isinstance(first, Result) and first.loss.isfinite() and second.loss.isfinite()
    assert not torch.equal(first.images, second.images)
    assert torch.allclose(first.labels.sum(1), torch.ones(len(step.y)), atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@every
def test_a_step_is_one_cuda_graph(method):
    check_replays(method, torch.device("cuda"))
