"""The gradient of the loss with respect to the images, at the price of no weight gradient: R-Mix Eq. 2."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils import _pytree as pytree

from .ops import checks as check
from .ops.planes import is_clip
from .ops.soft_target import soft_cross_entropy
from .targets import SoftTarget

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@contextmanager
def _frozen(model: Callable[..., Tensor]) -> Iterator[None]:
    """No parameter requires a gradient inside.

    In eager mode autograd.grad alone leaves weight gradients out. A model under torch.compile has them in its one
    backward graph: there this brings the pass from 1.03 to 0.72 of a training step (small CNN, measured on 2 CPU
    cores), at the price of one more compilation the first time. torch.func.functional_call over detached parameters
    does the same and costs more a call.
    """
    parameters = [p for p in model.parameters() if p.requires_grad] if isinstance(model, nn.Module) else []
    try:
        for p in parameters:
            p.requires_grad_(False)
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)


@contextmanager
def _statistics_kept(model: Callable[..., Tensor]) -> Iterator[None]:
    """Modules in training mode update copies of their running statistics inside.

    Copies take the buffers' place, rather than being written back: nothing that autograd saved is modified in place, so
    a second derivative can follow.
    """
    taken: list[tuple[nn.Module, str, Tensor]] = []
    try:
        for module in model.modules() if isinstance(model, nn.Module) else ():
            for name in STATISTICS if module.training else ():
                buffer = module._buffers.get(name)
                if buffer is not None:
                    taken.append((module, name, buffer))
                    module._buffers[name] = buffer.clone()
        yield
    finally:
        for module, name, buffer in taken:
            module._buffers[name] = buffer


def input_saliency(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor | SoftTarget,
                   loss_fn: Callable[..., Tensor] | None = None, create_graph: bool = False,
                   update_stats: bool = True) -> Tensor:
    """d loss / d x, what the mixers with ``needs_saliency`` read.

    One forward and one backward pass in which weight gradients are neither computed nor accumulated: ``p.grad`` stays
    as it is, no hook of a parameter runs. That is 2/3 of a training step where convolutions are all of it; BatchNorm,
    ReLU and pooling cost the same in both, so 0.76 to 0.88 were measured (CNNs of four layers, 32 x 32, CPU).
    The model keeps its train or eval mode; the caller may be under no_grad, inference_mode or autocast. A model with
    reentrant checkpoints is run twice the first time, then once like others.

    Args:
        model: a module, compiled or not, or any callable from images to logits. A DistributedDataParallel is bypassed
            (nothing is to be reduced); compile inside it, DDP(torch.compile(model)).
        x: images (N, C, H, W) or clips (N, C, T, H, W), float. Detached, unless create_graph is set and it requires
            grad.
        y: (N,) int64 labels or a SoftTarget, handed to loss_fn.
        loss_fn: ``loss_fn(logits, y) -> 0-d``; None: `functional.soft_cross_entropy`, the mean over the batch. Masks
            and peaks do not depend on its scale. Under float16 autocast the default loss is scaled inside, and its
            gradient scaled back; images that are float16 themselves want a scaled loss_fn, lest small gradients
            underflow.
        create_graph: keep the graph for a second derivative, down to the weights. Weight gradients are then possible,
            so parameters are not frozen.
        update_stats: True: BatchNorm statistics are updated as by the training forward. False: running_mean,
            running_var and num_batches_tracked of every module stay bit for bit.
    Returns: the gradient (N, C, H, W), dtype of x, detached unless create_graph. An empty batch gives an empty
    gradient. Raises: ValueError and TypeError for x.
    Source: R-Mix Sec. 3, the gradient in Eq. 2.
    """
    op = "input_saliency"
    if not callable(model):
        raise TypeError(f"{op}: model is {check.shown(model)}, want a module or a function of the images")
    if loss_fn is not None and not callable(loss_fn):
        raise TypeError(f"{op}: loss_fn is {check.shown(loss_fn)}, want a function of logits and labels, or None")
    create_graph = check.flag(op, "create_graph", create_graph)
    update_stats = check.flag(op, "update_stats", update_stats)
    if loss_fn is None and not isinstance(y, (Tensor, SoftTarget)):
        raise TypeError(f"{op}: y is {check.shown(y)}, want labels (N,) or a SoftTarget")
    if is_clip(x):
        check.dtype("input_saliency", "x", x, *check.FLOATS)
    else:
        check.images("input_saliency", "x", x)
    if isinstance(model, nn.Module) and any(p.is_inference() for p in model.parameters()):
        raise ValueError("input_saliency: model has parameters that were made in inference_mode, which no gradient "
                         "passes; want a model made outside of it")
    if x.numel() == 0:
        return torch.zeros_like(x)
    if isinstance(model, DistributedDataParallel):
        model = model.module
    scale = 1
    if loss_fn is None:
        loss_fn, scale = soft_cross_entropy, _scale_of(x)
    # Inference tensors cannot enter a graph: copies made outside of the mode are ordinary ones.
    with torch.inference_mode(False), torch.enable_grad():
        x, y = _ordinary(x), pytree.tree_map_only(Tensor, _ordinary, y)
        if not (create_graph and x.requires_grad):
            x = x.detach().requires_grad_()
        frozen = nullcontext() if create_graph else _frozen(model)
        with frozen, nullcontext() if update_stats else _statistics_kept(model):
            if model in _CHECKPOINTED and not create_graph:
                gradient = _backward(loss_fn(model(x), y) * scale, x)
            else:
                try:
                    gradient, = torch.autograd.grad(loss_fn(model(x), y) * scale, x, create_graph=create_graph)
                except RuntimeError as error:
                    if "checkpoint" not in str(error).lower() or not isinstance(model, nn.Module):
                        raise
                    if create_graph:
                        raise RuntimeError("input_saliency: create_graph is True, want a model without reentrant "
                                           "checkpointing: checkpoint(..., use_reentrant=False)") from error
                    _CHECKPOINTED.add(model)
                    with _statistics_kept(model):  # the first pass has updated them
                        gradient = _backward(loss_fn(model(x), y) * scale, x)
        return gradient if scale == 1 else gradient / scale


# Models that are known to checkpoint activations reentrantly.
_CHECKPOINTED: weakref.WeakSet[Any] = weakref.WeakSet()


def _backward(loss: Tensor, x: Tensor) -> Tensor:
    """d loss / d x by ``backward``, the one way through reentrant checkpoints. The model's parameters are frozen, so
    that the gradient is accumulated in x alone."""
    loss.backward()
    assert x.grad is not None
    return x.grad


def _ordinary(t: Tensor) -> Tensor:
    return t.clone() if t.is_inference() else t


def _scale_of(x: Tensor) -> int:
    """What the mean loss is multiplied by inside: under float16 autocast the batch size, to the next power of two, so
    that activations' gradients are as large as those of a single image. Float32 images get exact quotients."""
    device = x.device.type
    if x.dtype == torch.float16 or not torch.amp.is_autocast_available(device):
        return 1
    if not torch.is_autocast_enabled(device):
        return 1
    return 1 << (len(x) - 1).bit_length() if torch.get_autocast_dtype(device) == torch.float16 else 1
