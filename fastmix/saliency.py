"""The gradient of the loss with respect to the images, at the price of no weight gradient: R-Mix Eq. 2."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .ops import checks as check
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
    The model keeps its train or eval mode; the caller may be under no_grad or autocast.

    Args:
        model: a module, compiled or not, or any callable from images to logits. A DistributedDataParallel is bypassed
            (nothing is to be reduced); compile inside it, DDP(torch.compile(model)).
        x: images (N, C, H, W), float. Detached, unless create_graph is set and it requires grad.
        y: (N,) int64 labels or a SoftTarget, handed to loss_fn.
        loss_fn: ``loss_fn(logits, y) -> 0-d``; None: `functional.soft_cross_entropy`, the mean over the batch. Masks
            and peaks do not depend on its scale; under float16 a scaled loss keeps small gradients from underflow.
        create_graph: keep the graph for a second derivative, down to the weights. Weight gradients are then possible,
            so parameters are not frozen.
        update_stats: True: BatchNorm statistics are updated as by the training forward. False: running_mean,
            running_var and num_batches_tracked of every module stay bit for bit.
    Returns: the gradient (N, C, H, W), dtype of x, detached unless create_graph. An empty batch gives an empty
    gradient. Raises: ValueError and TypeError for x.
    Source: R-Mix Sec. 3, the gradient in Eq. 2.
    """
    check.images("input_saliency", "x", x)
    if x.numel() == 0:
        return torch.zeros_like(x)
    if isinstance(model, DistributedDataParallel):
        model = model.module
    loss_fn = soft_cross_entropy if loss_fn is None else loss_fn
    with torch.enable_grad():
        if not (create_graph and x.requires_grad):
            x = x.detach().requires_grad_()
        frozen = nullcontext() if create_graph else _frozen(model)
        with frozen, nullcontext() if update_stats else _statistics_kept(model):
            loss = loss_fn(model(x), y)
            return torch.autograd.grad(loss, x, create_graph=create_graph)[0]
